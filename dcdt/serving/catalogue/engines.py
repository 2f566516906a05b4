"""Engines that search a catalogue, by the names that commands take."""

from pathlib import Path

from dcdt.serving.catalogue.base import Catalogue
from dcdt.serving.catalogue.disk import DiskCatalogue
from dcdt.serving.catalogue.memory import MemoryCatalogue
from dcdt.utils.errors import UserError

ENGINES: dict[str, type[DiskCatalogue | MemoryCatalogue]] = {"memory": MemoryCatalogue, "lance": DiskCatalogue}


def open_catalogue(run: Path, engine: str = "memory") -> Catalogue:
    """Open the catalogue of a run.

    Args:
        run: the run's folder; it must have a build.
        engine: `memory`, or `lance`, which searches the table itself and is read-only.

    Raises:
        UserError: there is no such engine, no build, or it does not fit.
    """
    if engine not in ENGINES:
        raise UserError(f"engine is {engine!r}; it must be {' or '.join(ENGINES)}.")
    return ENGINES[engine](run)
