"""Run folders written by hand: what `dcdt.run` leaves behind, in milliseconds and with known numbers."""

import json
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dcdt.data.beir import load_collection


def every(n):
    """Units of n consecutive queries."""
    return lambda query: f"u{int(query.lstrip('vq')) // n}"


MODELS = {
    "dcdt": {"fields": ["title", "text"], "width": 256, "dropout": 0.2, "attention": "none", "fusion": "concat"},
    "single_tower": {"fields": ["title", "text"], "width": 256, "dropout": 0.2},
    "zero_shot": {"fields": ["title", "text"], "whiten": "none"},
    "bm25": {"variant": "okapi", "k1": 1.5, "b": 0.75},
    "collaborative": {"variant": "als", "factors": 64},
    "hybrid": {"first": "bm25", "second": "zero_shot"},
}
TRAINED = ("dcdt", "single_tower")
KINDS = ("keyword", "question", "beginner")
N_VIDEOS, PER_FOLD = 12, 12


def query_ids(fold, n=PER_FOLD):
    return [f"q{fold * n + at}" for at in range(n)]


def config_of(model, fold, seed, overrides):
    config = {
        "model": {"name": model, **MODELS[model]},
        "loss": {"name": "contrastive", "margin": 1.0, "squared": False},
        "sampler": {"name": "hard", "negatives": 4, "pool_fraction": 0.3, "pool_limit": 200},
        "data": {"name": "files", "path": "/nowhere/toy", "cache": "/nowhere/cache"},
        "split": {"name": "folds", "index": fold, "n_folds": 10, "part": "open", "train_queries": None},
        "embedder": {"name": "local", "package": "p", "layer_weights": [1.0], "batch_tokens": 8, "max_tokens": 8},
        "trainer": {"name": "auto", "accelerator": "auto", "max_epochs": 3},
        "logger": {"name": "csv"},
        "callbacks": {"patience": 15, "collapse_cosine": 0.99, "progress": False},
        "experiment_name": None,
        "seed": seed,
        "trials": 1,
        "batch_size": 16,
        "primary_metric": "val/mrr",
        "ks": [1, 5, 10],
        "optimizer": {"lr": 0.001, "weight_decay": 0.01, "schedule": "cosine"},
        "outputs": "/nowhere/outputs",
    }
    for place, value in overrides.items():
        *groups, key = place.split(".")
        part = config
        for group in groups:
            part = part[group]
        part[key] = value
    return config


def write_json(path, value):
    path.write_text(json.dumps(value))


