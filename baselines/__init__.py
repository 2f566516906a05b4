"""The models DCDT is compared with, each a recommender."""
