"""How much faster is BM25 by bm25s than by rank-bm25 on a large collection?

    python benchmarks/studies/bm25.py [--videos 100000] [--queries 200] [--repeats 3]

`model=bm25 model.backend=bm25s` and `model.backend=rank_bm25`, variant plus, on texts of words drawn from a Zipf
distribution (60 words a video, 8 a query): building the index, and scoring every video for every query, both turn by
turn. Both score the same few queries, since rank-bm25 takes a second for each few; bm25s goes through them again until
it has scored --queries. Both give the same scores, which is checked.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the modules that benchmarks share
from measured import RESULTS, Row, interleaved, median, ratio, row, write

from baselines.bm25 import _bm25s, _rank_bm25

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
    parser.add_argument("--queries", type=int, default=200, help="that bm25s scores in a turn")
    parser.add_argument("--slow-queries", type=int, default=5, help="distinct ones, which rank-bm25 scores")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default=str(RESULTS / "bm25.json"))
    given = parser.parse_args()
    documents = texts(given.videos, WORDS_A_VIDEO, 0)
    known = {word for words in documents for word in words}
    queries = [[word for word in words if word in known] for words in texts(given.slow_queries, WORDS_A_QUERY, 1)]
    scorers = {}

    def build(name: str) -> None:
        scorers[name] = {"bm25s": _bm25s, "rank_bm25": _rank_bm25}[name](documents, "plus", **VALUES)

    built = interleaved({name: lambda name=name: build(name) for name in ("bm25s", "rank_bm25")}, given.repeats)
    one, other = (torch.from_numpy(np.asarray(scorers[name](queries[0]), dtype=np.float64)) for name in scorers)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    def score(name: str, rounds: int) -> float:
        started = time.perf_counter()
        for words in rounds * queries:
            scorers[name](words)
        return (time.perf_counter() - started) / (rounds * len(queries))

    rounds = {"bm25s": -(-given.queries // len(queries)), "rank_bm25": 1}
    seconds = interleaved({name: lambda name=name: score(name, rounds[name]) for name in rounds}, given.repeats)
    what = f"BM25 of {given.videos:,} videos by bm25s"
    rows: list[Row] = [
        row(
            f"{what}: a query",
            1000 * median(seconds["bm25s"]),
            "ms",
            f"rank-bm25, {1000 * median(seconds['rank_bm25']):.0f} ms, turn by turn",
            ratio(seconds, "rank_bm25", "bm25s"),
            "report (over 50 expected)",
        ),
        row(
            f"{what}: building the index",
            median(built["bm25s"]),
            "s",
            f"rank-bm25, {median(built['rank_bm25']):.1f} s, turn by turn",
            ratio(built, "rank_bm25", "bm25s"),
        ),
    ]
    write(given.out, rows, given.videos)


if __name__ == "__main__":
    main()
