"""Time and memory of a large collection: `python benchmarks/studies/large.py [--documents 200000] [--folder FOLDER]`.

Made texts of Zipf's law (as long as abstracts, half of them with a title) and random vectors, so that no embedder is
needed: what is measured is reading, splitting, BM25 by bm25s and the run around it, each in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from dcdt.config import config_folder, validate
from dcdt.embeddings.cache import VectorCache
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers import space_of

WORDS, LENGTH, QUERIES, CHUNK = 60_000, 80, 1_000, 20_000
LOADING = "import sys; from dcdt.data.beir import load_collection; print(len(load_collection(sys.argv[1]).videos))"


def make(folder: Path, documents: int) -> None:
    """Write corpus, queries, judgments and a vector for each text."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{n:x}" for n in range(WORDS)])
    space = space_of(
        validate(LocalEmbedderConfig, OmegaConf.load(config_folder() / "embedder" / "local.yaml"), "embedder")
    )
    cache = VectorCache(folder / "embeddings", space)
    (folder / "qrels").mkdir(parents=True)
    draw = lambda n: " ".join(words[np.minimum(rng.zipf(1.2, n), WORDS) - 1])  # noqa: E731
    with (folder / "corpus.jsonl").open("w") as lines:
        for start in range(0, documents, CHUNK):
            texts = []
            for n in range(start, min(start + CHUNK, documents)):
                title = f"{draw(6)} {n}" if n % 2 else ""
                text = f"{draw(int(rng.integers(LENGTH // 2, LENGTH * 2)))} {n}"
                lines.write(json.dumps({"_id": n, "title": title, "text": text}) + "\n")
                texts += [text, *([title] if title else [])]
            _add(cache, texts, rng)
    asked = [f"{draw(8)} {n}" for n in range(QUERIES)]
    records = [json.dumps({"_id": f"q{n}", "text": text}) + "\n" for n, text in enumerate(asked)]
    (folder / "queries.jsonl").write_text("".join(records))
    rows = [f"q{n}\t{video}\t{1 + video % 3}\n" for n in range(QUERIES) for video in rng.choice(documents, 5, False)]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    _add(cache, asked, rng)


def _add(cache: VectorCache, texts: list[str], rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((len(texts), cache.space.dimensions), dtype=np.float32)
    cache.add(texts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def measured(name: str, *command: str) -> None:
    """Run a command and print its wall time and its largest memory."""
    started = time.perf_counter()
    child = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"{name}: exit {status}")
    print(f"| {name} | {seconds:.1f} s | {usage.ru_maxrss / 2**20:.2f} GiB |", flush=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--folder", type=Path, default=Path("outputs/large"))
    given = parser.parse_args()
    folder = given.folder / f"beir_{given.documents}"
    if not folder.exists():
        make(folder, given.documents)
    run = ["-m", "dcdt.run", "data=files", f"data.path={folder}", f"outputs={given.folder / 'runs'}", "logger=none"]
    print("| what | wall time | memory, most |\n|---|---|---|")
    measured("load_collection", "-c", LOADING, str(folder))
    measured("dcdt.collection check", "-m", "dcdt.collection", "check", str(folder))
    measured("dcdt.run model=bm25 model.backend=bm25s", *run, "model=bm25", "model.backend=bm25s")
    measured("dcdt.run model=zero_shot", *run, "model=zero_shot")


if __name__ == "__main__":
    main()
