"""The embedding cache, the embedders that fill it, and tables of its vectors."""
