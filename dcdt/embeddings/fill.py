"""Fill a cache with missing vectors by any embedder, with an estimate and a progress bar."""

import contextlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field

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

from dcdt.embeddings.cache import VectorCache, invalid_vectors
from dcdt.embeddings.claims import Claims
from dcdt.embeddings.config import EmbedderConfig
from dcdt.embeddings.cost_estimate import forecast, format_forecast
from dcdt.embeddings.providers import Embedder, make_embedder
from dcdt.embeddings.shards import MIN_SHARDS_TO_MERGE
from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

INVALID = "a vector that is zero, not finite or not of length 1"
CLAIMED_TEXTS = 4096  # at a time; more take long to lock
log = logging.getLogger("dcdt")


@dataclass
class FillResult:
    """The result of filling a cache.

    Attributes:
        texts: number of distinct texts.
        embedded: of these, embedded now.
        shortened: of these, cut to the token limit.
        tokens: counted by the server, if there is one.
        refused: texts that the server refused, or that got no valid vector, with the reason.
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

    Processes that fill one cache leave each other the texts that they are embedding, so that none is paid for twice;
    one that has nothing else to do waits for them.

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
    _check_disk_space(cache, len(missing))
    try:
        _embed(cache, missing, embedder, done, progress)
    finally:
        done.shortened, done.tokens = embedder.shortened, embedder.tokens
        done.refused += embedder.refused
    if progress:
        _print_result(done, config)
    if done.refused:
        text, reason = done.refused[0]
        raise UserError(
            f"no vector for {len(done.refused)} of {len(missing)} texts, "
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
            if len(texts) > 1 and (vectors == vectors[0]).all():
                constant.append(texts)
            bad = invalid_vectors(vectors, cache.space)[0]
            if bad.any() and (done.embedded or not bad.all()):  # else nothing is right, and going on would be paid for
                done.refused += [(text, INVALID) for text, is_bad in zip(texts, bad, strict=True) if is_bad]
                texts = [text for text, is_bad in zip(texts, bad, strict=True) if not is_bad]
                vectors = vectors[~bad]
            cache.add(texts, vectors)
            done.embedded += len(texts)
            if len(cache.shards) % MIN_SHARDS_TO_MERGE == 0:
                cache.merge()

        def advance(n: int) -> None:
            bar.update(task, advance=n)

        constant: list[list[str]] = []  # texts of each request with one vector for all
        with contextlib.closing(Claims(cache.folder, len(missing))) as claims:
            while missing:
                later: list[str] = []
                for start in range(0, len(missing), CLAIMED_TEXTS):
                    with claims.take(missing[start : start + CLAIMED_TEXTS]) as (free, others):
                        cache.refresh()
                        texts = cache.missing(free)
                        advance(len(free) - len(texts))
                        embedder.embed_each(texts, store, advance)
                    later += others
                if later:
                    log.warning("%s in %s; waiting for %d of them", claims.owner(), cache.folder, len(later))
                    claims.wait(later[0])
                missing = later
    cache.merge()
    if constant:
        counted = sum(map(len, constant)), one_line(constant[0][0])
        log.warning(
            "%d requests gave one vector for all their texts (%d, as '%s'); see the model", len(constant), *counted
        )


def _print_estimate(cache: VectorCache, texts: int, missing: Sequence[str], config: EmbedderConfig) -> None:
    kind = "texts" if config.name != "clip" else "texts and pictures"
    message = f"{texts:,} distinct {kind}: {texts - len(missing):,} cached, {len(missing):,} to embed"
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


class _Rate(ProgressColumn):
    """A progress column: texts a second."""

    def render(self, task: Task) -> Text:
        """Return the rate, empty until there is one."""
        return Text(f"{task.speed:,.1f} texts/s" if task.speed else "")
