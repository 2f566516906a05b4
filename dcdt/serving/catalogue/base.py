"""The interface of a catalogue: its current build, a snapshot to score, and a way to follow changes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdt.serving.catalogue.filters import Condition
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.catalogue.video_table import VideoTable
from dcdt.serving.layout import CATALOGUE, FOLDER, Pointer, read_pointer
from dcdt.serving.manifest import read_manifest
from dcdt.utils.errors import UserError
from dcdt.utils.shell import shell_command


class VectorQuery(Protocol):
    """A query of a model with one vector a video, or a passage."""

    column: str
    vector: NDArray[np.float32]


class Catalogue(ABC):
    """The videos of a run's current build; LanceDB's table is the truth.

    Args:
        run: the run's folder; it must have a build.

    Raises:
        UserError: the build is missing, corrupt or of another run.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.pointer = self._read_pointer()
        self.manifest = read_manifest(run, self.pointer)

    @property
    def folder(self) -> Path:
        """Folder of the build."""
        return self.run / FOLDER / self.pointer.build

    @property
    def remedy(self) -> str:
        """The command that replaces a broken build."""
        return f"Run: {shell_command('index', self.run, 'build')}"

    @property
    def is_shared(self) -> bool:
        """Whether the table has an address of its own, so that its latest version counts and not the pointer's."""
        return self.manifest.catalogue is not None

    @cached_property
    def table(self) -> VideoTable:
        """The durable table, opened when it is first needed."""
        return VideoTable(self.manifest.catalogue or str(self.folder / CATALOGUE))

    @property
    @abstractmethod
    def snapshot(self) -> Snapshot:
        """The current state in memory."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of videos."""

    @abstractmethod
    def candidates(
        self, snapshot: Snapshot, query: Callable[[Snapshot], VectorQuery], k: int, where: Sequence[Condition]
    ) -> Snapshot:
        """A snapshot that holds the best k videos that meet all conditions.

        Args:
            snapshot: the state that the answer goes by.
            query: encodes the question over a snapshot.
            k: how many.
            where: conditions.
        """

    @abstractmethod
    def lookup(self, snapshot: Snapshot, ids: Sequence[str]) -> Snapshot:
        """A snapshot that holds the videos with these ids, as far as they exist."""

    def refresh(self) -> str:
        """Follow what other processes did.

        Returns:
            `same`, `changed` (the videos) or `other` (another build or run: open a new catalogue).

        Raises:
            UserError: the new state cannot be read; the state in memory stays as it was.
        """
        pointer = read_pointer(self.run)
        if pointer is None or pointer.build != self.pointer.build:
            return "other"
        version = self._latest_version(pointer)
        if version == self.pointer.version:
            return "same"
        self._open(pointer, version)
        return "changed"

    @abstractmethod
    def check_writable(self) -> None:
        """Raise UserError where this catalogue is read-only."""

    def add(self, videos: pa.Table) -> None:
        """Add new videos durably. Raises UserError where an id exists or nothing can be written."""
        self.check_writable()

    def update(self, videos: pa.Table) -> None:
        """Replace videos durably. Raises UserError where an id is unknown or nothing can be written."""
        self.check_writable()

    def delete(self, ids: Sequence[str]) -> None:
        """Remove videos durably. Raises UserError where an id is unknown or nothing can be written."""
        self.check_writable()

    @abstractmethod
    def _open(self, pointer: Pointer, version: int) -> None:
        """Go to a version of a build."""

    def _latest_version(self, pointer: Pointer) -> int:
        return self.table.refresh() if self.is_shared else pointer.version

    def _read_pointer(self) -> Pointer:
        pointer = read_pointer(self.run)
        if pointer is None:
            raise UserError(f"{self.run} has no index yet. {self.remedy}")
        return pointer
