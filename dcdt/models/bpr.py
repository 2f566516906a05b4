"""Bayesian personalised ranking: the factors of learners that the model was not fitted on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

EPOCHS = 100  # of gradient ascent for a new learner, as many as in training
MAX_SCORE = 300.0  # beyond it a step is that of a difference which is decided, and the exponential would overflow


def bpr_learners(
    items: NDArray[Any],
    popularity: NDArray[Any],
    histories: Sequence[tuple[NDArray[Any], NDArray[np.float64]]],
    config: dict[str, Any],
    epochs: int = EPOCHS,
) -> NDArray[np.float64]:
    """Fit the factors (B, F) of new learners by BPR's gradient ascent, the factors of the videos fixed.

    Each epoch takes the expected step: for each watch, negatives in proportion to how often they were watched, without
    those of the history. All learners take it together, so that their scores are one product of matrices.

    Args:
        items: (M, F + 1) factors of the videos, the bias last.
        popularity: (M,) how often each was watched in fitting.
        histories: of B learners: (H,) rows of the distinct videos watched, and (H,) how often.
        config: learning_rate and regularization.
        epochs: of gradient ascent.
    """
    factors, bias = items[:, :-1].astype(np.float64), items[:, -1].astype(np.float64)
    learners = np.zeros((len(histories), factors.shape[1]))
    n_watches = np.array([counts.sum() for _, counts in histories])
    negative_share = np.tile(popularity.astype(np.float64), (len(histories), 1))  # (B, M)
    for row, (watched, _) in enumerate(histories):
        negative_share[row, watched] = 0
    negative_share /= np.maximum(negative_share.sum(1, keepdims=True), 1)
    gains, losses = np.zeros_like(learners), np.empty_like(negative_share)
    for _ in range(epochs):
        odds = np.exp((learners @ factors.T + bias).clip(-MAX_SCORE, MAX_SCORE))  # (B, M)
        weighted = negative_share * odds
        for row, (watched, counts) in enumerate(histories):
            slope = odds[row] + odds[row, watched, None]  # (H, M)
            np.divide(weighted[row], slope, out=slope)
            gains[row] = (counts * slope.sum(1)) @ factors[watched]
            losses[row] = counts @ slope
        step = gains - losses @ factors
        learners += config["learning_rate"] * (step - config["regularization"] * n_watches[:, None] * learners)
    return learners
