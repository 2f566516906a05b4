"""Bayesian personalised ranking: the factors of a learner that the model was not fitted on."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

EPOCHS = 100  # of gradient ascent for a new learner, as many as in training


def bpr_learner(
    items: NDArray[Any],
    popularity: NDArray[Any],
    watched: NDArray[Any],
    counts: NDArray[np.float64],
    config: dict[str, Any],
    epochs: int = EPOCHS,
) -> NDArray[np.float64]:
    """Fit the factors (F,) of a new learner by BPR's gradient ascent, the factors of the videos fixed.

    Each epoch takes the expected step: for each watch, negatives in proportion to how often they were watched, without
    those of the history.

    Args:
        items: (M, F + 1) factors of the videos, the bias last.
        popularity: (M,) how often each was watched in fitting.
        watched: (H,) rows of the distinct videos watched.
        counts: (H,) how often.
        config: learning_rate and regularization.
        epochs: of gradient ascent.
    """
    factors, bias = items[:, :-1].astype(np.float64), items[:, -1].astype(np.float64)
    learner = np.zeros(factors.shape[1])
    weights = popularity.copy()
    weights[watched] = 0
    others = np.flatnonzero(weights)
    negative_share = weights[others] / max(weights.sum(), 1)  # (J,)
    liked, other_factors, other_bias = factors[watched], factors[others], bias[others]  # (H, F), (J, F), (J,)
    for _ in range(epochs if len(others) else 0):
        gap = (liked @ learner + bias[watched])[:, None] - (other_factors @ learner + other_bias)  # (H, J)
        slope = counts[:, None] * negative_share / (1 + np.exp(gap))
        step = slope.sum(1) @ liked - slope.sum(0) @ other_factors
        learner += config["learning_rate"] * (step - config["regularization"] * counts.sum() * learner)
    return learner
