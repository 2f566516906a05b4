"""Fusion of two models' scores: one arithmetic for tensors of torch, in training, and arrays of numpy, in a service."""

from typing import Any

SCORE_GAP = 1e-3  # in z-scores: how far the best video beyond a re-ranked depth stays beneath the worst within it


def standardize(scores: Any, mean: Any, deviation: Any) -> Any:  # noqa: ANN401 - of either library
    """Scores less their mean, over their deviation: z-scores of scores that are not all equal."""
    return (scores - mean) / deviation


def weighted_sum(first: Any, second: Any, weight: Any) -> Any:  # noqa: ANN401
    """The fused scores of two models' z-scores.

    >>> weighted_sum(2.0, -2.0, 0.75)
    1.0
    """
    return weight * first + (1 - weight) * second


def reciprocal_rank_sum(first: Any, second: Any, k: int) -> Any:  # noqa: ANN401
    """The fused scores of two models' ranks, from 1, in double precision (Cormack, Clarke and Büttcher 2009).

    >>> reciprocal_rank_sum(1.0, 4.0, k=1)
    0.7
    """
    return 1 / (k + first) + 1 / (k + second)
