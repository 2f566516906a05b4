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
    """Sums over n queries or learners.

    Attributes:
        tensors: the sums by name, in double precision on the CPU.
        n: number of queries or learners.
        sensitivity: the largest change, in the Euclidean norm of all sums together, by adding or removing one learner.
    """

    tensors: dict[str, Tensor]
    n: int
    sensitivity: float


def query_weights(collection: Collection, sides: Sequence[SideTensors], clip: int | None) -> Tensor:
    """Weigh the queries of the sides so that each learner counts as at most `clip` queries: (Q,) by query row.

    A query without `user_id` is of a learner of its own; queries of no side have weight 1.
    """
    weights = torch.ones(len(collection.queries), dtype=torch.float64)
    if clip is None:
        return weights
    rows = [row for side in sides for row in side.queries.tolist()]
    learners = {row: collection.queries.metadata[row].get("user_id") for row in rows}
    n_queries = Counter(str(learner) for learner in learners.values() if learner is not None)
    for row, learner in learners.items():
        weights[row] = 1.0 if learner is None else min(1.0, clip / n_queries[str(learner)])
    return weights


def check_gram(gram: Tensor) -> None:
    """Refuse a matrix that is no sum of `x x'`.

    Raises:
        ValueError: it is not symmetric.
    """
    if float((gram - gram.T).abs().max()) > 1e-9 * max(1.0, float(gram.abs().max())):
        raise ValueError("'gram' is not symmetric")
