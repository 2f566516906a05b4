"""Vectors of texts: the cache, and what fills it."""
