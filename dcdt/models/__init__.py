"""Models: the base that all share (`recommender.py`) and what is fitted in this package.

Their schemas, tuning spaces and names are in `config.py`; those of the baselines in `baselines/config.py`.
"""
