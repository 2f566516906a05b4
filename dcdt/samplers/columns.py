"""Columns that all queries of a batch share: what samplers without negatives of their own have in common."""

import torch
from torch import Tensor

from dcdt.data.tables import padded
from dcdt.samplers.base import Sampler
from dcdt.samplers.pool import TrainingPool


class ColumnSampler(Sampler):
    """Labels every cell of (queries x columns); subclasses say which columns.

    A positive of the query is labelled 1. A video that may not be its negative (related at a lower grade, or with
    the text of a related one) weighs 0, everything else is a negative.

    Args:
        pool: pairs, candidates and what is forbidden.
    """

    gather: bool = False  # whether the columns are those of the rows that all processes took together

    def __init__(self, pool: TrainingPool) -> None:
        super().__init__(pool)
        lists: list[list[int]] = [[] for _ in pool.queries]
        places = torch.searchsorted(pool.candidates, pool.pairs[:, 1].contiguous())
        for owner, place in zip(pool.owner.tolist(), places.tolist(), strict=True):
            lists[owner].append(place)
        self._queries, self._candidates = pool.queries, pool.candidates
        self._positives, self._forbidden = padded(lists, fill=len(pool.candidates)), pool.forbidden

    def draw(self, generator: torch.Generator) -> Tensor:
        """No negatives of their own, (R, 0)."""
        return torch.zeros(len(self.pairs), 0, dtype=torch.int64)

    def columns(self, rows: Tensor) -> Tensor:
        """Positions among the candidates of the videos that stand in the columns of a batch, (C,)."""
        raise NotImplementedError

    def weigh(self, weight: Tensor, label: Tensor, columns: Tensor, size: int) -> Tensor:
        """What each cell counts, (B, C), where `size` rows gave the columns; subclasses correct for their sampling."""
        return weight

    def batch(self, rows: Tensor, whole: Tensor | None = None) -> dict[str, Tensor]:
        """Row numbers of queries (B,) and columns (C,), with label and weight of every cell, (B, C).

        Every process knows the rows of all, so gathering their columns sends nothing: each encodes them itself, and
        the mean of the processes' gradients is the gradient of the whole batch.
        """
        self._follow(rows.device)
        seen = whole if whole is not None and self.gather else rows
        columns = self.columns(seen)
        owner = torch.searchsorted(self._queries, rows[:, 0].contiguous())
        label = self._marked(self._positives[owner])[:, columns].float()
        forbidden = self._marked(self._forbidden[owner])[:, columns]
        weight = (~forbidden | (label > 0)).float()
        return {
            "query": rows[:, 0],
            "columns": self._candidates[columns],
            "label": label,
            "weight": self.weigh(weight, label, columns, len(seen)),
        }

    def _marked(self, places: Tensor) -> Tensor:
        """True at these positions (B, F), padded with C, of all candidates, (B, C)."""
        marked = torch.zeros(len(places), len(self._candidates) + 1, dtype=torch.bool, device=places.device)
        return marked.scatter_(1, places, True)[:, :-1]

    def _follow(self, device: torch.device) -> None:
        """Move the lists to where the batches are, once."""
        if self._queries.device != device:
            self._queries, self._candidates = self._queries.to(device), self._candidates.to(device)
            self._positives, self._forbidden = self._positives.to(device), self._forbidden.to(device)
