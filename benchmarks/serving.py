"""How fast do finished runs answer? Vectors, LanceDB, questions, HTTP, start-up, changes, each beside a reference.

    python benchmarks/serving.py RUN [--hybrid RUN] [--only vectors lance question http start change] [--videos 1000000]

RUN is a finished run of a model with towers. The catalogue is made of real vectors: those of its collection and of
the folders in $DCDT_COLLECTIONS that the cache holds, each copied with noise of half its length along the directions in
which real vectors vary (their covariance). Queries are the collections' own questions. Results are merged into
benchmarks/results/serving.json, each row with the date on which it was measured, and whether memory lay in huge pages
(GLIBC_TUNABLES=glibc.malloc.hugetlb=1 in front of the command).
"""

import argparse
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from measured import merge
from serving_data import catalogue_table, real_vectors, repeat_perturbed

from dcdt.data.types import Documents
from dcdt.serving.arrow import vector_column
from dcdt.serving.blas_threads import one_thread
from dcdt.serving.catalogue.approximate import exact_top_k
from dcdt.serving.catalogue.snapshot import Snapshot, inner_products
from dcdt.serving.catalogue.video_table import VideoTable
from dcdt.serving.load import load
from dcdt.serving.recommender import ServedRecommender
from dcdt.serving.scorers.base import Query
from dcdt.serving.scorers.hybrid import fused_top

OUT = Path(__file__).parent / "results" / "serving.json"
ROWS: list[dict] = []
FUSED = 40  # questions whose fusion is compared with the exact one


