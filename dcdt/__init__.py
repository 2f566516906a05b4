"""Recommend teaching videos to a learner who asks a question in words."""

__version__ = "0.1.0"
