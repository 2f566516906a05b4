"""Sums over queries from which a model is fitted, and what bounds the part of one learner in them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcdt.data.datamodule import SideTensors
from dcdt.data.types import Collection


@dataclass(frozen=True)
class Sums:
    """Sums in double precision over n queries or learners; one learner changes them by a norm of `sensitivity`."""

    tensors: dict[str, Tensor]
    n: int
    sensitivity: float


def query_weights(collection: Collection, sides: Sequence[SideTensors], clip: int | None) -> Tensor:
    """Weigh query rows (Q,) so that a learner (`user_id`, else the query's own) counts as at most `clip` queries."""
    weights = torch.ones(len(collection.queries), dtype=torch.float64)
    rows = [row for side in sides for row in side.queries.tolist()] if clip is not None else []
    learners = [str(collection.queries.metadata[row].get("user_id", row)) for row in rows]
    counts = Counter(learners)
    for row, learner in zip(rows, learners, strict=True):
        weights[row] = min(1.0, (clip or 1) / counts[learner])
    return weights
