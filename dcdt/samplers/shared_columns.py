"""The base class of samplers whose batches share their columns among all queries."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dcdt.data.tables import pad_lists
from dcdt.samplers.base import Sampler
from dcdt.samplers.pool import CPU, TrainingPool
from dcdt.utils.transfer import to_device


class SharedColumnSampler(Sampler):
    """Label every pair of (queries x columns); subclasses say which columns.

    A positive of the query is labelled 1 and has its weight in training. A video that may not be its negative (related
    at a lower grade, or with the text of a related one) has weight 0, everything else is a negative.

    Args:
        pool: pairs, candidates and forbidden negatives.
    """

    gather: bool = False  # whether the columns come from the rows of all processes

    def __init__(self, pool: TrainingPool) -> None:
        super().__init__(pool)
        positives: list[list[int]] = [[] for _ in pool.queries]
        positions = torch.searchsorted(pool.candidates, pool.pairs[:, 1].contiguous())
        for owner, position in zip(pool.owner.tolist(), positions.tolist(), strict=True):
            positives[owner].append(position)
        self._queries, self._candidates = pool.queries, pool.candidates
        self._positives, self._forbidden = pad_lists(positives, fill=len(pool.candidates)), pool.forbidden
        self._n_positives = torch.bincount(pool.owner, minlength=len(pool.queries))  # (U,) of each query, on the CPU
        weights = torch.split(pool.weigh(pool.pairs[pool.owner.argsort(stable=True)]), self._n_positives.tolist())
        self._weights = pad_sequence(list(weights), batch_first=True, padding_value=1.0)  # of the positives

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw no negatives, (R, 0)."""
        return torch.zeros(len(self.pairs), 0, dtype=torch.int64)

    def columns(self, rows: Tensor) -> Tensor:
        """Return the columns of a batch as ascending positions among the candidates, (C,)."""
        raise NotImplementedError

    def weigh(self, weight: Tensor, label: Tensor, columns: Tensor, size: int) -> Tensor:
        """Weigh each pair, (B, C), where the columns (C,), which are on the CPU, come from `size` rows.

        Subclasses correct for their sampling.
        """
        return weight

    def batch(self, rows: Tensor, global_rows: Tensor | None = None, device: torch.device = CPU) -> dict[str, Any]:
        """Make a batch on a device: rows of queries (B,) and columns (C,), label and weight of every pair, (B, C).

        Every process knows the rows of all, so gathering their columns sends nothing: each encodes them itself, and
        the mean of the processes' gradients is the gradient of the whole batch. The columns are computed on the CPU, so
        that nothing waits for the device; labels and weights are filled in there.
        """
        self._move_to(device)
        source_rows = global_rows if global_rows is not None and self.gather else rows
        columns = self.columns(source_rows)
        query, device_columns = to_device(rows[:, 0], device), to_device(columns, device)
        owner = torch.searchsorted(self._queries, query.contiguous())
        positive, forbidden = (
            find_columns(positions[owner], device_columns) for positions in (self._positives, self._forbidden)
        )
        cells = torch.zeros(len(rows), len(device_columns) + 1, device=device)  # the added column takes padding
        label = cells.scatter(1, positive, 1.0)[:, :-1]  # (B, C)
        weight = cells.fill_(1.0).scatter_(1, forbidden, 0.0).scatter_(1, positive, self._weights[owner])[:, :-1]
        return {
            "query": query,
            "columns": self._candidates[device_columns],
            "label": label,
            "weight": self.weigh(weight, label, columns, len(source_rows)),
            "n_positives": int(self._n_positives[torch.searchsorted(self.pool.queries, rows[:, 0].contiguous())].max()),
        }

    def _move_to(self, device: torch.device) -> None:
        """Move the lists to the device of the batches, once."""
        if self._queries.device != device:
            self._queries, self._candidates = self._queries.to(device), self._candidates.to(device)
            self._positives, self._forbidden = self._positives.to(device), self._forbidden.to(device)
            self._weights = self._weights.to(device)


def find_columns(positions: Tensor, columns: Tensor) -> Tensor:
    """Find the index of positions (B, F) in ascending columns (C,): (B, F), C where they are absent.

    The cost is B x F log C, whatever the size of the catalogue.
    """
    index = torch.searchsorted(columns, positions).clamp(max=len(columns) - 1)  # (B, F)
    return index.masked_fill(columns[index] != positions, len(columns))
