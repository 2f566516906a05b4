"""What the rank head reads of a query and the videos recalled for it, beside their vectors."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dcdt.data.datamodule import SideTensors
from dcdt.data.tables import Tables
from dcdt.data.types import Collection
from dcdt.models.whitening import catalogue_whitening

KERNELS = (0.05, 0.1)  # temperatures by which a judged query counts as similar
MAX_GATHERED_NUMBERS = 2**22  # numbers gathered at a time: 16 MB of fp32, which the cache of a CPU can nearly hold


class Evidence(nn.Module):
    """Numbers (B, K, E) of B queries and K recalled videos each: scores, one cosine a field, and a memory.

    The scores are z-scores over the query's candidates, first the recall's own, then those of its parts. The cosines
    are between the query and each field of the video, whitened as in `dcdt_ridge`. The memory says how likely the
    video answered what was asked: judged queries weigh `softmax(cosine / temperature)` by their frozen vectors
    (Nadaraya-Watson, a column for each of KERNELS), and a video collects the weights of those it was a positive of.
    Queries with the text of the query itself are left out.

    Args:
        tables: the frozen vectors.
        whiten: soft or none.
    """

    whitening: Tensor
    asked: Tensor
    owner: Tensor
    answers: Tensor

    def __init__(self, tables: Tables, whiten: str) -> None:
        super().__init__()
        self.tables, self.whiten = tables, whiten
        self.register_buffer("whitening", torch.eye(tables.width))
        for name, empty in (("asked", torch.zeros(0, tables.width)), ("owner", _no_rows()), ("answers", _no_rows())):
            self.register_buffer(name, empty, persistent=False)  # as large as the judgments: in the extra state
        self._shown: Tensor | None = None

    def prepare(self, collection: Collection, sides: Sequence[SideTensors], groups: Sequence[Sequence[int]]) -> None:
        """Whiten by the candidates, and remember what answered the queries of the sides.

        Args:
            collection: the grade of a positive.
            sides: whose judgments are remembered.
            groups: their query rows, those of equal text together; position i is group i.
        """
        self._shown = None
        if self.whiten == "soft":
            self.whitening = catalogue_whitening(
                self.tables.videos, torch.stack([side.candidates for side in sides]).any(0)
            )
        group_of = {row: at for at, rows in enumerate(groups) for row in rows}
        pairs = set()
        for side in sides:
            positive = (side.judged >= 0) & (side.grades >= collection.positive_grade)  # (n, J)
            at, column = positive.nonzero(as_tuple=True)
            found = zip(side.queries[at].tolist(), side.judged[at, column].tolist(), strict=True)
            pairs |= {(group_of[row], video) for row, video in found}
        device = self.tables.device
        first = torch.tensor([rows[0] for rows in groups], device=device)
        self.asked = normalize(self.tables.queries[first], dim=-1)  # (G, D)
        self.owner, self.answers = torch.tensor(sorted(pairs), device=device).unbind(1)  # (P,) group and video of each

    def forward(self, vectors: Tensor, scores: Sequence[Tensor], top: Tensor, own: Tensor) -> Tensor:
        """The evidence (B, K, E).

        Args:
            vectors: (B, D) frozen query vectors.
            scores: z-scores (B, N), the recall's first.
            top: (B, K) recalled videos.
            own: (B,) group of the query, which the memory leaves out; -1: none of them.
        """
        columns = [found.gather(1, top) for found in scores]  # (B, K) each
        asked = normalize(vectors @ self.whitening, dim=-1)  # (B, D)
        columns += [gather_dot(asked, field, top) for field in self.shown()]
        columns += self.remembered(normalize(vectors, dim=-1), top, own)
        return torch.stack(columns, dim=-1)

    @property
    def names(self) -> list[str]:
        """The columns after the scores: a cosine for each field, and the memories."""
        cosines = [f"cosine_{name}" for name in self.tables.fields]
        return cosines + [f"memory_{temperature}" for temperature in KERNELS]

    def shown(self) -> Tensor:
        """Whitened unit vectors of every field of every video, (F, N, D), computed once."""
        if self._shown is None:
            self._shown = normalize(self.tables.videos @ self.whitening, dim=-1)
        return self._shown

    def remembered(self, vectors: Tensor, top: Tensor, own: Tensor) -> list[Tensor]:
        """For each of KERNELS, the share (B, K) of similar judged queries that each recalled video answered.

        Args:
            vectors: (B, D) unit query vectors.
            top: (B, K) videos.
            own: (B,) group that is left out, -1: none.
        """
        if not len(self.asked):
            return [torch.zeros_like(top, dtype=vectors.dtype) for _ in KERNELS]
        alike = vectors @ self.asked.T  # (B, G)
        left_out = own.unsqueeze(1) == torch.arange(len(self.asked), device=own.device)
        found = []
        for temperature in KERNELS:
            weights = (alike / temperature).masked_fill(left_out, float("-inf")).softmax(1)  # (B, G)
            weights = weights.nan_to_num(0.0)  # of a query that is all there is
            share = weights.new_zeros(len(top), self.tables.videos.shape[1])
            share.index_add_(1, self.answers, weights[:, self.owner])  # (B, P) onto (B, N)
            found.append(share.gather(1, top))
        return found

    def get_extra_state(self) -> dict[str, Any]:
        """The memory."""
        return {name: getattr(self, name).cpu() for name in ("asked", "owner", "answers")}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore the memory."""
        for name, value in state.items():
            setattr(self, name, value.to(self.whitening.device))

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ANN401 - torch's signature
        self._shown = None
        super()._load_from_state_dict(*args)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - torch's signature
        self._shown = None
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]


def gather_dot(vectors: Tensor, table: Tensor, top: Tensor) -> Tensor:
    """Dot products (B, K) of vectors (B, D) with the rows `top` (B, K) of a table (N, D)."""
    step = max(1, MAX_GATHERED_NUMBERS // (top.shape[1] * table.shape[1]))
    parts = zip(torch.split(vectors, step), torch.split(top, step), strict=True)
    return torch.cat([torch.einsum("bd,bkd->bk", asked, table[rows]) for asked, rows in parts])


def _no_rows() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)
