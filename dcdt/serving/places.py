"""Where videos that a model knew when it was exported stand in the catalogue of today."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcdt.serving.arrow import numbers
from dcdt.serving.memory import View


class Places:
    """Rows of some videos, looked up once for each state of a catalogue.

    Args:
        ids: of M videos.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = pa.array(ids, pa.string())
        self._known: tuple[View, NDArray[np.int64]] | None = None

    def rows(self, view: View) -> NDArray[np.int64]:
        """Row of each video, (M,); -1 where it is gone. An edited video stands where it stands now."""
        known = self._known
        if known is None or known[0] is not view:
            alive = np.flatnonzero(view.alive)
            held = pc.index_in(view.table["id"], value_set=self.ids)
            place = numbers(held.fill_null(pa.scalar(-1, pa.int32())))[alive]
            rows = np.full(len(self.ids), -1, dtype=np.int64)
            rows[place[place >= 0]] = alive[place >= 0]
            known = view, rows
            self._known = known
        return known[1]
