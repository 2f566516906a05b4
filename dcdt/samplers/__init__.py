"""Negative samplers, one class a file, looked up by name.

A sampler is built from its configuration, a `TrainingPool` and the frozen `Tables`. `draw(generator)` gives the rows
of an epoch, (R, 2 + K): query, positive and K negatives of its own; `batch(rows)` makes of some of them what a model
trains on, either as they are or with columns that all queries of the batch share (`columns.py`). A sampler that mines
with the current towers says when it is `due` and gets their scores in `mine_again`.
"""
