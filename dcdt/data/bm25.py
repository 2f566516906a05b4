"""BM25 over inverted lists in numpy: one arithmetic for training, for drawing negatives and for a service.

The formulas are those of rank_bm25 and bm25s, in the order in which rank_bm25 computes them, so that its scores come
out to the bit. Nothing is precomputed that depends on the whole catalogue (document frequencies, mean length), so
adding, editing or deleting a video gives the scores that a rebuilt index would give.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Gains = NDArray[Any]  # fp64, or fp32 over many videos
Ints = NDArray[np.int64]
EMPTY_WORD = ""  # stands in a video without a word; no query holds it
EPSILON = 0.25  # of the mean weight, which rank_bm25's Okapi gives to words of more than half of the videos
CACHED_OCCURRENCES = 12  # for each video, whose gains are cached, so that a word of an earlier query costs an addition
CACHED_WORD = 100  # occurrences' worth of memory that a cached word takes beside them


@dataclass(frozen=True)
class Formula:
    """One variant of BM25.

    Attributes:
        weight: of a word that `df` of N videos hold.
        gain: of a word with that weight that occurs `tf` (n,) times in texts of the relative lengths
            `1 - b + b l / mean` (n,), with k1 and delta: (n,).
        absent: what a word of weight 1 adds where it does not occur, of k1 and delta.
        delta: unless configured.
    """

    weight: Callable[[int, int], float]
    gain: Callable[[Any, Gains, Gains, float, float], Gains]
    absent: Callable[[float, float], float] = lambda k1, delta: 0.0
    delta: float = 0.0


def _classic(weight: Any, tf: Gains, length: Gains, k1: float, delta: float) -> Gains:  # noqa: ANN401 - a numpy scalar
    gains: Gains = weight * (tf * (k1 + 1) / (tf + k1 * length))
    return gains


def _saturation(weight: Any, tf: Gains, length: Gains, k1: float, delta: float) -> Gains:  # noqa: ANN401
    gains: Gains = weight * (tf / (tf + k1 * length))
    return gains


def _plus(weight: Any, tf: Gains, length: Gains, k1: float, delta: float) -> Gains:  # noqa: ANN401
    gains: Gains = weight * (delta + (tf * (k1 + 1)) / (k1 * length + tf))
    return gains


def _long(weight: Any, tf: Gains, length: Gains, k1: float, delta: float) -> Gains:  # noqa: ANN401
    relative = tf / length
    gains: Gains = weight * tf * (k1 + 1) * (relative + delta) / (k1 + relative + delta)
    return gains


def _long_of_bm25s(weight: Any, tf: Gains, length: Gains, k1: float, delta: float) -> Gains:  # noqa: ANN401
    return _long(weight, tf, length, k1, delta) / tf


FORMULAS: dict[tuple[str, str], Formula] = {  # of (backend, variant)
    ("rank_bm25", "okapi"): Formula(lambda df, n: math.log(n - df + 0.5) - math.log(df + 0.5), _classic),
    ("rank_bm25", "l"): Formula(lambda df, n: math.log(n + 1) - math.log(df + 0.5), _long, delta=0.5),
    ("rank_bm25", "plus"): Formula(lambda df, n: math.log((n + 1) / df), _plus, lambda k1, d: d, 1.0),
    ("bm25s", "okapi"): Formula(lambda df, n: math.log(max((n - df + 0.5) / (df + 0.5), 1)), _saturation),
    ("bm25s", "l"): Formula(
        lambda df, n: math.log((n + 1) / (df + 0.5)), _long_of_bm25s, lambda k1, d: (k1 + 1) * d / (k1 + d), 0.5
    ),
    ("bm25s", "plus"): Formula(lambda df, n: math.log((n + 1) / df), _plus, lambda k1, d: d, 1.0),
    ("bm25s", "lucene"): Formula(lambda df, n: math.log(1 + (n - df + 0.5) / (df + 0.5)), _saturation),
    ("bm25s", "atire"): Formula(lambda df, n: math.log(n / df), _classic),
}


@dataclass(frozen=True)
class Postings:
    """Inverted lists of some consecutive videos.

    Attributes:
        number: of each word.
        starts: (V + 1,) where the list of each word begins.
        rows: (P,) videos that hold the word, ascending.
        counts: (P,) how often.
        lengths: (N,) words of each video.
    """

    number: dict[str, int]
    starts: Ints
    rows: NDArray[np.int32]
    counts: NDArray[np.float32]
    lengths: Floats

    @staticmethod
    def of(words: pa.ChunkedArray | pa.Array | Sequence[Sequence[str]]) -> "Postings":
        """Invert the word lists of N videos."""
        if not isinstance(words, pa.ChunkedArray | pa.Array):
            words = pa.array(words, pa.list_(pa.string()))
        lists = words.combine_chunks() if isinstance(words, pa.ChunkedArray) else words
        lengths = np.diff(_int32(lists.offsets)).astype(np.int64)
        coded = pc.list_flatten(lists).dictionary_encode()
        coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
        vocabulary = coded.dictionary.to_pylist()
        size = max(len(lengths), 1)
        keys = _int32(coded.indices).astype(np.int64) * size + np.repeat(np.arange(len(lengths)), lengths)
        keys, counts = np.unique(keys, return_counts=True)
        starts = np.searchsorted(keys, np.arange(len(vocabulary) + 1) * size)
        number = {word: at for at, word in enumerate(vocabulary)}
        return Postings(
            number, starts, (keys % size).astype(np.int32), counts.astype(np.float32), lengths.astype(float)
        )

    def occurrences(self, word: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Videos that hold a word, and how often; a word that none holds gives nothing."""
        at = self.number.get(word)
        if at is None:
            return self.rows[:0], self.counts[:0]
        part = slice(self.starts[at], self.starts[at + 1])
        return self.rows[part], self.counts[part]


