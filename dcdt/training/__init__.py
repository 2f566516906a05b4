"""Build, fit, tune and restore a model."""
