"""What do passages cost a search? Videos of 20 passages each, beside as many videos of one vector, in one run.

    python benchmarks/studies/passages.py [--videos 100000] [--passages 20] [--width 384]

Vectors are synthetic, in half precision: subjects, videos about them, passages near their video. Queries lie near a
passage. Both catalogues are searched as a service does, through faiss's index over the first 256 directions, and by an
exact search of all passages. With --lance FOLDER, LanceDB searches the one vector a video from its table. Rows go to
benchmarks/results/passages.json.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the modules that benchmarks share
from measured import RESULTS, interleaved, median, ratio, row, write

from dcdt.serving.arrow import vector_column
from dcdt.serving.blas_threads import one_thread
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.catalogue.video_table import VideoTable
from dcdt.serving.scorers.passages import PassageScores
from dcdt.serving.scorers.towers import TowerScores

K, QUERIES, EXACT, SUBJECTS = 10, 200, 20, 2000


def near(rng: np.random.Generator, centres: np.ndarray, noise: float) -> np.ndarray:
    """Vectors at `noise` times the length of the centres (n, W) from them, of length 1, as texts vary."""
    shifts = rng.standard_normal(centres.shape, dtype=np.float32) * spread(centres.shape[1])
    moved = centres + noise * shifts / np.linalg.norm(shifts, axis=1, keepdims=True)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def spread(width: int) -> np.ndarray:
    """How much vectors vary along each direction: much along few, as embeddings of texts do."""
    return 1 / np.sqrt(np.arange(1, width + 1, dtype=np.float32))


def catalogue(rng: np.random.Generator, n: int, per_video: int, width: int) -> tuple[pa.Table, pa.Table, np.ndarray]:
    """A table with one vector a video, another with the passages of the same videos, and queries."""
    subjects = rng.standard_normal((SUBJECTS, width), dtype=np.float32) * spread(width)
    subjects /= np.linalg.norm(subjects, axis=1, keepdims=True)
    videos = near(rng, subjects[rng.integers(0, SUBJECTS, n)], 0.7)
    passages = np.empty((n * per_video, width), dtype=np.float16)
    for start in range(0, n, 10_000):
        centres = videos[start : start + 10_000].repeat(per_video, axis=0)
        passages[start * per_video : start * per_video + len(centres)] = near(rng, centres, 0.7)
    targets = passages[rng.integers(0, len(passages), 2 * QUERIES)].astype(np.float32)
    ids = pa.array([f"v{at}" for at in range(n)])
    spoken = pa.ListArray.from_arrays(np.arange(0, len(passages) + 1, per_video), vector_column(passages))
    one = pa.table({"id": ids, "vector_0": vector_column(videos.astype(np.float16))})
    return one, pa.table({"id": ids, "passages_0": spoken}), near(rng, targets, 0.7)


def search(kind: type, snapshot: Snapshot, scorer: object, query: np.ndarray) -> np.ndarray:
    """Rows of the best videos, as a service finds them."""
    return kind(snapshot, scorer, query).top(K, snapshot.present)[0]


def cpu_seconds(job: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    """CPU time of this process for all queries."""
    started = time.process_time()
    for query in queries:
        job(query)
    return time.process_time() - started


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("videos", 100_000), ("passages", 20), ("width", 384), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lance", metavar="FOLDER", help="write LanceDB's table of one vector a video here")
    parser.add_argument("--out", default=str(RESULTS / "passages.json"))
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    one, spoken, queries = catalogue(rng, args.videos, args.passages, args.width)
    probes, queries = queries[:QUERIES], queries[QUERIES:]
    manifest = SimpleNamespace(temperature=None)
    size, rows, jobs, exact, recall = f"{args.videos:,} videos", [], {}, {}, {}
    with one_thread():
        for column, table, kind in (("vector_0", one, TowerScores), ("passages_0", spoken, PassageScores)):
            snapshot, unindexed = Snapshot.build(table, 1, {column: probes}, exact_cells=0), Snapshot.of(table)
            scorer = SimpleNamespace(column=column, manifest=manifest)
            jobs[column] = partial(search, kind, snapshot, scorer)
            exact[column] = partial(search, kind, unindexed, scorer)
            shares = [np.isin(exact[column](query), jobs[column](query)).mean() for query in queries[:EXACT]]
            recall[column], info = float(np.mean(shares)), snapshot.indexes[column].info
            gigabytes = info.n * args.width * 2 / 1e9, info.n * (info.width * 2 + 8) / 1e9
            note = f"{info.breadth} cells searched, {info.depth} ranked again, of {info.n:,} vectors"
            rows.append(
                row(f"{column}: the index of {size}", gigabytes[1], "GB", f"full vectors {gigabytes[0]:.2f} GB; {note}")
            )
        times = interleaved(
            {name: lambda job=job: cpu_seconds(job, queries) for name, job in jobs.items()}, args.repeats
        )
        slow = interleaved(
            {name: lambda job=job: cpu_seconds(job, queries[:EXACT]) for name, job in exact.items()}, 1, 0
        )
        one_ms, many_ms = (1000 * median(times[name]) / len(queries) for name in ("vector_0", "passages_0"))
        cost, found = ratio(times, "passages_0", "vector_0"), recall["passages_0"]
        rows.append(row(
            f"CPU time of a search over {size} of {args.passages} passages", many_ms, "ms",
            f"one vector each, {one_ms:.3g} ms", cost, "<= 1.5", cost <= 1.5,
        ))  # fmt: skip
        rows.append(row(
            f"Recall@{K} of videos over {size} of {args.passages} passages", found, "",
            f"exact search; one vector each: {recall['vector_0']:.3f}", None, ">= 0.95", found >= 0.95,
        ))  # fmt: skip
        for name, kind in (("vector_0", "one vector each"), ("passages_0", f"{args.passages} passages each")):
            rows.append(row(f"Exact search over {size}, {kind}", 1000 * median(slow[name]) / EXACT, "ms", "CPU time"))
        if args.lance:
            table = VideoTable(args.lance)
            table.create(one.set_column(1, "vector_0", one["vector_0"].cast(pa.list_(pa.float32(), args.width))))
            seconds = interleaved({"lance": lambda: [table.nearest(query, K) for query in queries[:EXACT]] and None}, 3)
            value = 1000 * median(seconds["lance"]) / EXACT
            rows.append(row(f"LanceDB over {size}, one vector each", value, "ms", "by the clock"))
    write(args.out, rows, args.videos)


if __name__ == "__main__":
    main()
