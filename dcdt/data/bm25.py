"""BM25 over an inverted index in numpy, for training, for drawing negatives and for serving.

The formulas are those of rank_bm25 and bm25s, in the order in which rank_bm25 computes them, so that the scores are
bit-equal. Nothing is precomputed that depends on the whole catalogue (document frequencies, mean length), so adding,
editing or deleting a video gives the scores of a rebuilt index.
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
EMPTY_WORD = ""  # of a video without words; no query has it
EPSILON = 0.25  # of the mean weight, which rank_bm25's Okapi gives to words of more than half of the videos
CACHED_OCCURRENCES = 12  # a video, on average, whose gains are cached for later queries
CACHED_WORD = 100  # memory of a cached word beside its occurrences, in occurrences


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
    """The inverted index of some consecutive videos.

    Attributes:
        number: of each word.
        starts: (V + 1,) offset of the list of each word.
        rows: (P,) videos with the word, ascending.
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
        number = {token: i for i, token in enumerate(vocabulary)}
        return Postings(
            number, starts, (keys % size).astype(np.int32), counts.astype(np.float32), lengths.astype(float)
        )

    def occurrences(self, word: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Return the videos with a word, and how often they have it; both empty for an unknown word."""
        index = self.number.get(word)
        if index is None:
            return self.rows[:0], self.counts[:0]
        span = slice(self.starts[index], self.starts[index + 1])
        return self.rows[span], self.counts[span]


class Contribution(NamedTuple):
    """Scores of a word: `gains` (n,) of the videos `rows` (n,) with it, `absent` of each other, `total` of all."""

    rows: Ints
    gains: Gains
    absent: float
    total: float


class BM25Index:
    """BM25 of words against all videos that are present.

    Args:
        backend: that defines the variant, `rank_bm25` or `bm25s`.
        variant: one of FORMULAS.
        k1: saturation of a word's count.
        b: weight of the length of a text.
        delta: of the variants l and plus; None: the backend's.
        segments: inverted indexes of consecutive videos: the catalogue as built, and later additions.
        present: (N,) false for videos that were deleted or replaced; None: all are present.
        dtype: of the scores; over many videos fp32 halves the time, which is that of reading memory.
    """

    def __init__(
        self,
        backend: str,
        variant: str,
        k1: float,
        b: float,
        delta: float | None,
        segments: Sequence[Postings],
        present: NDArray[np.bool_] | None = None,
        dtype: type[np.floating] = np.float64,
    ) -> None:
        self.formula, self.k1 = FORMULAS[backend, variant], k1
        self.delta = self.formula.delta if delta is None else delta
        self.is_floored = (backend, variant) == ("rank_bm25", "okapi")
        lengths = np.concatenate([postings.lengths for postings in segments])
        self.present = np.ones(len(lengths), dtype=bool) if present is None else present
        self.segments, self.n, self.dtype = list(segments), int(self.present.sum()), dtype
        mean = lengths[self.present].mean() if self.n else 1.0
        self.length = (1 - b + b * lengths / mean).astype(dtype)  # (N,)
        self.offsets = np.cumsum([0, *(len(postings.lengths) for postings in self.segments)])
        self._cache: dict[str, Contribution] = {}
        self._cached = 0  # memory, in occurrences

    @cached_property
    def floor(self) -> float:
        """Weight in rank_bm25's Okapi of a word of more than half of the videos: a quarter of the mean weight."""
        counts: dict[str, int] = {}
        for postings, offset in zip(self.segments, self.offsets, strict=False):
            present = self.present[offset : offset + len(postings.lengths)][postings.rows]
            n_present = np.diff(np.concatenate([[0], np.cumsum(present)])[postings.starts])
            for token, i in postings.number.items():
                counts[token] = counts.get(token, 0) + int(n_present[i])
        weight_of = {df: self.formula.weight(df, self.n) for df in set(counts.values()) - {0}}
        weights = [weight_of[df] for df in counts.values() if df]
        return EPSILON * (float(np.cumsum(weights)[-1]) / len(weights)) if weights else 0.0  # summed word by word

    def holds(self, word: str) -> bool:
        """Return whether a video that is present has the word."""
        return word != EMPTY_WORD and len(self._occurrences(word)[0]) > 0

    def score(self, words: Sequence[str]) -> Gains:
        """Score all videos, (N,), meaningless for those not present; a repeated word counts each time."""
        scores = np.zeros(len(self.length), dtype=self.dtype)
        for word in words:
            rows, gains, absent, _ = self.contribution(word)
            if not absent:
                np.add.at(scores, rows, gains)  # one pass over memory, where `scores[rows] += gains` takes two
                continue
            changed = scores[rows] + gains
            scores += self.dtype(absent)
            scores[rows] = changed
        return scores

    def mean(self, words: Sequence[str]) -> float:
        """Compute the mean score of the videos that are present."""
        return sum(self.contribution(word).total for word in words) / max(self.n, 1)

    def contribution(self, word: str) -> Contribution:
        """Return what a word adds; cached."""
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
        lists = [postings.occurrences(word) for postings in self.segments]
        if self.n == len(self.present) and len(lists) == 1:  # as built
            return lists[0][0].astype(np.int64), lists[0][1]
        rows = np.concatenate(
            [list_rows.astype(np.int64) + offset for (list_rows, _), offset in zip(lists, self.offsets, strict=False)]
        )
        counts = np.concatenate([list_counts for _, list_counts in lists])
        keep = self.present[rows]
        return (rows, counts) if keep.all() else (rows[keep], counts[keep])


def _int32(array: pa.Array) -> NDArray[np.int32]:
    """Convert numbers without nulls to numpy; pyarrow's own conversion imports pandas, which takes a second."""
    if not len(array):
        return np.zeros(0, dtype=np.int32)
    return np.frombuffer(array.buffers()[1], dtype=np.int32)[array.offset : array.offset + len(array)]