def note(
    question: str,
    value: float,
    unit: str,
    against: str = "",
    ratio: float | None = None,
    target: str = "report",
    holds: bool | None = None,
) -> None:
    """Store one row and print it; times are reported, without a limit."""
    row = {"question": question, "value": value, "unit": unit, "against": against, "ratio": ratio, "target": target}
    row |= {"holds": holds, "date": time.strftime("%Y-%m-%d")}
    row |= {"huge_pages": "glibc.malloc.hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "")}
    ROWS.append(row)
    print(json.dumps(row), flush=True)


def timed(action: Callable[[int], object], n: int, warm: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Measure n calls one after the other: milliseconds by the clock and of this process's CPU time.

    On a shared machine the first is the user's waiting time, the second the cost of the work itself.
    """
    for at in range(warm):
        action(at)
    found = np.empty((2, n))
    for at in range(n):
        started, worked = time.perf_counter(), time.process_time()
        action(at)
        found[:, at] = 1000 * (time.perf_counter() - started), 1000 * (time.process_time() - worked)
    return found[0], found[1]


def p(values: np.ndarray, share: float) -> float:
    """Return a percentile, rounded."""
    return round(float(np.percentile(values, share)), 3)


def cpu(what: str, worked: np.ndarray) -> None:
    """Report the CPU time of the same calls."""
    note(f"{what}: CPU p50", p(worked, 50), "ms", f"CPU p99 {p(worked, 99)} ms")


def search_rows(what: str, fast: np.ndarray, worked: np.ndarray, slow: np.ndarray, against: str) -> None:
    """Report milliseconds of searches beside those of exact search."""
    half, last, exact = p(fast, 50), p(fast, 99), p(slow, 50)
    note(f"{what}: p50", half, "ms", against, round(exact / half, 1))
    note(f"{what}: p99", last, "ms", against, round(exact / last, 1))
    cpu(what, worked)


def vectors(served: ServedRecommender, n: int) -> Snapshot:
    """Measure vector searches over n videos; recall against exact search on questions not used to tune the index."""
    base, questions = real_vectors(served)
    matrix = repeat_perturbed(base, n)
    print(f"{len(base)} real vectors, {len(questions)} questions, {matrix.shape}", flush=True)
    started = time.perf_counter()
    table = catalogue_table(served, matrix)
    snapshot = Snapshot.build(table, 1, {"vector_0": questions[:400]})
    seconds = time.perf_counter() - started
    ann = snapshot.indexes["vector_0"]
    held = questions[400:800] if len(questions) > 600 else questions[-200:]
    recall = ann.recall(held, exact_top_k(matrix, held, 10))
    fast, worked = timed(
        lambda at: snapshot.search(questions[at % len(questions)], 10, snapshot.present, "vector_0"),
        2000,
        len(questions),
    )
    slow, _ = timed(lambda at: inner_products(matrix, questions[at]).argpartition(-10)[-10:], 5, 1)
    how = f"{ann.info.kind}, {ann.info.width} wide, {ann.info.depth} re-ranked"
    what = f"vector in, 10 of {n:,} x {matrix.shape[1]} out ({how})"
    against = f"exact search: p50 {p(slow, 50)} ms"
    search_rows(what, fast, worked, slow, against)
    note(f"{what}: recall@10", round(recall, 4), "share", "exact search", None, "at least 0.98", recall >= 0.98)
    note(f"{what}: build", round(seconds, 1), "s")
    return snapshot


def lance(served: ServedRecommender, n: int, folder: Path) -> None:
    """Measure the same searches by LanceDB."""
    base, questions = real_vectors(served)
    matrix = repeat_perturbed(base, n)
    table = pa.table({"id": [f"v{at}" for at in range(n)], "vector_0": vector_column(matrix)})
    index = VideoTable(str(folder / "lance"))
    started = time.perf_counter()
    index.create(table)
    seconds = time.perf_counter() - started
    exact = exact_top_k(matrix, questions[:100], 10)
    found = [index.nearest(vector, 10, columns=["id"])["id"].to_pylist() for vector in questions[:100]]
    pairs = zip(found, exact, strict=True)
    recall = float(np.mean([len({f"v{row}" for row in rows} & set(ids)) / 10 for ids, rows in pairs]))
    fast, worked = timed(lambda at: index.nearest(questions[at % len(questions)], 10, columns=["id", "_distance"]), 400)
    slow, _ = timed(lambda at: inner_products(matrix, questions[at]).argpartition(-10)[-10:], 5, 1)
    what = f"LanceDB, 10 of {n:,} x {matrix.shape[1]}"
    against = f"exact search in memory: p50 {p(slow, 50)} ms"
    search_rows(what, fast, worked, slow, against)
    note(f"{what}: recall@10", round(recall, 4), "share", "exact search")
    note(f"{what}: build", round(seconds, 1), "s")


def question(served: ServedRecommender, snapshot: Snapshot, texts: list[str], length: str) -> None:
    """Measure answers over the large catalogue, from the text of a question."""
    own, served.catalogue._snapshot = served.catalogue._snapshot, snapshot
    try:
        with one_thread():  # as the service does
            started, before = time.perf_counter(), stolen_ticks()
            whole, worked, alone = [], [], []
            for start in range(0, 600, 50):  # in turns, so that a slow minute of the machine meets both
                mine = [texts[at % len(texts)] for at in range(start, start + 50)]
                found = timed(lambda at, mine=mine: served.recommend(mine[at % 50], 10), 50, 200 if start == 0 else 5)
                whole, worked = [*whole, *found[0]], [*worked, *found[1]]
                alone += list(timed(lambda at, mine=mine: served.embed([mine[at % 50]]), 50, 5)[0])
            stolen = (stolen_ticks() - before) / os.sysconf("SC_CLK_TCK")
            taken = stolen / ((time.perf_counter() - started) * (os.cpu_count() or 1))
    finally:
        served.catalogue._snapshot = own
    whole, worked, alone = map(np.array, (whole, worked, alone))
    what = f"question in ({length}), answer out, {served.name}, {len(snapshot):,} videos"
    against = f"embedding alone: p50 {p(alone, 50)}, p99 {p(alone, 99)} ms"
    for share in (50, 99):
        value = p(whole, share)
        note(f"{what}: p{share}", value, "ms", against, round(value / p(alone, share), 2))
    cpu(what, worked)
    note(f"{what}: taken by other machines", round(taken, 3), "share of the cores")


def agreement(served: ServedRecommender, snapshot: Snapshot, texts: list[str], length: str) -> None:
    """Measure how many of the ten best videos of an exact fusion are among the candidates of both parts."""
    near, exact = snapshot, replace(snapshot, indexes={})
    asked = [Query(text, served.embed([text])[0]) for text in texts]
    found = []
    for view in (exact, near):  # one after the other, since the words' gains are kept for one view
        parts = [[scorer.score(question, view) for scorer in served.scorers] for question in asked]
        found.append(
            [set(fused_top(part, served.manifest.fusion, view, 10, view.present)[0].tolist()) for part in parts]
        )
    same = float(np.mean([len(one & other) / 10 for one, other in zip(*found, strict=True)]))
    what = f"fused answers ({length}), {served.name}, {len(snapshot):,} videos"
    note(f"{what}: of the exact ten found", round(same, 3), "share", f"every video scored, n = {len(asked)}")


def stolen_ticks() -> int:
    """Clock ticks that other virtual machines took from this one's cores (Linux), else 0."""
    lines = Path("/proc/stat").read_text(encoding="utf-8").splitlines() if Path("/proc/stat").exists() else [""]
    fields = lines[0].split()
    return int(fields[8]) if len(fields) > 8 else 0


CLIENT = """
import http.client, json, sys, threading, time
from urllib.parse import quote
port, clients, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
texts = json.loads(sys.stdin.read())
found, lock = [], threading.Lock()
until = time.perf_counter() + seconds
def one(at):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    mine = []
    while time.perf_counter() < until:
        at += clients
        started = time.perf_counter()
        connection.request("GET", "/search?k=10&q=" + quote(texts[at % len(texts)]))
        response = connection.getresponse(); body = response.read()
        assert response.status == 200, body
        mine.append(1000 * (time.perf_counter() - started))
    with lock: found.extend(mine)
threads = [threading.Thread(target=one, args=(at,)) for at in range(clients)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
print(json.dumps(found))
"""


def start_server(run: Path, *options: str, log: Path | None = None) -> tuple[subprocess.Popen, int]:
    """Serve a run on a free port, with its log in a file where one is named; the process and the port."""
    line = [sys.executable, "-m", "dcdt.serve", str(run), "--port", "0", *options]
    with Path(log or os.devnull).open("w") as told:
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=told, text=True)
    address = process.stdout.readline()
    return process, int(address.split(":")[2].split()[0])


def over_http(served: ServedRecommender, texts: list[str], length: str, seconds: float = 15) -> None:
    """Requests a second with 8 clients in another process, on this machine's cores."""
    process, port = start_server(served.catalogue.run)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        for text in texts[:30]:
            connection.request("GET", "/search?k=10&q=" + quote(text))
            connection.getresponse().read()
        line = [sys.executable, "-c", CLIENT, str(port), "8", str(seconds)]
        done = subprocess.run(line, input=json.dumps(texts), capture_output=True, text=True, check=True)
        found = np.array(json.loads(done.stdout))
    finally:
        process.terminate()
        process.wait(20)
    alone, _ = timed(lambda at: served.embed([texts[at % len(texts)]]), 300)
    rate = round(len(found) / seconds, 1)
    share = round(rate * float(alone.mean()) / 1000, 2)
    against = f"the embedder alone, one after the other: {round(1000 / float(alone.mean()), 1)} a second"
    what = f"HTTP, 8 clients, {length}, {served.name}, {len(served):,} videos"
    note(f"{what}: requests", rate, "1/s", against, round(rate * float(alone.mean()) / 1000, 2))
    note(f"{what}: p99", p(found, 99), "ms", f"p50 {p(found, 50)} ms")
    note(f"{what}: the embedder's share of a second", share, "s")


def start(run: Path) -> None:
    """Measure a cold question on the command line, beside importing numpy and torch."""

    def command(*line: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, *line], check=True, capture_output=True)
        return time.perf_counter() - started

    ours, bare, torch = [], [], []
    for _ in range(5):
        ours.append(command("-m", "dcdt.recommend", str(run), "why do eigenvectors matter", "-k", "5"))
        bare.append(command("-c", "import numpy"))
        torch.append(command("-c", "import torch"))
    value, base = float(np.median(ours)), float(np.median(bare))
    against = f"import numpy {base:.2f} s, import torch {np.median(torch):.2f} s"
    note("dcdt.recommend, cold: median of 5", round(value, 2), "s", against, round(value / base, 2))


