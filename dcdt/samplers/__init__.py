"""Negative samplers, one class per file, registered by name in `config.py`.

A sampler is built from its configuration, a `TrainingPool` and the frozen `Tables`. `draw(generator)` returns the
negatives of an epoch, so that a row is (query, positive, K negatives); `batch(rows)` turns some rows into a training
batch, either as they are or with columns that all queries of the batch share (`shared_columns.py`). A sampler that
mines with the current towers says so in `should_refresh` and is given their scores in `refresh`.
"""
