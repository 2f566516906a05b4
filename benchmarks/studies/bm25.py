"""How much faster is our BM25 than rank-bm25, which defines its scores, on a large collection?

    python benchmarks/studies/bm25.py [--videos 100000] [--queries 200] [--repeats 3]

`dcdt.data.bm25` and the library, variant plus, on texts of words drawn from a Zipf distribution (60 words a video, 8 a
query): building the index, and scoring every video for every query, both turn by turn. Both score the same few queries,
since rank-bm25 takes a second for each few; ours goes through them again until it has scored --queries, without what it
cached of the words. Both give the same scores, which is checked.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import rank_bm25

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the modules that benchmarks share
from measured import RESULTS, Row, interleaved, median, ratio, row, write

from dcdt.data.bm25 import BM25Index, Postings

WORDS, WORDS_A_VIDEO, WORDS_A_QUERY = 50_000, 60, 8
VALUES = {"k1": 1.5, "b": 0.75, "delta": 1.0}


def texts(n: int, length: int, seed: int) -> list[list[str]]:
    """Lists of words, rare ones rarely."""
    drawn = np.random.default_rng(seed).zipf(1.3, size=(n, length)) % WORDS
    return [[f"w{word}" for word in line] for line in drawn.tolist()]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200, help="that ours scores in a turn")
    parser.add_argument("--slow-queries", type=int, default=5, help="distinct ones, which rank-bm25 scores")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default=str(RESULTS / "bm25.json"))
    given = parser.parse_args()
    documents = texts(given.videos, WORDS_A_VIDEO, 0)
    known = {word for words in documents for word in words}
    queries = [[word for word in words if word in known] for words in texts(given.slow_queries, WORDS_A_QUERY, 1)]
    scorers = {}

    def build(name: str) -> None:
        if name == "rank_bm25":
            scorers[name] = rank_bm25.BM25Plus(documents, **VALUES).get_scores
        else:
            scorers[name] = BM25Index("rank_bm25", "plus", segments=[Postings.of(documents)], **VALUES).score

    built = interleaved({name: lambda name=name: build(name) for name in ("ours", "rank_bm25")}, given.repeats)
    np.testing.assert_array_equal(*(score(queries[0]) for score in scorers.values()))

    def score(name: str, rounds: int) -> float:
        started = time.perf_counter()
        for _ in range(rounds):
            if name == "ours":
                scorers[name].__self__._cache.clear()
            for words in queries:
                scorers[name](words)
        return (time.perf_counter() - started) / (rounds * len(queries))

    rounds = {"ours": -(-given.queries // len(queries)), "rank_bm25": 1}
    seconds = interleaved({name: lambda name=name: score(name, rounds[name]) for name in rounds}, given.repeats)
    what = f"BM25 of {given.videos:,} videos"
    rows: list[Row] = [
        row(
            f"{what}: a query",
            1000 * median(seconds["ours"]),
            "ms",
            f"rank-bm25, {1000 * median(seconds['rank_bm25']):.0f} ms, turn by turn",
            ratio(seconds, "rank_bm25", "ours"),
            "report (over 50 expected)",
        ),
        row(
            f"{what}: building the index",
            median(built["ours"]),
            "s",
            f"rank-bm25, {median(built['rank_bm25']):.1f} s, turn by turn",
            ratio(built, "rank_bm25", "ours"),
        ),
    ]
    write(given.out, rows, given.videos)


if __name__ == "__main__":
    main()