def change(run: Path, folder: Path) -> None:
    """Measure the time from a new video's text until a search finds it."""
    import shutil

    served = load(shutil.copytree(run, folder / "changed"))
    served.recommend("warm", 1)
    served.add(Documents(["warm"], ["warm"], ["warm"], [{}]))
    found = []
    for at in range(20):
        started = time.perf_counter()
        text = f"zebra crossing number {at}"
        served.add(Documents([f"new{at}"], [text], [text], [{}]))
        assert f"new{at}" in {item.id for item in served.recommend(text, 10)[0]}
        found.append(time.perf_counter() - started)
    what = f"a new video embedded, saved and found, {len(served):,} videos"
    note(f"{what}: worst of 20", round(max(found), 3), "s")


def large(served: ServedRecommender, given: argparse.Namespace, asked: dict[str, list[str]]) -> None:
    """Measure over a large catalogue: vector searches, then answers of towers alone and of a hybrid."""
    snapshot = vectors(served, given.videos)
    if "vectors" not in given.only:
        ROWS.clear()
    if "question" not in given.only:
        return
    for length, texts in asked.items():
        question(served, snapshot, texts, length)
    if given.hybrid is None:
        return
    other = load(given.hybrid, threads=served.threads)
    matrix = snapshot.built.vectors["vector_0"]
    table = catalogue_table(other, matrix, with_vectors=False)
    built = replace(snapshot.built, table=table, vectors={"vector_1": matrix}, _postings={})
    added = replace(built, table=table.slice(0, 0), vectors={"vector_1": matrix[:0]}, _postings={})
    snapshot = replace(snapshot, built=built, added=added, indexes={"vector_1": snapshot.indexes["vector_0"]})
    for length, texts in asked.items():
        question(other, snapshot, texts, length)
        agreement(other, snapshot, texts[:FUSED], length)


