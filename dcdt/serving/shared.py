"""A catalogue that several machines share: the table at an address that all of them reach, a copy of RUN on each.

The table's own latest version is what counts; there is no pointer beside it. Each machine keeps the towers, the
embedder and a snapshot to start from, and follows the table from there.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from dcdt.serving.lance import STAMPS
from dcdt.serving.layout import Pointer, read_pointer, write_pointer, writing
from dcdt.serving.memory import MemoryIndex
from dcdt.serving.store import SNAPSHOT_ROWS, TIDY_EVERY, Store
from dcdt.utils.errors import UserError


class SharedStore(Store):
    """The current build of a run whose catalogue lies at an address."""

    def refresh(self) -> str:
        """Follow what other processes and machines did: `same`, `changed` or `other`, as `Store.refresh`."""
        pointer = read_pointer(self.run)
        if pointer is None or pointer.build != self.pointer.build:
            return "other"
        version = self.catalogue.refresh()
        if version == self.memory.version:
            return "same"
        self._follow(self.memory, version)
        self.pointer = replace(self.pointer, version=version)
        return "changed"

    def _change(self, action: Callable[[], None]) -> None:
        """One change: the table's commit. The snapshot on this machine follows, for the next start."""
        with writing(self.run):
            self.catalogue.refresh()
            action()
            version = self.catalogue.refresh()
            if version % TIDY_EVERY == 0:
                with suppress(UserError):  # another machine may be at it; the change itself stands
                    self.catalogue.tidy()
                version = self.catalogue.refresh()
            memory = self.memory.copy()
            self._follow(memory, version)
            before, snapshot = self.pointer, self.pointer.snapshot
            if len(memory) <= SNAPSHOT_ROWS:
                snapshot = version
                memory.save(self.folder, Pointer("", version, version).snapshot_name)
            self.pointer, self.memory = Pointer(before.build, version, snapshot), memory
            write_pointer(self.run, self.pointer)
            self._drop_old({before.snapshot_name, self.pointer.snapshot_name})

    def _load(self, pointer: Pointer) -> MemoryIndex:
        """The snapshot on this machine, and what the table says came since."""
        memory = MemoryIndex()
        memory.load(self.folder, pointer.snapshot_name)
        version = self.catalogue.refresh()
        self._follow(memory, version)
        self.pointer = replace(pointer, version=version)
        return memory

    def _follow(self, memory: MemoryIndex, version: int) -> None:
        """Bring a memory to a version of the table.

        A row whose writer died before it stamped it again is missed by its stamp, and found by the number of videos.
        """
        super()._follow(memory, version)
        self.catalogue.at(version)
        if len(memory) != len(self.catalogue):
            view = memory.state
            held = set(view.table["id"].filter(view.alive.tolist()).to_pylist())
            missed = set(self.catalogue.rows(columns=["id"])["id"].to_pylist()) - held
            memory.apply(self.catalogue.lookup(sorted(missed)).drop_columns(list(STAMPS)), [], version)
        self.catalogue.refresh()
