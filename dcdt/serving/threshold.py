"""The score below which "nothing here fits", chosen on the validation queries."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcdt.config.registry import LOSSES, MODELS, look_up
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.splits import make_split
from dcdt.models.recommender import Recommender, query_batch
from dcdt.training.checkpoint import Restored


def choose_threshold(restored: Restored) -> dict[str, Any] | None:
    """The best score that tells questions with an answer from questions without one.

    Every validation query is asked twice: with the catalogue as it is, and with all videos related to it taken out, so
    that nothing is left that fits. The threshold makes the share of the first kept plus the share of the second refused
    as large as can be. Test queries are not read.

    Returns:
        `value`, the shares `kept` and `refused` on validation, and the number of queries; None for a model that does
        not read the question.
    """
    if restored.settings.model.name == "collaborative":
        return None
    collection = restored.collection
    data = RankingDataModule(collection, make_split(collection, restored.settings.split), {}, None, 1, 0, (1,))
    found, missed = [], []
    for scores, judged in zip(validation_scores(restored, data), data.sides["val"].judged.tolist(), strict=True):
        found.append(float(scores.max()))
        scores[[video for video in judged if video >= 0]] = float("-inf")
        missed.append(float(scores.max()))
    return best_threshold(np.array(found), np.array(missed))


def validation_scores(restored: Restored, data: RankingDataModule) -> Iterator[Tensor]:
    """Scores (N,) of the catalogue for each validation query of `data`, -inf where a video is no candidate.

    A model that fitted validation queries leaves out the one that it scores.
    """
    model, side = _judge(restored, data), data.sides["val"]
    for row in side.queries.tolist():
        rows = torch.tensor([row])
        batch = query_batch(restored.collection, restored.tables, rows, side)
        scores = model.score_left_out(batch, rows) if model.reads_validation else model.score(batch)  # (1, N)
        yield scores[0].float().masked_fill(~side.candidates, float("-inf"))


def best_threshold(found: np.ndarray, missed: np.ndarray) -> dict[str, Any]:
    """The threshold between best scores with (n,) and without (n,) an answer, and what it does to both.

    >>> best_threshold(np.array([3.0, 2.0, 0.5]), np.array([1.0, 0.0, 0.4]))
    {'value': 0.5, 'kept': 1.0, 'refused': 0.6666666666666666, 'queries': 3}
    """
    values = np.unique(np.concatenate([found, missed[np.isfinite(missed)]]))
    kept = (found[None] >= values[:, None]).mean(1)
    refused = (missed[None] < values[:, None]).mean(1)
    at = int(np.argmax(kept + refused))
    return {
        "value": float(values[at]),
        "kept": float(kept[at]),
        "refused": float(refused[at]),
        "queries": len(found),
    }


def _judge(restored: Restored, data: RankingDataModule) -> Recommender:
    """The model; where validation queries were fitted, fitted anew, which remembers how to leave each of them out.

    What epochs trained on top of that fit, as they train a joint head, is taken over.
    """
    if not restored.model.reads_validation:
        return restored.model
    settings = restored.settings
    loss = look_up(LOSSES, settings.loss.name)(settings.loss)
    model: Recommender = look_up(MODELS, settings.model.name)(settings.model, restored.tables, loss, settings.optimizer)
    data.ks = tuple(settings.ks)
    model.prepare(data)
    model.load_state_dict(restored.model.state_dict())
    return model.eval()