def main() -> None:
    """Measure the chosen parts and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--hybrid", type=Path)
    parser.add_argument("--only", nargs="+", default=["vectors", "question", "lance", "http", "start", "change"])
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--lance-videos", type=int, default=200_000)
    parser.add_argument("--threads", type=int, default=2, help="of the embedder, one question at a time")
    parser.add_argument("--out", type=Path, default=OUT, help="another file, for another kind of machine")
    parser.add_argument("--scratch", type=Path, default=Path("outputs/bench"))
    given = parser.parse_args()
    given.scratch.mkdir(parents=True, exist_ok=True)
    served = load(given.run, threads=given.threads)
    asked = questions_of(served)
    if {"vectors", "question"} & set(given.only):
        large(served, given, asked)
    if "lance" in given.only:
        lance(served, given.lance_videos, given.scratch)
    for run in [given.run, *([given.hybrid] if given.hybrid else [])]:
        if "http" in given.only:
            for length, texts in asked.items():
                over_http(load(run, threads=1), texts, length)
    if "start" in given.only:
        start(given.hybrid or given.run)
    if "change" in given.only:
        change(given.hybrid or given.run, given.scratch)
    merge(given.out, ROWS)


def questions_of(served: ServedRecommender) -> dict[str, list[str]]:
    """Questions of the run's collection and of the shipped one; embedding costs by their length."""
    from dcdt.training.checkpoint import run_settings

    folders = [Path(run_settings(served.catalogue.run).data.path), Path("data/linear_algebra")]
    served.embed(["warm"])
    count = served._embedder.tokenizer.encode
    found = {}
    for folder in dict.fromkeys(path.resolve() for path in folders):
        records = map(json.loads, (folder / "queries.jsonl").read_text(encoding="utf-8").splitlines())
        texts = [record["text"] for record in records if (record.get("metadata") or {}).get("lang", "en") == "en"]
        tokens = int(np.median([len(count(text).ids) for text in texts]))
        found[f"questions of {folder.name}, median {tokens} tokens"] = texts
    return found


if __name__ == "__main__":
    main()
