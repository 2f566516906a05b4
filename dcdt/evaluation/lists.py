"""Measure lists of recommended videos beside their accuracy: coverage, popularity and novelty."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LIST_METRICS = ("coverage", "popularity", "novelty")


Rows = NDArray[np.integer[Any]]


def list_metrics(
    top: Rows, is_ranked: NDArray[np.bool_], n_watchers: Rows, n_learners: int, n_candidates: int
) -> list[float]:
    """Compute the coverage, popularity and novelty of the lists of n queries.

    Args:
        top: (n, k) rows of the best videos.
        is_ranked: (n, k) bool, False at the end of a list that is shorter than k.
        n_watchers: (N,) how many of the learners watched each video.
        n_learners: how many there are.
        n_candidates: how many videos are ranked.

    Returns:
        The share of the candidates that stand in any list; the mean share of the learners who watched a listed video;
        and the mean of -log2 of that share in bits, one learner added, so that it is finite for a video nobody watched.
        Means are over queries, of the means over their lists.

    >>> list_metrics(np.array([[0, 1], [0, 2]]), np.ones((2, 2)) > 0, np.array([3, 1, 0, 0]), 3, 4)
    [0.75, 0.5833333333333333, 0.75]
    """
    watchers = n_watchers[top]  # (n, k)
    novelty = -np.log2((watchers + 1) / (n_learners + 1))
    lengths = is_ranked.sum(1).clip(min=1)  # (n,)
    means = [float(((values * is_ranked).sum(1) / lengths).mean()) for values in (watchers / n_learners, novelty)]
    return [len(np.unique(top[is_ranked])) / n_candidates, *means]
