"""How close is mining of hard negatives to the machine's rate of multiplying matrices?

    python benchmarks/mining.py [--queries 10000] [--videos 50000] [--pool 200] [--repeats 3]

`mine_hard_negatives` (the pool of `sampler=hard`) turn by turn with a square fp32 product, which gives the
peak, and with `sentence_transformers.util.semantic_search` on the same vectors: as it is called by default (100
queries at a time) and with the 1024 queries at a time that are taken here. Memory is what a fresh process adds, once
with so many videos and once with four times as many: what is bounded by a chunk and a block does not grow with them.
"""

import argparse
import subprocess
import sys
import time

import torch
from measured import RESULTS, Row, forget_peak, interleaved, median, peak, ratio, row, write
from synthetic import WIDTH, clustered

from dcdt.samplers.mining import QUERY_CHUNK, VIDEO_BLOCK, mine_hard_negatives


def peak_rate(size: int) -> float:
    """Seconds a GFLOP of a square product of fp32 matrices."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    started = time.perf_counter()
    for _ in range(3):
        a @ b
    return (time.perf_counter() - started) / (6 * size**3 / 1e9)


def semantic_search(queries: torch.Tensor, videos: torch.Tensor, pool: int, chunk: int) -> None:
    """Run the same search by sentence-transformers."""
    from sentence_transformers.util import dot_score
    from sentence_transformers.util import semantic_search as search

    search(queries, videos, top_k=pool, score_function=dot_score, query_chunk_size=chunk)


def grown(n_queries: int, n_videos: int, width: int, pool: int) -> float:
    """MB by which mining raises the peak memory of this process."""
    queries, videos, forbidden = inputs(n_queries, n_videos, width)
    before = forget_peak()
    mine_hard_negatives(queries, videos, torch.arange(n_videos), forbidden, pool)
    return peak() - before


def inputs(n_queries: int, n_videos: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, videos and a forbidden video of each query."""
    forbidden = (torch.arange(n_queries) % n_videos).unsqueeze(1)
    return clustered(n_queries, width, 5), clustered(n_videos, width, 6), forbidden


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--videos", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--pool", type=int, default=200)
    parser.add_argument("--square", type=int, default=4096, help="size of the matrices that give the peak")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="print the growth of the peak alone")
    parser.add_argument("--out", default=str(RESULTS / "mining.json"))
    given = parser.parse_args()
    sizes = given.queries, given.videos, given.width
    if given.memory:
        print(grown(*sizes, given.pool))
        return
    queries, videos, forbidden = inputs(*sizes)
    everything = torch.arange(given.videos)
    gflop = 2 * given.queries * given.videos * given.width / 1e9
    seconds = interleaved(
        {
            "peak": lambda: peak_rate(given.square),
            "mine": lambda: mine_hard_negatives(queries, videos, everything, forbidden, given.pool) is None or None,
            "search": lambda: semantic_search(queries, videos, given.pool, 100),
            "chunks": lambda: semantic_search(queries, videos, given.pool, QUERY_CHUNK),
        },
        given.repeats,
    )
    rate = gflop / median(seconds["mine"])
    share = median([gflop * at / took for at, took in zip(seconds["peak"], seconds["mine"], strict=True)])
    what = f"mining, {given.queries:,} queries x {given.videos:,} videos, pool {given.pool}"
    rows: list[Row] = [
        row(
            what,
            rate,
            "GFLOP/s",
            f"a square product, {1 / median(seconds['peak']):.0f} GFLOP/s",
            share,
            ">= 0.8",
            share >= 0.8,
        )
    ]
    found, equal = ratio(seconds, "search", "mine"), ratio(seconds, "chunks", "mine")
    against = f"sentence_transformers.util.semantic_search by default, {median(seconds['search']):.1f} s"
    rows.append(row(what, median(seconds["mine"]), "s", against, found, ">= 1.5", found >= 1.5))
    against = f"the same with {QUERY_CHUNK} queries at a time, {median(seconds['chunks']):.1f} s"
    rows.append(row(what, median(seconds["mine"]), "s", against, equal))
    rows += [memory_row(given, given.videos * times) for times in (1, 4)]
    write(given.out, rows, given.videos)


def memory_row(given: argparse.Namespace, n_videos: int) -> Row:
    """Measure the peak memory that mining adds, in a fresh process."""
    command = [sys.executable, __file__, "--memory", "--queries", str(given.queries), "--videos", str(n_videos)]
    command += ["--width", str(given.width), "--pool", str(given.pool)]
    added = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    whole = 4 * given.queries * n_videos / 2**20
    # scores of a chunk, the block of videos, pools of all queries as values and places, old and new
    bound = (
        4 * QUERY_CHUNK * VIDEO_BLOCK + 4 * VIDEO_BLOCK * given.width + 3 * 12 * given.queries * given.pool
    ) / 2**20
    return row(
        f"mining, {given.queries:,} queries x {n_videos:,} videos, pool {given.pool}: memory added at the peak",
        added,
        "MB",
        f"one chunk, one block and the pools, {bound:.0f} MB; all scores at once are {whole:.0f} MB",
        added / bound,
        "<= 1.2",
        added <= 1.2 * bound,
    )


if __name__ == "__main__":
    main()
