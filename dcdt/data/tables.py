"""The frozen embedding tables of a collection, as tensors on the device that trains."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcdt.data.gather import Gather
from dcdt.utils.precision import HALF_DTYPES

BLOCK = 16_384  # vectors read, or converted to fp32, at a time


class Tables:
    """Frozen vectors in one precision (`trainer.embedding_dtype`).

    They belong to no module, so that only `to` moves them: Lightning moves a model to the CPU after every fit,
    validation and test, and DDP would send its buffers to every process before each step.

    Attributes:
        queries: (Q, D) one row a query of the collection; zeros without questions.
        videos: (F, N, D) one layer a field, one row a video.
        frozen: (N, D) title and text vectors summed and normalised, whatever the fields: zero-shot ranks by
            them, and hard negatives and the pair file are drawn with them, so that these do not depend on the model.
    """

    def __init__(self, queries: Tensor, videos: Tensor, frozen: Tensor, fields: Sequence[str]) -> None:
        self.queries, self.videos = queries, videos
        is_half = frozen.dtype in HALF_DTYPES  # a table of half precision is normalised already, and not copied
        self.frozen = frozen if is_half else nn.functional.normalize(frozen, dim=-1)
        self.fields = list(fields)
        self._gather_queries, self._gather_videos = Gather(), Gather()

    @property
    def device(self) -> torch.device:
        """The device of the vectors."""
        return self.videos.device

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Tables":
        """Move the vectors to a device or precision in place, before any model is made of them; returns itself."""
        tables = (self.queries, self.videos, self.frozen)
        self.queries, self.videos, self.frozen = (table.to(device=device, dtype=dtype) for table in tables)
        return self

    def query_rows(self, rows: Tensor) -> Tensor:
        """Gather the vectors (R, D) of query rows (R,); valid until the next call."""
        return self._gather_queries(self.queries.unsqueeze(0), rows)[0]

    def video_rows(self, rows: Tensor) -> Tensor:
        """Gather the field vectors (F, R, D) of video rows (R,); valid until the next call."""
        return self._gather_videos(self.videos, rows)

    def select_fields(self, fields: Sequence[str]) -> "Tables":
        """Return tables with some of the fields, in this order."""
        if list(fields) == self.fields:
            return self
        layers = [self.fields.index(name) for name in fields]
        return Tables(self.queries, self.videos[layers], self.frozen, fields)

    @property
    def width(self) -> int:
        """D, the input width of every model."""
        return self.queries.shape[-1]


def pad_lists(lists: Sequence[Sequence[float]], fill: float) -> Tensor:
    """Pad lists of different lengths with `fill` to one tensor (n, longest), of the type of `fill`."""
    width = max((len(values) for values in lists), default=0)
    rows = [[*values, *[fill] * (width - len(values))] for values in lists]
    return torch.tensor(rows, dtype=torch.int64 if isinstance(fill, int) else torch.float32).reshape(len(lists), width)
