"""Collections, splits, frozen vectors and the index batches made from them."""
