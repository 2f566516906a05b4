"""Text to vector, nothing else; and filling a cache with what is missing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dcdt.config import EmbedderConfig
from dcdt.data.embeddings import Space, VectorCache
from dcdt.embedders.models import local_space
from dcdt.errors import UserError


class Embedder(Protocol):
    """What every embedder offers."""

    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """(n, D) float32 vectors of n texts; `progress` is told the number of texts done after each batch."""


CHUNK = 4096  # texts a shard: what a kill can lose


def space_of(config: EmbedderConfig) -> Space:
    """The space an embedder writes to, known without loading its model."""
    return local_space(config)


def make_embedder(config: EmbedderConfig) -> Embedder:
    """The embedder of a configuration, its model loaded; torch is imported only where it is needed.

    Raises:
        UserError: it cannot run here.
    """
    if config.backend == "onnx":
        from dcdt.embedders.export import exported
        from dcdt.embedders.onnx import OnnxEmbedder

        return OnnxEmbedder(exported(config), config)
    from dcdt.embedders.local import LocalEmbedder

    return LocalEmbedder(config)


def fill(cache: VectorCache, texts: Sequence[str], config: EmbedderConfig, progress: bool = True) -> int:
    """Embed the texts that the cache lacks, a shard at a time.

    Returns:
        The number of texts embedded.

    Raises:
        UserError: the embedder cannot run here, or the folder cannot be written.
    """
    missing = cache.missing(texts)
    if not missing:
        return 0
    try:
        embedder = make_embedder(config)
    except UserError as error:
        raise UserError(f"{len(missing)} of {len(texts)} texts have no vector in {cache.folder}.\n{error}") from error
    columns = TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("", total=len(missing))
        for start in range(0, len(missing), CHUNK):
            part = missing[start : start + CHUNK]
            vectors = embedder.embed(part, progress=lambda done: bar.update(task, advance=done))
            try:
                cache.add(part, vectors)
            except OSError as error:
                raise UserError(
                    f"{Path(cache.folder)} cannot be written ({error.strerror}).\n"
                    "Free some space or name another folder: data.cache=FOLDER"
                ) from error
    return len(missing)
