"""Gather rows of a large table into reused memory."""

import torch
from torch import Tensor

from dcdt.utils.precision import HALF_DTYPES, at_least_float32, autocasts

MIN_BUFFER_NUMBERS = 2**20  # smaller results are allocated anew: 4 MB of fp32


class Gather:
    """Gather rows into a buffer that the next call reuses.

    A new buffer of tens of megabytes comes from the system page by page, each filled with zeros first, which takes
    several times as long as the copying. So a result is valid until the next call only.
    """

    def __init__(self) -> None:
        self._buffers: dict[torch.dtype, Tensor] = {}

    def __call__(self, table: Tensor, rows: Tensor | None) -> Tensor:
        """Gather rows (R,), or all, of every layer of a table (F, N, D): (F, R, D), in fp32 if it is of half precision.

        On a GPU with autocast the precision stays that of the table, since autocast casts it anyway.
        """
        half = table.dtype in HALF_DTYPES
        layers, _, width = table.shape
        if rows is None or table.device.type != "cpu" or layers * len(rows) * width < MIN_BUFFER_NUMBERS:
            vectors = table if rows is None else table[:, rows]
            return vectors if autocasts(table.device) else at_least_float32(vectors)
        vectors = self._buffer(table.dtype, layers, len(rows), width)
        for layer, out in zip(table, vectors, strict=True):
            torch.index_select(layer, 0, rows, out=out)
        return self._buffer(torch.float32, layers, len(rows), width).copy_(vectors) if half else vectors

    def _buffer(self, dtype: torch.dtype, layers: int, n: int, width: int) -> Tensor:
        """Return a buffer (F, R, D); when it has to grow, it grows by a quarter more."""
        size = layers * n * width
        if dtype not in self._buffers or self._buffers[dtype].numel() < size:
            self._buffers[dtype] = torch.empty(size * 5 // 4, dtype=dtype)
        return self._buffers[dtype][:size].view(layers, n, width)
