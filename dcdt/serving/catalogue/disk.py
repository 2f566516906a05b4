"""A catalogue searched in LanceDB's table itself, read-only: nothing but what a question finds is held in memory.

For models that are two towers and no more. A snapshot of the rows found stands in for the whole catalogue, so that
scores, filters and reasons are computed by the code that serves from memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from dcdt.serving.catalogue.base import Catalogue, VectorQuery
from dcdt.serving.catalogue.filters import Condition
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.layout import Pointer
from dcdt.utils.errors import UserError


class DiskCatalogue(Catalogue):
    """The current build of a run, whose videos stay where they are.

    Args:
        run: the run's folder; it must have a build.

    Raises:
        UserError: the build is missing or of another run, or its model needs the whole catalogue in memory.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        if not self.manifest.is_searched:
            raise UserError(
                f"engine=lance searches vectors of videos or of passages alone; model={self.manifest.model} needs the "
                "whole catalogue in memory. Use engine=memory."
            )
        self._open(self.pointer, self._latest_version(self.pointer))

    @cached_property
    def snapshot(self) -> Snapshot:
        """A snapshot of no video."""
        return self._to_snapshot(self.table.lookup([]))

    def __len__(self) -> int:
        return self._n_videos

    def candidates(
        self, snapshot: Snapshot, query: Callable[[Snapshot], VectorQuery], k: int, where: Sequence[Condition]
    ) -> Snapshot:
        """The k videos nearest to the query's vector, among those that meet all conditions; more by their passages."""
        encoded = query(snapshot)
        n = k if encoded.column.startswith("vector_") else 4 * k  # a softmax may order them otherwise
        return self._to_snapshot(self.table.nearest(encoded.vector, n, where, encoded.column))

    def lookup(self, snapshot: Snapshot, ids: Sequence[str]) -> Snapshot:
        """The videos with these ids."""
        return self._to_snapshot(self.table.lookup(ids))

    def check_writable(self) -> None:
        """Refuse changes: others make them."""
        raise UserError("engine=lance reads the catalogue; change it by python -m dcdt.index, or by engine=memory.")

    def _open(self, pointer: Pointer, version: int) -> None:
        self.table.checkout(version)
        self._n_videos = len(self.table)
        self.pointer = replace(pointer, version=version)

    def _to_snapshot(self, rows: pa.Table) -> Snapshot:
        columns = [name for name in rows.column_names if not name.startswith("_")]
        return Snapshot.of(rows.select(columns).combine_chunks(), self.pointer.version)
