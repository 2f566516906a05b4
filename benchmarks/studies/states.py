"""What do the states of an encoder's frozen layers cost? Seconds to make and to read them, and their size.

    python benchmarks/studies/states.py COLLECTION [--videos 1000 10000] [--threads 2]

Titles and descriptions of COLLECTION, repeated with a number in front until there are so many videos, by
`model=dcdt_encoder`'s defaults (two trained layers, title and text). Prints a row for each size.
"""

import argparse
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import torch
from omegaconf import OmegaConf

from dcdt.config import config_folder
from dcdt.data.beir import load_collection
from dcdt.data.types import Collection, Documents, Judgments
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.states import load_tokens


def catalogue(source: Documents, n: int) -> Collection:
    """A collection of n videos with texts like those of the source, and one question."""
    pairs = enumerate(islice(cycle(zip(source.titles, source.texts, strict=True)), n))
    titles, texts = zip(*((f"{at} {title}", f"{at} {text}") for at, (title, text) in pairs), strict=True)
    videos = Documents([f"v{at}" for at in range(n)], list(titles), list(texts), [{} for _ in titles])
    empty = torch.zeros(0, dtype=torch.int64).numpy()
    questions = Documents(["q"], [""], ["what is a matrix"], [{}])
    return Collection(Path("made"), "made", videos, questions, Judgments(empty, empty, empty.astype("f4")), {}, 1.0, [])


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("collection", type=Path)
    parser.add_argument("--videos", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    source = load_collection(given.collection).videos
    embedder = LocalEmbedderConfig(**OmegaConf.to_container(OmegaConf.load(config_folder() / "embedder/local.yaml")))  # type: ignore[arg-type]
    print("| videos | tokens | states, GB | made, s | read from the cache, s |\n|---|---|---|---|---|")
    for n in given.videos:
        collection, seconds = catalogue(source, n), []
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(2):
                started = time.perf_counter()
                table = load_tokens(collection, ["title", "text"], embedder, folder, 2, 1000.0, progress=False)
                seconds.append(time.perf_counter() - started)
        assert table.states is not None
        size = table.states.numel() * table.states.itemsize / 1e9
        print(f"| {n:,} | {len(table.ids):,} | {size:.2f} | {seconds[0]:.1f} | {seconds[1]:.1f} |", flush=True)


if __name__ == "__main__":
    main()
