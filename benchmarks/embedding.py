"""How fast is embedding, beside what a user would write without this project?

    python benchmarks/embedding.py [--collections FOLDER] [--repeats 5] [--vectors 1000000] [--out FILE]

1. local: texts a second of the local embedder (ONNX Runtime and torch) and of plain `SentenceTransformer.encode` with
   its default batch size, on the same texts of mixed length and the same threads, interleaved.
2. openai: a server on this machine that answers after 50 ms, called by the embedder and by a sequential client.
3. cache: opening and looking up a million vectors of 1536 half floats (benchmarks/studies/cache.py).

Prints ratios and writes benchmarks/results/embedding.json.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from measured import Job, Row, interleaved, row, write
from measured import ratio as ratio_of

from dcdt.config import config_folder, validate
from dcdt.embeddings.config import LocalEmbedderConfig, OpenAIEmbedderConfig


def timed_by_others(job: Callable[[], object]) -> Job:
    """Drop the return value of a job, which `interleaved` would take for seconds."""

    def run() -> None:
        job()

    return run


def mixed_texts(collections: Path | None, n: int) -> list[str]:
    """Draw titles, descriptions and queries of the shipped collection, and of Khan maths and Cranfield if present."""
    from dcdt.data.beir import load_collection

    folders = [ROOT / "data" / "linear_algebra"]
    folders += [collections / name for name in ("khan_math", "cranfield")] if collections else []
    texts = []
    for folder in folders:
        held = load_collection(folder)
        texts += [*held.queries.texts, *held.videos.titles, *held.videos.texts]
    texts = list(dict.fromkeys(text for text in texts if text))
    return [texts[at] for at in np.random.default_rng(0).permutation(len(texts))[:n]]


def local(collections: Path | None, repeats: int, threads: int, n: int) -> list[Row]:
    """Compare the local embedder's two backends with plain sentence-transformers."""
    import torch
    from omegaconf import OmegaConf
    from sentence_transformers import SentenceTransformer

    from dcdt.embeddings.providers.local import LocalEmbedder
    from dcdt.embeddings.providers.local_models import model_folder
    from dcdt.embeddings.providers.onnx import OnnxEmbedder
    from dcdt.embeddings.providers.onnx_export import ensure_exported

    torch.set_num_threads(threads)
    held = OmegaConf.load(config_folder() / "embedder" / "local.yaml")
    config = validate(LocalEmbedderConfig, held, "embedder")
    texts = mixed_texts(collections, n)
    plain = SentenceTransformer(str(model_folder(config.package)), device="cpu")
    plain.max_seq_length = config.max_tokens
    onnx, torch_way = OnnxEmbedder(ensure_exported(config), config, threads), LocalEmbedder(config)
    single = LocalEmbedderConfig(**{**vars(config), "layer_weights": [1.0]})
    assert np.allclose(
        OnnxEmbedder(ensure_exported(single), single).embed(texts[:20]), plain.encode(texts[:20]), atol=1e-4
    )
    jobs = {
        "plain": lambda: plain.encode(texts, show_progress_bar=False),
        "onnx": lambda: onnx.embed(texts),
        "torch": lambda: torch_way.embed(texts),
    }
    seconds = interleaved({name: timed_by_others(job) for name, job in jobs.items()}, repeats)
    for name, found in seconds.items():
        print(f"{name}: {n / np.median(found):.0f} texts/s (median of {repeats}, {n} texts, {threads} threads)")
    against = f"SentenceTransformer.encode, {len(texts)} texts of mixed length, {threads} threads"
    rows = []
    for name, target in (("onnx", 1.5), ("torch", 1.0)):
        ratio = ratio_of(seconds, "plain", name)
        speed = len(texts) / float(np.median(seconds[name]))
        rows.append(row(f"local embedder by {name}", speed, "texts/s", against, ratio, f">= {target}", ratio >= target))
    return rows


def openai(repeats: int, n: int, latency: float = 0.05) -> list[Row]:
    """Compare the OpenAI embedder with a client that sends one request after the other."""
    from embeddings.loopback import Loopback
    from omegaconf import OmegaConf
    from openai import OpenAI

    from dcdt.embeddings.cache import VectorCache
    from dcdt.embeddings.fill import fill
    from dcdt.embeddings.providers import space_of

    os.environ["OPENAI_API_KEY"] = "none"
    texts = [f"What is video {at} about, and for whom?" for at in range(n)]
    with Loopback(latency=latency, cheap=True) as server:
        held = OmegaConf.merge(OmegaConf.load(config_folder() / "embedder" / "openai.yaml"), {"base_url": server.url})
        config = validate(OpenAIEmbedderConfig, held, "embedder")
        naive = OpenAI(base_url=server.url)

        def sequential(size: int, count: int) -> float:
            """Texts a second of a sequential client with `size` texts a request, on the first `count` texts."""
            started = time.perf_counter()
            for at in range(0, count, size):
                naive.embeddings.create(model=config.model, input=texts[at : at + size])
            return count / (time.perf_counter() - started)

        ours, one, hundred = [], [], []
        for _ in range(repeats):
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                fill(VectorCache(folder, space_of(config)), texts, config, progress=False)
                ours.append(n / (time.perf_counter() - started))
            one.append(sequential(1, min(n, 100)))
            hundred.append(sequential(100, min(n, 2000)))
    rows = []
    for name, found, target in (("one text a request", one, 10), ("100 texts a request", hundred, None)):
        ratio = float(np.median(np.array(ours) / np.array(found)))
        against = f"sequential client, {name}, {1000 * latency:.0f} ms latency, vectors stored on our side only"
        goal = f">= {target}" if target else "no target"
        rows.append(
            row("openai embedder", float(np.median(ours)), "texts/s", against, ratio, goal, ratio >= (target or 0))
        )
    return rows


def cache(n: int) -> list[Row]:
    """Measure the cache: absolute seconds, so on an idle machine only."""
    from studies.cache import LOOKUPS, measure

    found = measure("safetensors", n, tempfile.gettempdir())
    size = f"{n:,} x 1536 float16"
    return [
        row(f"open a cache of {size}", found["open"], "s", "limit", None, "< 1", found["open"] < 1),
        row(f"memory that opening adds, {size}", found["added"], "MiB", "limit", None, "<= 200", found["added"] <= 200),
        row(f"find {LOOKUPS:,} texts in {size}", found["find"], "s", "limit", None, "< 2", found["find"] < 2),
        row(f"vectors of {LOOKUPS:,} texts, {size}", found["vectors"], "s", "limit", None, "< 2", found["vectors"] < 2),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--collections", default=os.environ.get("DCDT_COLLECTIONS"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--texts", type=int, default=1500)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--parts", nargs="*", default=["local", "openai", "cache"])
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "embedding.json"))
    given = parser.parse_args()
    collections = Path(given.collections) if given.collections else None
    parts = {
        "local": lambda: local(collections, given.repeats, given.threads, given.texts),
        "openai": lambda: openai(given.repeats, 10 * given.texts),
        "cache": lambda: cache(given.vectors),
    }
    rows = [found for part in given.parts for found in parts[part]()]
    print("\n| question | value | ratio | target | holds | against |\n|---|---|---|---|---|---|")
    for found in rows:
        ratio = "" if found["ratio"] is None else f"{found['ratio']:.2f}"
        print(
            f"| {found['question']} | {found['value']:g} {found['unit']} | {ratio} | {found['target']} | "
            f"{'yes' if found['holds'] else 'NO'} | {found['against']} |"
        )
    write(given.out, rows, given.texts)


if __name__ == "__main__":
    main()
