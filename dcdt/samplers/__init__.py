"""Negative samplers, one class a file, looked up by name.

A sampler is built from its configuration, a `TrainingPool` and the frozen `Tables`; `draw(generator)` gives the video
rows of the negatives of every training pair, (P, K), and is called once an epoch.
"""
