"""A catalogue searched in memory: a snapshot that follows LanceDB's table.

The snapshot's file is what a process maps at its start, so that answering needs no LanceDB; for a small catalogue it is
written again at every change. A change of a build's own table counts once current.json names its version; that of a
shared table (another process's or machine's, or an object store's) counts when it is committed, and the snapshot on
this machine follows.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dcdt.serving.catalogue.base import Catalogue, VectorQuery
from dcdt.serving.catalogue.filters import Condition
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.layout import FOLDER, Pointer, check_files, exclusive_lock, write_checksums, write_pointer
from dcdt.utils.errors import UserError

SNAPSHOT_ROWS = 50_000  # videos up to which the snapshot's file follows every change
OPTIMIZE_EVERY = 50  # changes after which small files are merged


class MemoryCatalogue(Catalogue):
    """The current build of a run, held in memory.

    Args:
        run: the run's folder; it must have a build.

    Raises:
        UserError: the build is missing, corrupt or of another run.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self._snapshot: Snapshot | None = None
        self._open(self.pointer, self._latest_version(self.pointer))

    @property
    def snapshot(self) -> Snapshot:
        """The current state."""
        assert self._snapshot is not None
        return self._snapshot

    def __len__(self) -> int:
        return len(self.snapshot)

    def candidates(
        self, snapshot: Snapshot, query: Callable[[Snapshot], VectorQuery], k: int, where: Sequence[Condition]
    ) -> Snapshot:
        """All videos."""
        return snapshot

    def lookup(self, snapshot: Snapshot, ids: Sequence[str]) -> Snapshot:
        """All videos."""
        return snapshot

    def check_writable(self) -> None:
        """It can be changed."""

    def add(self, videos: pa.Table) -> None:
        """Add new videos durably. Raises UserError where an id exists or nothing can be written."""
        self._change(lambda: self.table.add(videos))

    def update(self, videos: pa.Table) -> None:
        """Replace videos durably. Raises UserError where an id is unknown or nothing can be written."""
        self._change(lambda: self.table.update(videos))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove videos durably. Raises UserError where an id is unknown or nothing can be written."""
        self._change(lambda: self.table.delete(ids))

    def _change(self, action: Callable[[], None]) -> None:
        """Commit to the table, follow it in memory, write the snapshot, then move the pointer.

        What was committed to a build's own table but never pointed to (a kill, a full disk) is taken back before the
        next change.
        """
        with exclusive_lock(self.run):
            pointer = self._read_pointer()
            if pointer.build != self.pointer.build:
                raise UserError(f"{self.run} was built anew in the meantime; nothing was changed. Try again.")
            if self.table.refresh() != pointer.version and not self.is_shared:
                self.table.restore(pointer.version)
            action()
            version = self.table.refresh()
            if version % OPTIMIZE_EVERY == 0:
                with suppress(UserError):  # another machine may be at it; the change itself stands
                    self.table.optimize()
                version = self.table.refresh()
            snapshot = self._read(pointer, version)
            new = replace(pointer, version=version)
            if len(snapshot) <= SNAPSHOT_ROWS:
                new = replace(new, snapshot=version)
                snapshot.save(self.folder / new.snapshot_name)
                write_checksums(self.folder)
            write_pointer(self.run, new)
            self.pointer, self._snapshot = new, snapshot
            for path in self.folder.glob("snapshot-*.arrow"):
                if path.name not in (pointer.snapshot_name, new.snapshot_name):
                    path.unlink(missing_ok=True)

    def _open(self, pointer: Pointer, version: int) -> None:
        self._snapshot = self._read(pointer, version)
        self.pointer = replace(pointer, version=version)

    def _read(self, pointer: Pointer, version: int) -> Snapshot:
        """The state at a version: that in memory or the file's, whichever is newer, and what changed since."""
        snapshot = self._snapshot
        if snapshot is None or not pointer.snapshot <= snapshot.version <= version:
            folder = self.run / FOLDER / pointer.build
            check_files(folder, lambda name: name == pointer.snapshot_name)
            snapshot = Snapshot.load(folder / pointer.snapshot_name)
        if snapshot.version == version:
            return snapshot
        self.table.checkout(version)
        changed = self.table.rows(since=snapshot.version)
        n_new = int(np.count_nonzero(snapshot.rows_of(changed["id"].to_pylist()) < 0))
        removed = []
        if len(snapshot) + n_new != len(self.table):
            ids = snapshot.ids()
            present = pc.is_in(ids, value_set=self.table.rows(columns=["id"])["id"])
            removed = ids.filter(pc.invert(present)).to_pylist()
        self.table.refresh()
        return snapshot.apply(changed, removed, version)
