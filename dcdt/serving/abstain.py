"""The score below which "nothing here fits", chosen on the validation queries."""

from typing import Any

import numpy as np
import torch

from dcdt.data.datamodule import RankingDataModule
from dcdt.data.splits import make_split
from dcdt.models.recommender import Recommender, query_batch
from dcdt.registry import LOSSES, MODELS, look_up
from dcdt.restore import Restored


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
    model, side = _judge(restored, data), data.sides["val"]
    found, missed = [], []
    for row, judged in zip(side.queries.tolist(), side.judged.tolist(), strict=True):
        rows = torch.tensor([row])
        batch = query_batch(collection, restored.tables, rows, side.candidates)
        scores = model.score_left_out(batch, rows) if model.reads_validation else model.score(batch)
        scores = scores[0].masked_fill(~side.candidates, float("-inf"))
        found.append(float(scores.max()))
        scores[[video for video in judged if video >= 0]] = float("-inf")
        missed.append(float(scores.max()))
    return best_threshold(np.array(found), np.array(missed))


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
