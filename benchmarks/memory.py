"""How much memory does training on a million videos take, beside the vectors themselves?

    python benchmarks/memory.py [--videos 1000000] [--queries 20000] [--steps 50]

A fresh process each: `model=dcdt trainer.embedding_dtype=float16`, negatives in batch, tables of random vectors as a
run makes them (`dcdt.embeddings.tables.allocate`), one epoch of so many steps and a validation that ranks
all videos, all through `fit.train`. The peak of resident memory is set against the size of the tables: title, text and
their sum; and, as a report, against title and text alone, which are all that a collection holds. With
`trainer.mapped=true` the tables are a file, and what counts is the memory that no file backs. One run of each.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from measured import RESULTS, Row, anonymous, forget_peak, peak, row, write
from synthetic import WIDTH, collection_of, data_of, half_tables, settings_of, split_of

from dcdt.training import fit
from dcdt.training.loggers.base import RunLogger

HELD_OUT, BATCH, HALF = 64, 1024, 2  # HALF: bytes of a number in half precision


def train(given: argparse.Namespace) -> dict[str, float]:
    """Train one epoch in this process; returns MB."""
    overrides = ["sampler=in_batch", "loss=infonce", f"batch_size={BATCH}", "trainer.max_epochs=1"]
    settings = settings_of(*overrides, "trainer.embedding_dtype=float16", f"trainer.mapped={str(given.mapped).lower()}")
    collection = collection_of(given.queries + 2 * HELD_OUT, given.videos)
    split = split_of(collection, HELD_OUT)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        home = Path(folder)
        tables = half_tables(len(collection.queries), given.videos, given.width, home if given.mapped else None)
        data = data_of(settings, collection, split, tables)
        forget_peak()
        most, done = [0.0], threading.Event()

        def watch() -> None:
            while not done.wait(0.05):
                most[0] = max(most[0], anonymous())

        watching = threading.Thread(target=watch)
        watching.start()
        started = time.perf_counter()
        fit.train(settings, tables, data, RunLogger(), home / "last.ckpt")
        seconds = time.perf_counter() - started
        done.set()
        watching.join()
    held = sum(part.numel() * part.itemsize for part in (tables.videos, tables.frozen)) / 2**20
    return {"peak": peak(), "anonymous": most[0], "tables": held, "seconds": seconds}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--folder", default=None, help="where the mapped tables lie")
    parser.add_argument("--mapped", action="store_true")
    parser.add_argument("--one", action="store_true", help="train in this process and print JSON")
    parser.add_argument("--out", default=str(RESULTS / "memory.json"))
    given = parser.parse_args()
    if given.one:
        print(json.dumps(train(given)))
        return
    command = [sys.executable, __file__, "--one", "--videos", str(given.videos), "--queries", str(given.queries)]
    command += ["--width", str(given.width), *(["--folder", given.folder] if given.folder else [])]
    rows: list[Row] = []
    for name, extra, kind in (("in memory", [], "peak"), ("mapped", ["--mapped"], "anonymous")):
        told = subprocess.run([*command, *extra], check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        found = json.loads(told)
        share = found[kind] / found["tables"]
        what = f"training on {given.videos:,} videos x {given.width} fp16, tables {name}: {kind} memory"
        against = f"tables of {found['tables']:.0f} MB, {found['seconds']:.0f} s for an epoch and a validation"
        rows.append(row(what, found[kind], "MB", against, share, "<= 1.3", share <= 1.3))
        fields = 2 * given.videos * given.width * HALF / 2**20
        shown = rows[-1]["value"]
        rows.append(row(what, shown, "MB", f"title and text alone, {fields:.0f} MB", shown / fields))
    write(given.out, rows, given.videos)


if __name__ == "__main__":
    main()
