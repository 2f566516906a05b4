"""Folders of runs, their results, and sweeps of runs."""
