"""Callbacks of training: best and last weights, history, progress, divergence, collapse, samples."""