class Contribution(NamedTuple):
    """What a word adds: `gains` (n,) to the videos `rows` (n,) that hold it, `absent` to each other, `total` to all."""

    rows: Ints
    gains: Gains
    absent: float
    total: float


class BM25Index:
    """BM25 of words against all videos that are alive.

    Args:
        backend: whose definition of the variant, `rank_bm25` or `bm25s`.
        variant: one of FORMULAS.
        k1: saturation of a word's count.
        b: how much the length of a text counts.
        delta: of the variants l and plus; None: the backend's.
        parts: inverted lists of consecutive runs of videos: the catalogue as built, and what came since.
        alive: (N,) false for videos that were deleted or replaced; None: all are there.
        dtype: of the scores. Over many videos their time is that of the memory they pass through, and fp32 halves it.
    """

    def __init__(
        self,
        backend: str,
        variant: str,
        k1: float,
        b: float,
        delta: float | None,
        parts: Sequence[Postings],
        alive: NDArray[np.bool_] | None = None,
        dtype: type[np.floating] = np.float64,
    ) -> None:
        self.formula, self.k1 = FORMULAS[backend, variant], k1
        self.delta = self.formula.delta if delta is None else delta
        self.is_floored = (backend, variant) == ("rank_bm25", "okapi")
        lengths = np.concatenate([part.lengths for part in parts])
        self.alive = np.ones(len(lengths), dtype=bool) if alive is None else alive
        self.parts, self.n, self.dtype = list(parts), int(self.alive.sum()), dtype
        mean = lengths[self.alive].mean() if self.n else 1.0
        self.length = (1 - b + b * lengths / mean).astype(dtype)  # (N,)
        self.offsets = np.cumsum([0, *(len(part.lengths) for part in self.parts)])
        self._cache: dict[str, Contribution] = {}
        self._cached = 0  # occurrences' worth of memory

    @cached_property
    def floor(self) -> float:
        """What a word of more than half of the videos weighs in rank_bm25's Okapi: a quarter of the mean weight."""
        counts: dict[str, int] = {}
        for part, offset in zip(self.parts, self.offsets, strict=False):
            alive = self.alive[offset : offset + len(part.lengths)][part.rows]
            n_alive = np.diff(np.concatenate([[0], np.cumsum(alive)])[part.starts])
            for word, at in part.number.items():
                counts[word] = counts.get(word, 0) + int(n_alive[at])
        weight_of = {df: self.formula.weight(df, self.n) for df in set(counts.values()) - {0}}
        weights = [weight_of[df] for df in counts.values() if df]
        return EPSILON * (float(np.cumsum(weights)[-1]) / len(weights)) if weights else 0.0  # summed word by word

    def holds(self, word: str) -> bool:
        """Whether a video that is alive holds the word."""
        return word != EMPTY_WORD and len(self._occurrences(word)[0]) > 0

    def score(self, words: Sequence[str]) -> Gains:
        """Scores of all videos, (N,); those that are not alive mean nothing. A word that stands twice counts twice."""
        scores = np.zeros(len(self.length), dtype=self.dtype)
        for word in words:
            rows, gains, absent, _ = self.contribution(word)
            changed = scores[rows] + gains
            if absent:
                scores += self.dtype(absent)
            scores[rows] = changed
        return scores

    def mean(self, words: Sequence[str]) -> float:
        """Mean of the scores of the videos that are alive."""
        return sum(self.contribution(word).total for word in words) / max(self.n, 1)

    def contribution(self, word: str) -> Contribution:
        """What a word adds; cached."""
        cached = self._cache.get(word)
        if cached is None:
            cached = self._contribution(word)
            if self._cached > CACHED_OCCURRENCES * len(self.length) + 1000 * CACHED_WORD:
                self._cache, self._cached = {}, 0
            self._cache[word] = cached
            self._cached += len(cached.rows) + CACHED_WORD
        return cached

    def _contribution(self, word: str) -> Contribution:
        rows, counts = self._occurrences(word)
        if not len(rows) or word == EMPTY_WORD:
            return Contribution(rows[:0], np.zeros(0, dtype=self.dtype), 0.0, 0.0)
        weight = self.formula.weight(len(rows), self.n)
        if self.is_floored and weight < 0:
            weight = self.floor
        tf, length = counts.astype(self.dtype), self.length[rows]
        gains = self.formula.gain(self.dtype(weight), tf, length, self.k1, self.delta)
        absent = weight * self.formula.absent(self.k1, self.delta)
        total = float(gains.sum(dtype=np.float64)) + absent * (self.n - len(rows))
        return Contribution(rows, gains, absent, total)

    def _occurrences(self, word: str) -> tuple[Ints, NDArray[np.float32]]:
        lists = [part.occurrences(word) for part in self.parts]
        if self.n == len(self.alive) and len(lists) == 1:  # as built
            return lists[0][0].astype(np.int64), lists[0][1]
        rows = np.concatenate([part.astype(np.int64) + at for (part, _), at in zip(lists, self.offsets, strict=False)])
        counts = np.concatenate([part for _, part in lists])
        keep = self.alive[rows]
        return (rows, counts) if keep.all() else (rows[keep], counts[keep])


def _int32(array: pa.Array) -> NDArray[np.int32]:
    """Numbers without nulls as numpy; pyarrow's own conversion imports pandas for a second where it is installed."""
    if not len(array):
        return np.zeros(0, dtype=np.int32)
    return np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array)]
