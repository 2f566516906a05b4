"""BM25 over inverted lists in numpy: every variant of the model, exact while videos come and go.

Nothing is precomputed that depends on the whole catalogue (document frequencies, mean length), so adding, editing or
deleting a video gives the scores a rebuilt index would give.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcdt.serving.arrow import numbers

Floats = NDArray[np.float64]
Gains = NDArray[Any]  # fp64, or fp32 over many videos
Ints = NDArray[np.int64]
EMPTY = ""  # stands in a video without a word; no query holds it
DELTA = {("rank_bm25", "l"): 0.5, ("rank_bm25", "plus"): 1.0, ("bm25s", "l"): 0.5, ("bm25s", "plus"): 1.0}
REMEMBERED = 12  # occurrences for each video whose gains are kept, so that a word asked for again costs an addition
WORD = 100  # occurrences' worth of memory that a kept word takes beside them
EPSILON = 0.25  # of the mean weight, which rank_bm25's Okapi gives to words of more than half of the videos

# Weight of a word in n of N videos, and what a word that occurs tf times in a text of relative length
# `k1 (1 - b + b l / mean)` adds; `away` is what it adds where it does not occur.
Weight = Callable[[Floats, int], Floats]
Gain = Callable[[Gains, Gains, float, float], Gains]


@dataclass(frozen=True)
class Formula:
    """One variant of BM25: weight of a word, gain of an occurrence, gain without one."""

    weight: Weight
    gain: Gain
    away: Callable[[float, float], float]


def _okapi_weight(df: Floats, n: int) -> Floats:
    return np.asarray(np.log(n - df + 0.5) - np.log(df + 0.5))


def _robertson_weight(df: Floats, n: int) -> Floats:
    return np.asarray(np.log(np.maximum((n - df + 0.5) / (df + 0.5), 1)))


def _long_weight(df: Floats, n: int) -> Floats:
    return np.asarray(np.log((n + 1) / (df + 0.5)))


def _plus_weight(df: Floats, n: int) -> Floats:
    return np.asarray(np.log((n + 1) / df))


def _classic(tf: Gains, norm: Gains, k1: float, delta: float) -> Gains:
    return np.asarray(tf * (k1 + 1) / (tf + norm))


def _bare(tf: Gains, norm: Gains, k1: float, delta: float) -> Gains:
    return np.asarray(tf / (tf + norm))


def _plus(tf: Gains, norm: Gains, k1: float, delta: float) -> Gains:
    return np.asarray(delta + tf * (k1 + 1) / (tf + norm))


def _long(tf: Gains, norm: Gains, k1: float, delta: float) -> Gains:
    ratio = tf * k1 / norm + delta
    return (k1 + 1) * ratio / (k1 + ratio)


def _nothing(k1: float, delta: float) -> float:
    return 0.0


FORMULAS: dict[tuple[str, str], Formula] = {
    ("rank_bm25", "okapi"): Formula(_okapi_weight, _classic, _nothing),
    ("rank_bm25", "l"): Formula(_long_weight, lambda tf, norm, k1, d: tf * _long(tf, norm, k1, d), _nothing),
    ("rank_bm25", "plus"): Formula(_plus_weight, _plus, lambda k1, d: d),
    ("bm25s", "okapi"): Formula(_robertson_weight, _bare, _nothing),
    ("bm25s", "l"): Formula(_long_weight, _long, lambda k1, d: (k1 + 1) * d / (k1 + d)),
    ("bm25s", "plus"): Formula(_plus_weight, _plus, lambda k1, d: d),
    ("bm25s", "lucene"): Formula(lambda df, n: np.log(1 + (n - df + 0.5) / (df + 0.5)), _bare, _nothing),
    ("bm25s", "atire"): Formula(lambda df, n: np.log(n / df), _classic, _nothing),
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
    def of(words: pa.ChunkedArray | pa.Array) -> "Postings":
        """Invert the word lists of N videos."""
        lists = words.combine_chunks() if isinstance(words, pa.ChunkedArray) else words
        lengths = np.diff(numbers(lists.offsets)).astype(np.int64)
        coded = pc.list_flatten(lists).dictionary_encode()
        coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
        vocabulary = coded.dictionary.to_pylist()
        size = max(len(lengths), 1)
        keys = numbers(coded.indices).astype(np.int64) * size + np.repeat(np.arange(len(lengths)), lengths)
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
    """What a word adds: `gains` (n,) to the videos `rows` (n,) that hold it, `away` to each other, `total` to all."""

    rows: Ints
    gains: Gains
    away: float
    total: float


class Lexical:
    """BM25 of words against all videos that are alive.

    Args:
        config: backend, variant, k1, b and delta of the model.
        parts: inverted lists of consecutive runs of videos: the catalogue as built, and what came since.
        alive: (N,) false for videos that were deleted or replaced.
        dtype: of the scores. Over many videos their time is that of the memory they pass through, and fp32 halves it.
    """

    def __init__(
        self,
        config: dict[str, Any],
        parts: Sequence[Postings],
        alive: NDArray[np.bool_],
        dtype: type[np.floating] = np.float64,
    ) -> None:
        key = (str(config["backend"]), str(config["variant"]))
        self.formula, self.k1, b = FORMULAS[key], float(config["k1"]), float(config["b"])
        delta = config.get("delta")
        self.delta = float(DELTA.get(key, 0.0) if delta is None else delta)
        self.floored = key == ("rank_bm25", "okapi")
        self.parts, self.alive, self.n, self.dtype = list(parts), alive, int(alive.sum()), dtype
        lengths = np.concatenate([part.lengths for part in self.parts])
        mean = lengths[alive].mean() if self.n else 1.0
        self.norm = (self.k1 * (1 - b + b * lengths / mean)).astype(dtype)  # (N,)
        self.offsets = np.cumsum([0, *(len(part.lengths) for part in self.parts)])
        self._known: dict[str, Contribution] = {}
        self._held = 0  # occurrences' worth of memory

    @cached_property
    def floor(self) -> float:
        """What a word of more than half of the videos weighs in rank_bm25's Okapi: a quarter of the mean weight."""
        counts: dict[str, int] = {}
        for part, offset in zip(self.parts, self.offsets, strict=False):
            alive = self.alive[offset : offset + len(part.lengths)][part.rows]
            held = np.diff(np.concatenate([[0], np.cumsum(alive)])[part.starts])
            for word, at in part.number.items():
                counts[word] = counts.get(word, 0) + int(held[at])
        df = np.array([count for count in counts.values() if count], dtype=float)
        return EPSILON * float(_okapi_weight(df, self.n).mean()) if len(df) else 0.0

    def known(self, word: str) -> bool:
        """Whether a video that is alive holds the word."""
        return len(self._occurrences(word)[0]) > 0

    def score(self, words: Sequence[str]) -> Gains:
        """Scores of all videos, (N,); those that are not alive mean nothing."""
        scores, everywhere = np.zeros(len(self.norm), dtype=self.dtype), 0.0
        for word, times in Counter(words).items():
            rows, gains, away, _ = self.contribution(word)
            gains = gains - self.dtype(away) if away else gains
            np.add.at(scores, rows, gains if times == 1 else self.dtype(times) * gains)
            everywhere += times * away
        return scores + self.dtype(everywhere) if everywhere else scores

    def mean(self, words: Sequence[str]) -> float:
        """Mean of the scores of the videos that are alive."""
        return sum(self.contribution(word).total for word in words) / max(self.n, 1)

    def contribution(self, word: str) -> Contribution:
        """What a word adds, from what was kept where it was asked for before."""
        found = self._known.get(word)
        if found is None:
            found = self._contribution(word)
            if self._held > REMEMBERED * len(self.norm) + 1000 * WORD:
                self._known, self._held = {}, 0
            self._known[word] = found
            self._held += len(found.rows) + WORD
        return found

    def _contribution(self, word: str) -> Contribution:
        rows, counts = self._occurrences(word)
        if not len(rows) or word == EMPTY:
            return Contribution(rows[:0], np.zeros(0, dtype=self.dtype), 0.0, 0.0)
        weight = float(self.formula.weight(np.array(float(len(rows))), self.n))
        if self.floored and weight < 0:
            weight = self.floor
        gains = self.dtype(weight) * self.formula.gain(counts.astype(self.dtype), self.norm[rows], self.k1, self.delta)
        away = weight * self.formula.away(self.k1, self.delta)
        total = float(gains.sum(dtype=np.float64)) + away * (self.n - len(rows))
        return Contribution(rows, gains, away, total)

    def _occurrences(self, word: str) -> tuple[Ints, NDArray[np.float32]]:
        found = [part.occurrences(word) for part in self.parts]
        if self.n == len(self.alive) and len(found) == 1:  # as built
            return found[0][0].astype(np.int64), found[0][1]
        rows = np.concatenate([part.astype(np.int64) + at for (part, _), at in zip(found, self.offsets, strict=False)])
        counts = np.concatenate([part for _, part in found])
        keep = self.alive[rows]
        return (rows, counts) if keep.all() else (rows[keep], counts[keep])
