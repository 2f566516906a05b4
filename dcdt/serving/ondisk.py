"""Search in the LanceDB table itself: nothing but what a question finds is held in memory.

For models with one vector a video. A view of what was found stands in for the whole catalogue, so that scores, filters
and reasons are computed by the code that serves from memory.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdt.serving.filters import Condition
from dcdt.serving.lance import STAMPS
from dcdt.serving.layout import Pointer, read_pointer
from dcdt.serving.memory import Part, View
from dcdt.serving.opened import Opened
from dcdt.utils.errors import UserError


class TableStore(Opened):
    """The current build of a run, read-only, whose catalogue stays where it is.

    Args:
        run: the run's folder; it must have a build.

    Raises:
        UserError: the build is missing or of another run, or its model needs the whole catalogue in memory.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        if not self.manifest.is_searched:
            raise UserError(
                f"engine=lance searches one vector a video; model={self.manifest.model} needs the whole catalogue in "
                "memory. Use engine=memory."
            )
        self._open(self.pointer, self._latest(self.pointer))

    def __len__(self) -> int:
        return self._count

    @cached_property
    def view(self) -> View:
        """A view of no video."""
        return self._view(self.catalogue.lookup([]))

    def refresh(self) -> str:
        """Follow what other processes did: `same`, `changed` or `other`, as `Store.refresh`."""
        pointer = read_pointer(self.run)
        if pointer is None or pointer.build != self.pointer.build:
            return "other"
        version = self._latest(pointer)
        if version == self.pointer.version:
            return "same"
        self._open(pointer, version)
        return "changed"

    def near(self, vector: NDArray[np.float32], k: int, where: Sequence[Condition], column: str) -> View:
        """The k videos nearest to a vector (W,), among those for which all conditions hold."""
        return self._view(self.catalogue.nearest(vector, k, where, column))

    def lookup(self, ids: Sequence[str]) -> View:
        """The videos with these ids."""
        return self._view(self.catalogue.lookup(ids))

    def _latest(self, pointer: Pointer) -> int:
        """The version that counts: that of a shared table itself, or the one that the pointer names."""
        return self.catalogue.refresh() if self.manifest.catalogue else pointer.version

    def _open(self, pointer: Pointer, version: int) -> None:
        self.catalogue.at(version)
        self._count = len(self.catalogue)
        self.pointer = replace(pointer, version=version)

    def _view(self, found: pa.Table) -> View:
        kept = found.select([name for name in found.column_names if name not in STAMPS and not name.startswith("_")])
        main, fresh = Part.of(kept.combine_chunks()), Part.of(kept.slice(0, 0))
        return View(main, fresh, np.ones(len(main), dtype=bool), self.pointer.version)
