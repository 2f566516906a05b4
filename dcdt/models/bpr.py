"""Bayesian personalised ranking: the factors of a learner that the model was not fitted on."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

EPOCHS = 100  # of BPR's ascent for a history it was not fitted on, as many as in fitting


def bpr_learner(
    items: NDArray[Any],
    popularity: NDArray[Any],
    own: NDArray[Any],
    counts: NDArray[np.float64],
    config: dict[str, Any],
    epochs: int = EPOCHS,
) -> NDArray[np.float64]:
    """Factors (F,) of a learner: as many epochs of BPR's own ascent as in fitting, with the videos' factors held.

    An epoch takes its expected step: for each watch, negatives in proportion to how often they were watched, without
    those of the history.

    Args:
        items: (M, F + 1) factors of the videos, the bias last.
        popularity: (M,) how often each was watched in fitting.
        own: (H,) distinct videos watched.
        counts: (H,) how often.
        config: learning_rate and regularization.
        epochs: of the ascent.
    """
    factors, bias = items[:, :-1].astype(np.float64), items[:, -1].astype(np.float64)
    learner = np.zeros(factors.shape[1])
    weights = popularity.copy()
    weights[own] = 0
    others = np.flatnonzero(weights)
    share = weights[others] / max(weights.sum(), 1)  # (J,)
    liked, rest, rest_bias = factors[own], factors[others], bias[others]  # (H, F), (J, F), (J,)
    for _ in range(epochs if len(others) else 0):
        gap = (liked @ learner + bias[own])[:, None] - (rest @ learner + rest_bias)  # (H, J)
        push = counts[:, None] * share / (1 + np.exp(gap))
        step = push.sum(1) @ liked - push.sum(0) @ rest
        learner += config["learning_rate"] * (step - config["regularization"] * counts.sum() * learner)
    return learner
