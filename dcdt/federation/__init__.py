"""Fit a model on the queries of several schools from sums, so that no query leaves its school."""
