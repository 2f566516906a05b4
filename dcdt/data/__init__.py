"""Texts, splits, cached vectors and the index batches made from them."""
