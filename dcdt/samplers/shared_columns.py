"""Columns that all queries of a batch share: what samplers without negatives of their own have in common."""

from typing import Any

import torch
from torch import Tensor

from dcdt.data.tables import pad_lists
from dcdt.samplers.base import Sampler
from dcdt.samplers.pool import CPU, TrainingPool
from dcdt.utils.transfer import to_device


class SharedColumnSampler(Sampler):
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
        self._positives, self._forbidden = pad_lists(lists, fill=len(pool.candidates)), pool.forbidden

        self._n_positives = torch.bincount(pool.owner, minlength=len(pool.queries))  # (U,) of each query, on the CPU

    def draw(self, generator: torch.Generator) -> Tensor:
        """No negatives of their own, (R, 0)."""
        return torch.zeros(len(self.pairs), 0, dtype=torch.int64)

    def columns(self, rows: Tensor) -> Tensor:
        """Positions among the candidates of the videos that stand in the columns of a batch, (C,), ascending."""
        raise NotImplementedError

    def weigh(self, weight: Tensor, label: Tensor, columns: Tensor, size: int) -> Tensor:
        """What each cell counts, (B, C), where `size` rows gave the columns (C,), which are on the CPU.

        Subclasses correct for their sampling.
        """
        return weight

    def batch(self, rows: Tensor, whole: Tensor | None = None, device: torch.device = CPU) -> dict[str, Any]:
        """Row numbers of queries (B,) and columns (C,), with label and weight of every cell, (B, C), on the device.

        Every process knows the rows of all, so gathering their columns sends nothing: each encodes them itself, and
        the mean of the processes' gradients is the gradient of the whole batch. Which columns there are is found on
        the CPU, where nobody has to wait for it; their cells are filled on the device.
        """
        self._follow(device)
        seen = whole if whole is not None and self.gather else rows
        columns = self.columns(seen)
        query, shown = to_device(rows[:, 0], device), to_device(columns, device)
        owner = torch.searchsorted(self._queries, query.contiguous())
        positive, forbidden = (find_columns(places[owner], shown) for places in (self._positives, self._forbidden))
        cells = torch.zeros(len(rows), len(shown) + 1, device=device)  # the added column takes what stands in none
        label = cells.scatter(1, positive, 1.0)[:, :-1]  # (B, C)
        weight = cells.fill_(1.0).scatter_(1, forbidden, 0.0).scatter_(1, positive, 1.0)[:, :-1]
        return {
            "query": query,
            "columns": self._candidates[shown],
            "label": label,
            "weight": self.weigh(weight, label, columns, len(seen)),
            "n_positives": int(self._n_positives[torch.searchsorted(self.pool.queries, rows[:, 0].contiguous())].max()),
        }

    def _follow(self, device: torch.device) -> None:
        """Move the lists to where the batches are, once."""
        if self._queries.device != device:
            self._queries, self._candidates = self._queries.to(device), self._candidates.to(device)
            self._positives, self._forbidden = self._positives.to(device), self._forbidden.to(device)


def find_columns(places: Tensor, columns: Tensor) -> Tensor:
    """In which of the columns (C,), which ascend, these positions (B, F) stand: (B, F), C where in none.

    The work is B x F log C, whatever the size of the catalogue.
    """
    at = torch.searchsorted(columns, places).clamp(max=len(columns) - 1)  # (B, F)
    return at.masked_fill(columns[at] != places, len(columns))
