"""Models that read what a learner watched, without torch: history towers, and collaborative filtering."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdt.models.bpr import bpr_learner
from dcdt.serving.towers import Floats, Scores, softmax, unit

ITEM_ITEM = ("cosine", "tfidf", "bm25")


def learner_vector(facts: dict[str, Any], matrix: Floats, watched: Floats, asked: Floats) -> Floats:
    """The learner's unit vector (d,) of `dcdt.models.history_tower`.

    Args:
        facts: history, match and decay of the tower.
        matrix: (d, d) the tower's map.
        watched: (L, d) unit vectors of the last videos, the newest first.
        asked: (d,) direction of the question.
    """
    if facts["history"] == "none" or not len(watched):
        return np.zeros(len(matrix), dtype=np.float32)
    weights = np.full(len(watched), 1 / len(watched))
    if facts["history"] == "attention":
        query = asked if asked.any() else watched[0]
        weights = softmax(facts["match"] * (watched @ query) - facts["decay"] * np.log1p(np.arange(len(watched))))
    pool = unit(weights.astype(np.float32) @ watched)
    return unit(pool + pool @ matrix)


def collaborative_scores(config: dict[str, Any], learned: dict[str, NDArray[Any]], items: NDArray[np.int64]) -> Scores:
    """Scores (M,) of the videos of an export for a learner who watched these of them (L,).

    Without one that the model was fitted on they come by popularity; a video nobody watched stands last.
    """
    popularity = learned["popularity"]
    scores = popularity.astype(np.float64)
    own, counts = np.unique(items, return_counts=True)  # (H,)
    if config["kind"] != "popularity" and (popularity[own] > 0).any():
        kind = config["kind"]
        score = _item_item if kind in ITEM_ITEM else _als if kind == "als" else _bpr
        scores = score(config, learned, own, counts.astype(np.float64))
    unseen = popularity == 0
    scores[unseen] = scores.min() - 1
    return scores


def _item_item(
    config: dict[str, Any], learned: dict[str, NDArray[Any]], own: NDArray[np.int64], counts: Scores
) -> Scores:
    scores = np.zeros(len(learned["popularity"]))
    for item, count in zip(own.tolist(), counts, strict=True):
        part = slice(learned["indptr"][item], learned["indptr"][item + 1])
        np.add.at(scores, learned["indices"][part], count * learned["data"][part])
    return scores


def _als(config: dict[str, Any], learned: dict[str, NDArray[Any]], own: NDArray[np.int64], counts: Scores) -> Scores:
    """Least squares of the learner with the videos' factors held (Hu, Koren and Volinsky 2008)."""
    factors = learned["items"].astype(np.float64)  # (M, F)
    liked, trust = factors[own], config["alpha"] * counts  # (H, F), (H,)
    left = factors.T @ factors + config["regularization"] * np.eye(factors.shape[1]) + (liked.T * (trust - 1)) @ liked
    return np.asarray(factors @ np.linalg.solve(left, trust @ liked))


def _bpr(config: dict[str, Any], learned: dict[str, NDArray[Any]], own: NDArray[np.int64], counts: Scores) -> Scores:
    learner = bpr_learner(learned["items"], learned["popularity"], own, counts, config)
    return np.asarray(learned["items"] @ np.r_[learner, 1.0])
