"""Rows of the videos that a model knew when it was exported, in the catalogue of today."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdt.serving.catalogue.snapshot import Snapshot


class RowPositions:
    """Rows of some videos, looked up once for each state of a catalogue.

    Args:
        ids: of M videos.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = pa.array(ids, pa.string())
        self._cached: tuple[Snapshot, NDArray[np.int64]] | None = None

    def rows(self, snapshot: Snapshot) -> NDArray[np.int64]:
        """Row of each video, (M,); -1 where it was removed. An edited video has the row of its last version."""
        cached = self._cached
        if cached is None or cached[0] is not snapshot:
            cached = self._cached = snapshot, snapshot.rows_of(self.ids)
        return cached[1]
