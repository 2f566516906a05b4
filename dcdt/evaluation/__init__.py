"""Ranking metrics, pair metrics and statistics: from tensors, independent of models and files."""
