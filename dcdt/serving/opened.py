"""A run's current build, as every kind of store opens it."""

from functools import cached_property
from pathlib import Path

from dcdt.serving.lance import LanceIndex
from dcdt.serving.layout import CATALOGUE, FOLDER, Pointer, read_pointer
from dcdt.serving.manifest import read_manifest
from dcdt.utils.errors import UserError


class Opened:
    """Where a build lies and its manifest.

    Args:
        run: the run's folder; it must have a build.

    Raises:
        UserError: the build is missing, corrupt or of another run.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.pointer = self._pointer()
        self.manifest = read_manifest(run, self.pointer)

    @property
    def folder(self) -> Path:
        """Folder of the build."""
        return self.run / FOLDER / self.pointer.build

    @property
    def remedy(self) -> str:
        """What makes a broken build whole."""
        return f"Run: python -m dcdt.index {self.run} build"

    @cached_property
    def catalogue(self) -> LanceIndex:
        """The durable catalogue, opened when it is first needed."""
        return LanceIndex(self.manifest.catalogue or str(self.folder / CATALOGUE))

    def _pointer(self) -> Pointer:
        pointer = read_pointer(self.run)
        if pointer is None:
            raise UserError(f"{self.run} has no index yet. Run: python -m dcdt.index {self.run} build")
        return pointer
