"""Towers and the recommender base that all models share."""
