"""Training losses, one class a file, looked up by name."""
