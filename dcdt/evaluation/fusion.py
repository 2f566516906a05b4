"""Fusion of two models' scores, for tensors of torch in training and arrays of numpy in serving."""

from typing import Any

SCORE_GAP = 1e-3  # in z-scores, between the worst re-ranked video and the best of the others


def standardize(scores: Any, mean: Any, deviation: Any) -> Any:  # noqa: ANN401 - of either library
    """Compute the z-scores of scores that are not all equal."""
    return (scores - mean) / deviation


def convex_sum(first: Any, second: Any, weight: Any) -> Any:  # noqa: ANN401
    """Fuse the z-scores of two models.

    >>> convex_sum(2.0, -2.0, 0.75)
    1.0
    """
    return weight * first + (1 - weight) * second


def reciprocal_rank_sum(first: Any, second: Any, k: int) -> Any:  # noqa: ANN401
    """Fuse the ranks of two models, from 1, in double precision (Cormack, Clarke and Büttcher 2009).

    >>> reciprocal_rank_sum(1.0, 4.0, k=1)
    0.7
    """
    return 1 / (k + first) + 1 / (k + second)
