"""How much faster is BM25 by bm25s than by rank-bm25 on a large collection?

    python benchmarks/bm25.py [--videos 100000] [--queries 200] [--repeats 3]

`model=bm25 model.backend=bm25s` and `model.backend=rank_bm25`, variant plus, on texts of words drawn from a Zipf
distribution (60 words a video, 8 a query): building the index, and scoring every video for every query, turn by turn.
rank-bm25 scores fewer queries, since it takes a second for each few. Both give the same scores, which is checked.
"""

import argparse
import time

import numpy as np
import torch
from measured import RESULTS, Row, interleaved, median, row, write

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
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--slow-queries", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default=str(RESULTS / "bm25.json"))
    given = parser.parse_args()
    documents = texts(given.videos, WORDS_A_VIDEO, 0)
    known = {word for words in documents for word in words}
    queries = [[word for word in words if word in known] for words in texts(given.queries, WORDS_A_QUERY, 1)]
    built, scorers = {}, {}
    for name, build in (("bm25s", _bm25s), ("rank_bm25", _rank_bm25)):
        started = time.perf_counter()
        scorers[name] = build(documents, "plus", **VALUES)
        built[name] = time.perf_counter() - started
    one, other = (torch.from_numpy(np.asarray(scorers[name](queries[0]), dtype=np.float64)) for name in scorers)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)

    def score(name: str, n: int) -> float:
        started = time.perf_counter()
        for words in queries[:n]:
            scorers[name](words)
        return (time.perf_counter() - started) / n

    counts = {"bm25s": given.queries, "rank_bm25": min(given.slow_queries, given.queries)}
    seconds = interleaved({name: lambda name=name: score(name, counts[name]) for name in counts}, given.repeats)
    # of the same first queries, so that both meet the same words
    slow = [score("bm25s", counts["rank_bm25"]) for _ in range(given.repeats)]
    found = median(seconds["rank_bm25"]) / median(slow)
    what = f"BM25 of {given.videos:,} videos by bm25s"
    rows: list[Row] = [
        row(
            f"{what}: a query",
            1000 * median(slow),
            "ms",
            f"rank-bm25, {1000 * median(seconds['rank_bm25']):.0f} ms",
            found,
            "report (over 50 expected)",
        ),
        row(
            f"{what}: building the index",
            built["bm25s"],
            "s",
            f"rank-bm25, {built['rank_bm25']:.1f} s",
            built["rank_bm25"] / built["bm25s"],
        ),
    ]
    write(given.out, rows, given.videos)


if __name__ == "__main__":
    main()
