"""The score below which no video fits a question, chosen on the validation queries."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcdt.data.datamodule import RankingDataModule
from dcdt.data.splits import make_split
from dcdt.models.hyperparameters import build
from dcdt.models.query_batch import query_batch
from dcdt.models.recommender import Recommender
from dcdt.training.checkpoint import Restored


def choose_threshold(restored: Restored) -> dict[str, Any] | None:
    """Choose the best score that tells questions with an answer from questions without one.

    Every validation query is scored twice: with the catalogue as it is, and without the videos related to it, so that
    nothing fits. The threshold maximises the share of the first that are answered plus the share of the second that
    are rejected. Test queries are not read.

    Returns:
        `value`, the shares `answered` and `rejected` on validation, and the number of queries; None for a model that
        does not read the question, for a catalogue without questions, and for a model of several schools' sums.
    """
    has_questions = len(restored.collection.positives) > 0
    if not restored.model.reads_question or restored.federated or not has_questions:
        return None
    collection = restored.collection
    data = RankingDataModule(collection, make_split(collection, restored.settings.split), {}, None, 1, 0, (1,))
    best, best_unrelated = [], []
    for scores, judged in zip(validation_scores(restored, data), data.sides["val"].judged.tolist(), strict=True):
        best.append(float(scores.max()))
        scores[[video for video in judged if video >= 0]] = float("-inf")
        best_unrelated.append(float(scores.max()))
    return best_threshold(np.array(best), np.array(best_unrelated))


def validation_scores(restored: Restored, data: RankingDataModule) -> Iterator[Tensor]:
    """Scores (N,) of the catalogue for each validation query of `data`, -inf where a video is no candidate.

    A model that fitted validation queries leaves out the one that it scores.
    """
    model, side = _left_out_model(restored, data), data.sides["val"]
    for row in side.queries.tolist():
        rows = torch.tensor([row])
        batch = query_batch(restored.collection, restored.tables, rows, side)
        scores = model.score_left_out(batch, rows) if model.reads_validation else model.score(batch)  # (1, N)
        yield scores[0].float().masked_fill(~side.candidates, float("-inf"))


def best_threshold(with_answer: np.ndarray, without: np.ndarray) -> dict[str, Any]:
    """Separate the best scores (n,) of queries with an answer from those without one.

    >>> best_threshold(np.array([3.0, 2.0, 0.5]), np.array([1.0, 0.0, 0.4]))
    {'value': 0.5, 'answered': 1.0, 'rejected': 0.6666666666666666, 'queries': 3}
    """
    values = np.unique(np.concatenate([with_answer, without[np.isfinite(without)]]))
    answered = (with_answer[None] >= values[:, None]).mean(1)
    rejected = (without[None] < values[:, None]).mean(1)
    i = int(np.argmax(answered + rejected))
    return {
        "value": float(values[i]),
        "answered": float(answered[i]),
        "rejected": float(rejected[i]),
        "queries": len(with_answer),
    }


def _left_out_model(restored: Restored, data: RankingDataModule) -> Recommender:
    """Return the model, fitted anew where validation queries were fitted, so that it can leave each of them out.

    Weights that epochs trained on top of that fit, such as a joint head, are loaded.
    """
    if not restored.model.reads_validation:
        return restored.model
    settings = restored.settings
    model: Recommender = build(settings.model, settings.loss, settings.optimizer, restored.tables)
    data.ks = tuple(settings.ks)
    model.prepare(data)
    model.load_state_dict(restored.model.state_dict())
    return model.eval()
