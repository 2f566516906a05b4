"""The frozen embedding tables of a collection, as tensors on the device that trains."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcdt.data.gather import HALVES, Gather

BLOCK = 16_384  # vectors that are read, and those of half precision that are worked on in fp32, at a time


class Tables:
    """Frozen vectors in one precision (`trainer.embedding_dtype`).

    They are no part of any module, so that nothing moves them but `to`: Lightning takes a model to the CPU after every
    fit, validation and test, and DDP would send its buffers to every process before each step.

    Attributes:
        queries: (Q, D) one row a query of the collection; zeros where nobody asks.
        videos: (F, N, D) one layer a field, one row a video.
        frozen: (N, D) title and text vectors summed and normalised, whatever the fields: what zero-shot ranks by, and
            what hard negatives and the pair file are drawn with, so that these do not change with the model.
    """

    def __init__(self, queries: Tensor, videos: Tensor, frozen: Tensor, fields: Sequence[str]) -> None:
        self.queries, self.videos = queries, videos
        single = frozen.dtype not in HALVES  # a table of half precision is of length 1 already: it is not copied
        self.frozen = nn.functional.normalize(frozen, dim=-1) if single else frozen
        self.fields = list(fields)
        self._gather_queries, self._gather_videos = Gather(), Gather()

    @property
    def device(self) -> torch.device:
        """Where the vectors lie: where everything that reads them is computed."""
        return self.videos.device

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Tables":
        """Move the vectors to a device or precision for good, before any model is made of them; returns itself."""
        tables = (self.queries, self.videos, self.frozen)
        self.queries, self.videos, self.frozen = (part.to(device=device, dtype=dtype) for part in tables)
        return self

    def query_rows(self, rows: Tensor) -> Tensor:
        """Vectors (R, D) of the queries of these rows (R,), until the next call."""
        return self._gather_queries(self.queries.unsqueeze(0), rows)[0]

    def video_rows(self, rows: Tensor) -> Tensor:
        """Field vectors (F, R, D) of the videos of these rows (R,), until the next call."""
        return self._gather_videos(self.videos, rows)

    def of(self, fields: Sequence[str]) -> "Tables":
        """The same vectors with these of the fields, in this order."""
        if list(fields) == self.fields:
            return self
        at = [self.fields.index(name) for name in fields]
        return Tables(self.queries, self.videos[at], self.frozen, fields)

    @property
    def width(self) -> int:
        """D, the input width of every model."""
        return self.queries.shape[-1]


def padded(lists: Sequence[Sequence[float]], fill: float) -> Tensor:
    """Lists of different lengths as one (n, longest) tensor, filled up with `fill`, of the type of `fill`."""
    width = max((len(part) for part in lists), default=0)
    rows = [[*part, *[fill] * (width - len(part))] for part in lists]
    return torch.tensor(rows, dtype=torch.int64 if isinstance(fill, int) else torch.float32).reshape(len(lists), width)
