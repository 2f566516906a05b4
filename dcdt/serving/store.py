"""The catalogue of an exported run: the durable one, the one in memory, and how they stay together.

LanceDB holds the truth, one version a change. The snapshot beside it is what a process maps at its start, so that
answering needs no LanceDB; for a small catalogue it is written again at every change. A change counts once current.json
names its version, and readers only ever look there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dcdt.serving.arrow import positions
from dcdt.serving.layout import FOLDER, Pointer, read_pointer, write_pointer, writing
from dcdt.serving.memory import MemoryIndex, View
from dcdt.serving.opened import Opened
from dcdt.utils.errors import UserError

SNAPSHOT_ROWS = 50_000  # videos up to which the snapshot follows every change
TIDY_EVERY = 50  # changes after which small files are merged


class Store(Opened):
    """The current build of a run.

    Args:
        run: the run's folder; it must have a build.

    Raises:
        UserError: the build is missing, corrupt or of another run.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self.memory = self._load(self.pointer)

    def __len__(self) -> int:
        return len(self.view)

    @property
    def view(self) -> View:
        """The current state of the catalogue."""
        return self.memory.state

    def refresh(self) -> str:
        """Follow what other processes did.

        Returns:
            `same`, `changed` (the catalogue) or `other` (another build or run: open a new Store).

        Raises:
            UserError: what is there cannot be read; the state in memory stays as it was.
        """
        pointer = read_pointer(self.run)
        if pointer is None or pointer.build != self.pointer.build:
            return "other"
        if pointer.version == self.pointer.version:
            return "same"
        if pointer.snapshot > self.memory.version:
            self.memory = self._load(pointer)
        else:
            self._follow(self.memory, pointer.version)
        self.pointer = pointer
        return "changed"

    def add(self, videos: pa.Table) -> None:
        """Add new videos for good. Raises UserError where an id exists or nothing can be written."""
        self._change(lambda: self.catalogue.add(videos))

    def update(self, videos: pa.Table) -> None:
        """Put these videos in the place of those with the same ids, for good."""
        self._change(lambda: self.catalogue.update(videos))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove videos for good."""
        self._change(lambda: self.catalogue.delete(ids))

    def _change(self, action: Callable[[], None]) -> None:
        """One change: commit to the catalogue, follow it in memory, write the snapshot, then move the pointer.

        What was committed but never pointed to (a kill, a full disk) is taken back before the next change.
        """
        with writing(self.run):
            pointer = self._pointer()
            if pointer.build != self.pointer.build:
                raise UserError(f"{self.run} was built anew in the meantime; nothing was changed. Try again.")
            if self.catalogue.refresh() != pointer.version:
                self.catalogue.restore(pointer.version)
            action()
            version = self.catalogue.refresh()
            if version % TIDY_EVERY == 0:
                self.catalogue.tidy()
                version = self.catalogue.refresh()
            memory = self._load(pointer).copy()  # what is in use stays as it is until the pointer has moved
            self._follow(memory, version)
            snapshot = pointer.snapshot
            if len(memory) <= SNAPSHOT_ROWS:
                snapshot = version
                memory.save(self.folder, Pointer("", version, version).snapshot_name)
            new = Pointer(pointer.build, version, snapshot)
            write_pointer(self.run, new)
            self.pointer, self.memory = new, memory
            self._drop_old({pointer.snapshot_name, new.snapshot_name})

    def _load(self, pointer: Pointer) -> MemoryIndex:
        """The memory at a pointer: its snapshot and, where that is older, what the catalogue says came since."""
        if self.__dict__.get("memory") is not None and self.memory.version == pointer.version:
            return self.memory
        memory = MemoryIndex()
        memory.load(self.run / FOLDER / pointer.build, pointer.snapshot_name)
        self._follow(memory, pointer.version)
        return memory

    def _follow(self, memory: MemoryIndex, version: int) -> None:
        """Bring a memory to a version of the catalogue."""
        if memory.version == version:
            return
        self.catalogue.at(version)
        changed = one_each(self.catalogue.rows(since=memory.version).drop_columns(["changed"]))
        gone: set[str] = set()
        if len(memory) + len(memory.unknown(changed["id"].to_pylist())) != len(self.catalogue):
            view = memory.state
            held = set(view.table["id"].filter(pa.array(view.alive)).to_pylist())
            gone = held - set(self.catalogue.rows(columns=["id"])["id"].to_pylist())
        memory.apply(changed, sorted(gone), version)
        self.catalogue.refresh()

    def _drop_old(self, kept: set[str]) -> None:
        for path in self.folder.glob("snapshot-*.arrow"):
            if path.name not in kept:
                path.unlink(missing_ok=True)


def one_each(videos: pa.Table) -> pa.Table:
    """The last row of each id: two machines may have added one at once, until the later one gives it up."""
    last = {name: row for row, name in enumerate(videos["id"].to_pylist())}
    return videos if len(last) == len(videos) else videos.take(positions(np.array(sorted(last.values()))))
