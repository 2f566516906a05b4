"""The frozen embedding tables of a collection, as tensors on the device that trains."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcdt.data.gather import Gather
from dcdt.data.token_table import TokenTable
from dcdt.data.transcripts import TRANSCRIPT
from dcdt.utils.precision import HALF_DTYPES, at_least_float32

BLOCK = 16_384  # vectors read, or converted to fp32, at a time


@dataclass
class PassageVectors:
    """The frozen vectors of the passages of all videos, a ragged table.

    Attributes:
        vectors: (P, D), those of a video side by side, each video with at least one.
        video: (P,) row of the video of each passage, on the same device.
        offsets: N + 1 numbers, the first passage of each video, and P.
    """

    vectors: Tensor
    video: Tensor
    offsets: list[int]

    @staticmethod
    def of(vectors: Tensor, offsets: Sequence[int]) -> "PassageVectors":
        """Make the table of vectors (P, D) whose videos begin at `offsets` (N + 1,)."""
        counts = torch.tensor(offsets).diff()
        return PassageVectors(vectors, torch.arange(len(counts)).repeat_interleave(counts), list(offsets))

    def rows_of(self, video: int) -> slice:
        """Return the rows of a video's passages."""
        return slice(self.offsets[video], self.offsets[video + 1])

    def blocks(self, max_rows: int) -> Iterator[tuple[slice, slice]]:
        """Divide the catalogue into consecutive videos with at most `max_rows` passages, or one video with more.

        Returns:
            The rows of the videos and those of their passages, of each block.
        """
        first, n = 0, len(self.offsets) - 1
        while first < n:
            end = max(first + 1, bisect_right(self.offsets, self.offsets[first] + max_rows) - 1)
            yield slice(first, end), slice(self.offsets[first], self.offsets[end])
            first = end


class Tables:
    """Frozen vectors in one precision (`trainer.embedding_dtype`).

    They belong to no module, so that only `to` moves them: Lightning moves a model to the CPU after every fit,
    validation and test, and DDP would send its buffers to every process before each step.

    Attributes:
        queries: (Q, D) one row a query of the collection; zeros without questions.
        videos: (F, N, D) one layer a field, one row a video.
        frozen: (N, D) title and text vectors summed and normalised, whatever the fields: zero-shot ranks by
            them, and hard negatives and the pair file are drawn with them, so that these do not depend on the model.
        passages: of the transcripts, whose layer of `videos` is the direction of the mean of a video's; None where
            they are not read one by one.
        digest: hash of the cached vectors of queries, titles and texts, or None.
        tokens: of all texts, for a model that trains the encoder, or None.
        images: of questions and pictures, in the space of another embedder, or None.
    """

    def __init__(
        self,
        queries: Tensor,
        videos: Tensor,
        frozen: Tensor,
        fields: Sequence[str],
        passages: PassageVectors | None = None,
    ) -> None:
        self.queries, self.videos = queries, videos
        is_half = frozen.dtype in HALF_DTYPES  # a table of half precision is normalised already, and not copied
        self.frozen = frozen if is_half else nn.functional.normalize(frozen, dim=-1)
        self.fields = list(fields)
        self.passages = passages
        self.digest: str | None = None
        self.tokens: TokenTable | None = None
        self.images: Tables | None = None
        self._gather_queries, self._gather_videos = Gather(), Gather()

    @property
    def device(self) -> torch.device:
        """The device of the vectors."""
        return self.videos.device

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> "Tables":
        """Move the vectors to a device or precision in place, before any model is made of them; returns itself."""
        tables = (self.queries, self.videos, self.frozen)
        self.queries, self.videos, self.frozen = (table.to(device=device, dtype=dtype) for table in tables)
        if self.passages is not None:
            self.passages.vectors = self.passages.vectors.to(device=device, dtype=dtype)
            self.passages.video = self.passages.video.to(device=device)
        if self.tokens is not None:
            self.tokens.to(device)
        return self

    def query_rows(self, rows: Tensor) -> Tensor:
        """Gather the vectors (R, D) of query rows (R,); valid until the next call."""
        return self._gather_queries(self.queries.unsqueeze(0), rows)[0]

    def video_rows(self, rows: Tensor | None) -> Tensor:
        """Gather the field vectors (F, R, D) of video rows (R,), or of all; valid until the next call."""
        return self._gather_videos(self.videos, rows)

    def passage_rows(self, rows: slice | Tensor) -> Tensor:
        """Gather the field vectors of passages (R,), each with the other fields of its video: (F, R, D) in fp32."""
        assert self.passages is not None
        fields = at_least_float32(self.videos[:, self.passages.video[rows]])  # (F, R, D), a copy
        fields[self.fields.index(TRANSCRIPT)] = self.passages.vectors[rows]
        return fields

    def select_fields(self, fields: Sequence[str]) -> "Tables":
        """Return tables with some of the fields, in this order."""
        if list(fields) == self.fields:
            return self
        layers = torch.stack([self.videos[self.fields.index(name)] for name in fields])
        tables = Tables(self.queries, layers, self.frozen, fields, self.passages if TRANSCRIPT in fields else None)
        tables.tokens, tables.images = self.tokens, self.images
        return tables

    @property
    def width(self) -> int:
        """D, the input width of every model."""
        return self.queries.shape[-1]


def pad_lists(lists: Sequence[Sequence[float]], fill: float) -> Tensor:
    """Pad lists of different lengths with `fill` to one tensor (n, longest), of the type of `fill`."""
    width = max((len(values) for values in lists), default=0)
    rows = [[*values, *[fill] * (width - len(values))] for values in lists]
    return torch.tensor(rows, dtype=torch.int64 if isinstance(fill, int) else torch.float32).reshape(len(lists), width)
