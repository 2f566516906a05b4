"""Training losses, one class a file, looked up by name; `base.py` says what all have in common."""
