"""Features of the rank head: scores, field cosines, and a memory of the judged queries."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dcdt.data.datamodule import SideTensors
from dcdt.data.tables import Tables
from dcdt.data.types import Collection
from dcdt.models.whitening import catalogue_whitening

KERNELS = (0.05, 0.1)  # temperatures of the similarity to judged queries
MEMORY_BUFFERS = {"asked": "judged_vectors", "owner": "answer_groups", "answers": "answer_videos"}  # by checkpoint key
MAX_GATHERED_NUMBERS = 2**22  # at a time: 16 MB of fp32, about the cache of a CPU


class Evidence(nn.Module):
    """Compute features (B, K, E) of B queries and K recalled videos each: scores, one cosine a field, and a memory.

    The scores are z-scores over the query's candidates, first the recall's own, then those of its parts. The cosines
    are between the query and each field of the video, whitened as in `dcdt_ridge`. The memory estimates how
    likely the video is a positive: judged queries weigh `softmax(cosine / temperature)` by their frozen vectors
    (Nadaraya-Watson, a column for each of KERNELS), and a video sums the weights of those it was a positive of.
    Queries with the text of the query itself are left out.

    Args:
        tables: the frozen vectors.
        whiten: soft or none.
    """

    whitening: Tensor
    judged_vectors: Tensor
    answer_groups: Tensor
    answer_videos: Tensor

    def __init__(self, tables: Tables, whiten: str) -> None:
        super().__init__()
        self.tables, self.whiten = tables, whiten
        self.register_buffer("whitening", torch.eye(tables.width))
        self.register_buffer("judged_vectors", torch.zeros(0, tables.width), persistent=False)
        for name in ("answer_groups", "answer_videos"):  # as large as the judgments: in the extra state
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64), persistent=False)
        self._whitened_videos: Tensor | None = None

    def prepare(self, collection: Collection, sides: Sequence[SideTensors], groups: Sequence[Sequence[int]]) -> None:
        """Compute the whitening of the candidates, and store the positives of the queries of the sides.

        Args:
            collection: for the grade of a positive.
            sides: whose judgments are stored.
            groups: their query rows, those of equal text together.
        """
        self._whitened_videos = None
        if self.whiten == "soft":
            self.whitening = catalogue_whitening(
                self.tables.videos, torch.stack([side.candidates for side in sides]).any(0)
            )
        group_of = {row: i for i, rows in enumerate(groups) for row in rows}
        pairs = set()
        for side in sides:
            positive = (side.judged >= 0) & (side.grades >= collection.positive_grade)  # (n, J)
            i, column = positive.nonzero(as_tuple=True)
            judged_pairs = zip(side.queries[i].tolist(), side.judged[i, column].tolist(), strict=True)
            pairs |= {(group_of[row], video) for row, video in judged_pairs}
        device = self.tables.device
        first = torch.tensor([rows[0] for rows in groups], device=device)
        self.judged_vectors = normalize(self.tables.queries[first], dim=-1)  # (G, D)
        self.answer_groups, self.answer_videos = torch.tensor(sorted(pairs), device=device).unbind(1)  # (P,) each

    def forward(self, vectors: Tensor, scores: Sequence[Tensor], top: Tensor, own_group: Tensor) -> Tensor:
        """Compute the features (B, K, E).

        Args:
            vectors: (B, D) frozen query vectors.
            scores: z-scores (B, N), the recall's first.
            top: (B, K) recalled videos.
            own_group: (B,) group of the query, which the memory leaves out; -1: none.
        """
        columns = [matrix.gather(1, top) for matrix in scores]  # (B, K) each
        query_vectors = normalize(vectors @ self.whitening, dim=-1)  # (B, D)
        columns += [gather_dot(query_vectors, field, top) for field in self.whitened_videos()]
        columns += self.memory_columns(normalize(vectors, dim=-1), top, own_group)
        return torch.stack(columns, dim=-1)

    @property
    def names(self) -> list[str]:
        """Names of the columns after the scores: a cosine for each field, and the memories."""
        cosines = [f"cosine_{name}" for name in self.tables.fields]
        return cosines + [f"memory_{temperature}" for temperature in KERNELS]

    def whitened_videos(self) -> Tensor:
        """Return the whitened unit vectors of every field of every video, (F, N, D), computed once."""
        if self._whitened_videos is None:
            self._whitened_videos = normalize(self.tables.videos @ self.whitening, dim=-1)
        return self._whitened_videos

    def memory_columns(self, vectors: Tensor, top: Tensor, own_group: Tensor) -> list[Tensor]:
        """Compute, for each of KERNELS, the weight (B, K) of judged queries that have the recalled video as positive.

        Args:
            vectors: (B, D) unit query vectors.
            top: (B, K) videos.
            own_group: (B,) group to leave out, -1: none.
        """
        if not len(self.judged_vectors):
            return [torch.zeros_like(top, dtype=vectors.dtype) for _ in KERNELS]
        similarity = vectors @ self.judged_vectors.T  # (B, G)
        left_out = own_group.unsqueeze(1) == torch.arange(len(self.judged_vectors), device=own_group.device)
        columns = []
        for temperature in KERNELS:
            weights = (similarity / temperature).masked_fill(left_out, float("-inf")).softmax(1)  # (B, G)
            weights = weights.nan_to_num(0.0)  # all groups are left out
            share = weights.new_zeros(len(top), self.tables.videos.shape[1])
            share.index_add_(1, self.answer_videos, weights[:, self.answer_groups])  # (B, P) onto (B, N)
            columns.append(share.gather(1, top))
        return columns

    def get_extra_state(self) -> dict[str, Any]:
        """Return the memory."""
        return {key: getattr(self, name).cpu() for key, name in MEMORY_BUFFERS.items()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the memory."""
        for key, name in MEMORY_BUFFERS.items():
            setattr(self, name, state[key].to(self.whitening.device))

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ANN401 - torch's signature
        self._whitened_videos = None
        super()._load_from_state_dict(*args)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - torch's signature
        self._whitened_videos = None
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]


def gather_dot(vectors: Tensor, table: Tensor, top: Tensor) -> Tensor:
    """Compute the dot products (B, K) of vectors (B, D) with the rows `top` (B, K) of a table (N, D)."""
    step = max(1, MAX_GATHERED_NUMBERS // (top.shape[1] * table.shape[1]))
    chunks = zip(torch.split(vectors, step), torch.split(top, step), strict=True)
    return torch.cat([torch.einsum("bd,bkd->bk", vector_chunk, table[rows]) for vector_chunk, rows in chunks])
