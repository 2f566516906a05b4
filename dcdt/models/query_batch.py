"""The inputs of a batch of queries."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dcdt.data.datamodule import SideTensors
from dcdt.data.tables import Tables
from dcdt.data.types import Collection
from dcdt.utils.precision import at_least_float32
from dcdt.utils.transfer import to_device


@dataclass(frozen=True)
class QueryBatch:
    """The inputs of B queries; a model uses what it needs.

    Attributes:
        vectors: (B, D) frozen query vectors.
        texts: B texts.
        users: id of the asking user, or None.
        times: of asking, in seconds, or None.
        candidates: (C,) rows of the videos to rank, ascending; None for all.
        candidate_mask: (N,) the same as bool; None for all.
        rows: (B,) of the collection's queries, on the CPU; None for others.
    """

    vectors: Tensor
    texts: Sequence[str]
    users: Sequence[str | None]
    times: Sequence[float | None]
    candidates: Tensor | None = None
    candidate_mask: Tensor | None = None
    rows: Tensor | None = None


def query_batch(collection: Collection, tables: Tables, rows: Tensor, side: SideTensors | None = None) -> QueryBatch:
    """Make the batch of the queries of rows (B,), on the CPU, with the candidates of a side, or with all videos."""
    queries, listed, vectors = collection.queries, rows.tolist(), tables.queries
    return QueryBatch(
        at_least_float32(vectors[to_device(rows, vectors.device)]),
        [queries.texts[row] for row in listed],
        [queries.metadata[row].get("user_id") for row in listed],
        [queries.metadata[row].get("timestamp") for row in listed],
        side.candidate_rows(vectors.device) if side is not None else None,
        side.candidate_mask(vectors.device) if side is not None else None,
        rows,
    )