def write_run(
    sweep,
    model="dcdt",
    fold=0,
    seed=0,
    *,
    skill=1.0,
    status="finished",
    error="",
    n=PER_FOLD,
    ranks=None,
    overrides=None,
    provenance=None,
    trials=1,
    kinds=KINDS,
    extra=(),
    name=None,
    collection=None,
    units=lambda query: query,
):
    """Write one run's folder and return it.

    Args:
        skill: how far positives score above negatives and how early they rank.
        status: as in status.json; `half-written` is a running one whose files are missing.
        ranks: rank of the first positive for each test query, drawn from `skill` where None.
        overrides: dotted configuration keys and values.
        provenance: keys to change there.
        extra: names of extra sides.
        collection: a BEIR folder whose fingerprint and path the run carries.
        units: the unit of a query's id; None leaves them out, as version 0.1 did.
    """
    overrides = overrides or {}
    changed = ",".join(f"{key}={value}" for key, value in overrides.items())
    folder = Path(sweep) / (name or f"model={model},fold={fold},seed={seed},{changed}".rstrip(",").replace("/", "-"))
    folder.mkdir(parents=True)
    if collection:
        overrides = {**overrides, "data.path": str(collection)}
    (folder / "config.yaml").write_text(yaml.safe_dump(config_of(model, fold, seed, overrides), sort_keys=False))
    shown = "running" if status == "half-written" else status
    write_json(folder / "status.json", {"status": shown, **({"error": error} if error else {})})
    if status != "finished":
        return folder
    rng = np.random.default_rng([zlib.crc32(model.encode()), int(skill * 1000), fold, seed])
    write_json(
        folder / "provenance.json",
        {
            "commit": "0123456789abcdef",
            "dirty": False,
            "code": "c0de",
            "collection": "toy",
            "collection_fingerprint": load_collection(collection).fingerprint if collection else "f00d",
            "embeddings": "space",
            "split_fingerprint": f"split-{fold}",
            "simulated": [],
            "queries": {"train": 7 * n, "val": 2 * n, "test": n, "left_out": 0},
            "candidates": {"val": N_VIDEOS, "test": N_VIDEOS} | dict.fromkeys(extra, N_VIDEOS),
            **(provenance or {}),
        },
    )
    rows, trec = [], []
    sides = {"val": [f"v{name}" for name in query_ids(fold, n)], "test": query_ids(fold, n)}
    sides |= {side: [f"{side}{at}" for at in range(8)] for side in extra}
    for side, ids in sides.items():
        found = ranks if ranks is not None and side == "test" else rng.geometric(min(0.9, 0.15 + 0.2 * skill), len(ids))
        for at, (query, rank) in enumerate(zip(ids, found, strict=True)):
            rank = min(int(rank), N_VIDEOS)
            values = {"mrr": 1 / rank, "map": 1 / rank}
            for k in (1, 5, 10):
                hit = float(rank <= k)
                values |= {f"recall@{k}": hit, f"ndcg@{k}": hit / np.log2(rank + 1)}
            kind = kinds[at % len(kinds)] if kinds else ""
            warm = "warm" if at % 3 else "cold"
            rows += [(query, side, fold, seed, kind, warm, metric, value) for metric, value in values.items()]
            if side == "test":
                order = [f"v{(at + place - rank + 1) % N_VIDEOS}" for place in range(N_VIDEOS)]
                trec += [f"{query} Q0 {video} {place} {-place} dcdt\n" for place, video in enumerate(order, start=1)]
    columns = ("query_id", "split", "fold", "seed", "kind", "warm", "metric", "value")
    table = pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True)))
    if units is not None:
        table = table.append_column("unit", pa.array([units(name) for name in table["query_id"].to_pylist()]))
    pq.write_table(table, folder / "per_query.parquet")
    (folder / "run.trec").write_text("".join(trec))
    labels = np.tile([True, False, False, False, False], n)
    scores = rng.normal(size=5 * n) + skill * labels
    pairs = {
        "query_id": np.repeat(sides["test"], 5).tolist(),
        "video_id": [f"v{at % N_VIDEOS}" for at in range(5 * n)],
        "label": labels,
        "score": scores,
        "accepted": scores >= 0.5,
    }
    pq.write_table(pa.table(pairs), folder / "pairs.parquet")
    write_json(folder / "metrics.json", {"val/mrr": 0.5, "val/pair_threshold": 0.5})
    epochs = 3 + seed if model in TRAINED else 0
    cost = {
        "parameters": 1000 * epochs,
        "training_seconds": float(rng.uniform(1, 2)),
        "epochs": epochs,
        "best_epoch": 1,
        "ms_per_query": float(rng.uniform(0, 1)),
        "decoupled": model != "single_tower",
    }
    write_json(folder / "cost.json", cost)
    if epochs:
        lines = [f"{epoch},{0.5 / (epoch + 1) + 0.01 * fold},{0.1 * epoch}" for epoch in range(epochs)]
        (folder / "history.csv").write_text("\n".join(["epoch,train/loss,val/mrr", *lines]) + "\n")
    if trials > 1:
        write_json(folder / "tuning.json", {"trials": [{}] * trials, "chosen": {}})
    return folder


def write_comparison(folder):
    """A finished sweep of three models over four folds; dcdt with two seeds."""
    for fold in range(4):
        write_run(folder, "zero_shot", fold, skill=1.0)
        write_run(folder, "bm25", fold, skill=0.4)
        for seed in (0, 1):
            write_run(folder, "dcdt", fold, seed, skill=2.0)
    return folder
