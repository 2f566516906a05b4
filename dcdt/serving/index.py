"""What a search engine of the service is: one small interface that both engines have.

`MemoryIndex` (memory.py) searches in process: exactly below a size, through faiss above it. `LanceIndex` (lance.py) is
the durable, versioned catalogue, which many processes can read at once and which can also be searched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdt.serving.arrow import numbers
from dcdt.serving.filters import Condition

Matrix = NDArray[np.float32] | NDArray[np.float16]
SAMPLE, FEW = 8192, 16  # scores that are looked at to guess how high the best ones are, and how many of them at least


@dataclass(frozen=True)
class Hits:
    """What one query found: ids and scores (n,), the best first."""

    ids: list[str]
    scores: NDArray[np.float32]


class Index(Protocol):
    """A catalogue of videos that can be searched by vector.

    Videos are Arrow tables (`dcdt.serving.videos`) with a fixed-size list column for each vector. Every change is one
    version: a reader sees it whole or not at all.
    """

    @property
    def version(self) -> int:
        """Rises with every change."""
        ...

    def __len__(self) -> int:
        """Number of videos."""
        ...

    def build(self, videos: pa.Table) -> None:
        """Start from these videos, and make the approximate index where there are many."""
        ...

    def add(self, videos: pa.Table) -> None:
        """Add new videos. Raises UserError where an id exists."""
        ...

    def update(self, videos: pa.Table) -> None:
        """Put these videos in the place of those with the same ids. Raises UserError where an id is unknown."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Remove videos. Raises UserError where an id is unknown."""
        ...

    def search(
        self, vector: NDArray[np.float32], k: int, where: Sequence[Condition] = (), column: str = "vector_0"
    ) -> Hits:
        """The k videos with the largest inner product with a vector (W,), among those for which all conditions hold."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load` reads, whole or not at all."""
        ...

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote. Raises UserError where it is missing or corrupt."""
        ...


def vectors_of(table: pa.Table, column: str) -> Matrix:
    """A vector column as a matrix (n, W), without a copy where it is in one piece."""
    array = table[column].combine_chunks() if isinstance(table[column], pa.ChunkedArray) else table[column]
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return numbers(array.flatten()).reshape(len(array), array.type.list_size)


def vector_column(matrix: Matrix) -> pa.FixedSizeListArray:
    """A matrix (n, W) as a vector column."""
    flat = np.ascontiguousarray(matrix).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), matrix.shape[1])


def best(scores: NDArray[np.floating], order: NDArray[np.int64] | None, k: int) -> NDArray[np.int64]:
    """Positions of the k largest scores (n,), of equals the first in `order` (n,) or as given; never one of -inf."""
    least = _likely(scores, k)
    above = np.flatnonzero(scores > least)
    level = np.flatnonzero(scores == least) if len(above) < k and least > -np.inf else above[:0]
    if len(above) + len(level) < k:  # the sample said too much, or nothing
        above, level = np.flatnonzero(scores > -np.inf), above[:0]
    if len(above) > k:
        found = scores[above]
        last = np.partition(found, len(above) - k)[len(above) - k]
        above, level = above[found > last], above[found == last]
    more = k - len(above)
    if order is not None and 0 < more < len(level):  # of many equals, as where no word is found, few are sorted
        level = level[np.argpartition(order[level], more - 1)]
    rows = np.concatenate([above, level[:more]])
    first: NDArray[np.int64] = rows[np.lexsort((rows if order is None else order[rows], -scores[rows]))]
    return first


def _likely(scores: NDArray[np.floating], k: int) -> float:
    """A score that about k reach, or somewhat more: of many scores what a sample says, of few -inf."""
    step = len(scores) // SAMPLE
    if step <= 1:
        return -np.inf
    sample = scores[::step]
    wanted = min(len(sample), 2 * k // step + FEW)
    return float(np.partition(sample, len(sample) - wanted)[len(sample) - wanted])
