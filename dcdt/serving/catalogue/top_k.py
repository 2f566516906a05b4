"""The k largest scores of a large catalogue, ties broken as in every evaluation."""

import numpy as np
from numpy.typing import NDArray

SAMPLE, MIN_SAMPLED = 8192, 16  # scores sampled to guess how high the best are, and how many of the sample at least


def top_k(scores: NDArray[np.floating], order: NDArray[np.int64] | None, k: int) -> NDArray[np.int64]:
    """Positions of the k largest scores (n,), of equals the first in `order` (n,) or as given; never one of -inf."""
    least = _sampled_threshold(scores, k)
    above = np.flatnonzero(scores > least)
    level = np.flatnonzero(scores == least) if len(above) < k and least > -np.inf else above[:0]
    if len(above) + len(level) < k:  # the sample's threshold was too high, or there was none
        above, level = np.flatnonzero(scores > -np.inf), above[:0]
    if len(above) > k:
        values = scores[above]
        last = np.partition(values, len(above) - k)[len(above) - k]
        above, level = above[values > last], above[values == last]
    more = k - len(above)
    if order is not None and 0 < more < len(level):  # of many equals, as where no word matches, few are sorted
        level = level[np.argpartition(order[level], more - 1)]
    rows = np.concatenate([above, level[:more]])
    first: NDArray[np.int64] = rows[np.lexsort((rows if order is None else order[rows], -scores[rows]))]
    return first


def _sampled_threshold(scores: NDArray[np.floating], k: int) -> float:
    """A score that about k reach, or somewhat more, by a sample of many scores; -inf for few."""
    step = len(scores) // SAMPLE
    if step <= 1:
        return -np.inf
    sample = scores[::step]
    n = min(len(sample), 2 * k // step + MIN_SAMPLED)
    return float(np.partition(sample, len(sample) - n)[len(sample) - n])
