"""Ranking metrics, pair metrics and statistics: tensors in, numbers out; knows no model, no file."""
