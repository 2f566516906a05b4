"""Fill a cache with missing vectors by any embedder, with an estimate and a progress bar."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dcdt.embeddings.cache import VectorCache
from dcdt.embeddings.config import EmbedderConfig
from dcdt.embeddings.cost_estimate import forecast, format_forecast
from dcdt.embeddings.providers import Embedder, make_embedder
from dcdt.embeddings.shards import MIN_SHARDS_TO_MERGE
from dcdt.utils.errors import UserError
from dcdt.utils.lock import lock_path
from dcdt.utils.text import one_line

log = logging.getLogger("dcdt")


@dataclass
class FillResult:
    """The result of filling a cache.

    Attributes:
        texts: number of distinct texts.
        embedded: of these, embedded now.
        shortened: of these, cut to the token limit.
        tokens: counted by the server, if there is one.
        refused: texts that the server refused, with its reason.
    """

    texts: int
    embedded: int = 0
    shortened: int = 0
    tokens: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)


def fill(
    cache: VectorCache, texts: Sequence[str], config: EmbedderConfig, progress: bool = True, dry_run: bool = False
) -> FillResult:
    """Embed the texts that the cache lacks; vectors are stored as soon as they are computed.

    Two processes that fill one cache take turns, so that no text is paid for twice.

    Args:
        cache: to fill.
        texts: to embed; they may repeat.
        config: of the embedder.
        progress: whether to print the estimate, a progress bar and the result.
        dry_run: stop after the estimate; nothing is written.

    Raises:
        UserError: the embedder cannot run here, a text is refused, or the folder cannot be written. Vectors
            stored until then are kept.
    """
    done = FillResult(len(set(texts)))
    missing = cache.missing(texts)
    if dry_run or (missing and progress):
        _print_estimate(cache, done.texts, missing, config)
    if not missing or dry_run:
        return done
    try:
        embedder = make_embedder(config)
    except UserError as error:
        raise UserError(f"{len(missing)} of {done.texts} texts have no vector in {cache.folder}: {error}") from error
    cache.prepare()
    with _lock_folder(cache.folder):
        cache.refresh()
        missing = cache.missing(missing)
        _check_disk_space(cache, len(missing))
        try:
            _embed(cache, missing, embedder, done, progress)
        finally:
            done.shortened, done.tokens, done.refused = embedder.shortened, embedder.tokens, embedder.refused
    if progress:
        _print_result(done, config)
    if done.refused:
        text, reason = done.refused[0]
        raise UserError(
            f"the server refuses {len(done.refused)} of {len(missing)} texts, "
            f"the first with {reason}: '{one_line(text)}'.\n"
            f"The other {done.embedded} are stored. Change or remove these texts, then run the same command again."
        )
    return done


def _embed(cache: VectorCache, missing: Sequence[str], embedder: Embedder, done: FillResult, progress: bool) -> None:
    columns = (
        TextColumn("embedding"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not progress) as bar:
        task = bar.add_task("", total=len(missing))

        def store(texts: list[str], vectors: NDArray[np.float32]) -> None:
            cache.add(texts, vectors)
            done.embedded += len(texts)
            if len(cache.shards) % MIN_SHARDS_TO_MERGE == 0:
                cache.merge()

        embedder.embed_each(missing, store, lambda n: bar.update(task, advance=n))
    cache.merge()


def _print_estimate(cache: VectorCache, texts: int, missing: Sequence[str], config: EmbedderConfig) -> None:
    message = f"{texts:,} distinct texts: {texts - len(missing):,} cached, {len(missing):,} to embed"
    if missing:
        gibibytes = len(missing) * cache.space.dimensions * 2 / 2**30
        message += f"; {format_forecast(config, len(missing), forecast(config, missing), gibibytes)}"
    print(message, flush=True)  # noqa: T201 - output of the commands


def _print_result(done: FillResult, config: EmbedderConfig) -> None:
    if done.tokens:
        print(f"the server counted {done.tokens:,} tokens")  # noqa: T201
    if done.shortened:
        print(f"{done.shortened:,} texts were longer than the model reads and were cut")  # noqa: T201


def _check_disk_space(cache: VectorCache, texts: int) -> None:
    needed, free = texts * cache.space.dimensions * 2, shutil.disk_usage(cache.folder).free
    if needed > free:
        raise UserError(
            f"{cache.folder}: {texts:,} vectors need {needed / 2**20:,.0f} MiB; {free / 2**20:,.0f} MiB are free.\n"
            "Free some space or name another folder: data.cache=FOLDER. Nothing was embedded."
        )


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes that fill it. The lock ends with its process, however that ends."""
    path = folder / ".filling"
    path.touch()
    descriptor = lock_path(path, lambda: log.warning("another process fills %s; waiting for it", folder))
    try:
        yield
    finally:
        if descriptor is not None:  # without locks two processes may embed a text twice, and nothing worse
            os.close(descriptor)


class _Rate(ProgressColumn):
    """A progress column: texts a second."""

    def render(self, task: Task) -> Text:
        """Return the rate, empty until there is one."""
        return Text(f"{task.speed:,.1f} texts/s" if task.speed else "")
