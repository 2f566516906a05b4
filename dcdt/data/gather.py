"""Rows of a large table as the vectors of a batch."""

import torch
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
MIN_BUFFER_NUMBERS = 2**20  # numbers below which memory is taken anew: 4 MB of fp32


def single(vectors: Tensor) -> Tensor:
    """Vectors of half precision in fp32, others as they are."""
    return vectors.float() if vectors.dtype in HALVES else vectors


class Gather:
    """Gathers rows into memory that the next call uses again.

    Memory of tens of megabytes that is taken anew comes from the system page by page, each filled with zeros first,
    which takes several times as long as the copying. So what a call returns holds until the next one.
    """

    def __init__(self) -> None:
        self._room: dict[torch.dtype, Tensor] = {}

    def __call__(self, table: Tensor, rows: Tensor) -> Tensor:
        """Rows (R,) of every layer of a table (F, N, D): (F, R, D), in fp32 where the table is of half precision.

        On a GPU with autocast the precision stays that of the table: what reads it casts it anyway.
        """
        half = table.dtype in HALVES
        layers, _, width = table.shape
        if table.device.type != "cpu" or layers * len(rows) * width < MIN_BUFFER_NUMBERS:
            found = table[:, rows]
            cast = table.device.type == "cuda" and torch.is_autocast_enabled("cuda")
            return found.float() if half and not cast else found
        found = self._take(table.dtype, layers, len(rows), width)
        for layer, part in zip(table, found, strict=True):
            torch.index_select(layer, 0, rows, out=part)
        return self._take(torch.float32, layers, len(rows), width).copy_(found) if half else found

    def _take(self, dtype: torch.dtype, layers: int, n: int, width: int) -> Tensor:
        """Room for (F, R, D) numbers, a quarter more than are asked for when it has to grow."""
        size = layers * n * width
        if dtype not in self._room or self._room[dtype].numel() < size:
            self._room[dtype] = torch.empty(size * 5 // 4, dtype=dtype)
        return self._room[dtype][:size].view(layers, n, width)
