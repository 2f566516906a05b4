"""Do 8-bit weights keep the quality of the local embedder, and what do they save?

    python benchmarks/int8.py FOLDER [--texts 200]

Quantises the exported model (dynamic int8 of ONNX Runtime), embeds a collection with both, and prints nDCG@10 and MRR
of the untrained cosine on the open three quarters, with the difference's interval, and the ratio of the speeds.
"""

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from omegaconf import OmegaConf
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch.nn.functional import normalize

from dcdt.config import LocalEmbedderConfig, config_folder, typed
from dcdt.data.collection import load_collection
from dcdt.data.datamodule import side_tensors
from dcdt.data.splits import Side, sealed
from dcdt.embedders.export import exported
from dcdt.embedders.onnx import MODEL, OnnxEmbedder
from dcdt.evaluation.ranking import judged_ranks, ranking_metrics, tie_order
from dcdt.evaluation.statistics import bootstrap_interval
from dcdt.files import read_json, write_json

TOLERANCE = 0.002  # of nDCG@10


def quality(collection: SimpleNamespace, embedder: OnnxEmbedder) -> dict[str, np.ndarray]:
    """Per-query MRR and nDCG@10 of the open queries, title and text vectors summed."""
    rows = np.unique(collection.positives.query)
    rows = np.array([row for row in rows.tolist() if not sealed(collection.queries.texts[row])])
    judged = collection.related.where(np.isin(collection.related.query, rows))
    side = side_tensors("open", Side(rows, np.ones(len(collection.videos), dtype=bool), judged), collection)
    title, text = (torch.from_numpy(embedder.embed(collection.field_texts(name))) for name in ("title", "text"))
    queries = torch.from_numpy(embedder.embed([collection.queries.texts[row] for row in rows.tolist()]))
    ranks = judged_ranks(queries @ normalize(title + text, dim=1).T, side.judged, tie_order(collection.videos.ids))
    metrics = ranking_metrics(ranks, side.grades, collection.positive_grade)
    return {name: metrics[name].double().numpy() for name in ("mrr", "ndcg@10")}


def main() -> None:
    """Print quality and speed of both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--texts", type=int, default=200)
    given = parser.parse_args()
    config = typed(LocalEmbedderConfig, OmegaConf.load(config_folder() / "embedder" / "local.yaml"), "embedder")
    source = exported(config)
    collection = load_collection(given.folder)
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder)
        quantize_dynamic(source / MODEL, small / MODEL, weight_type=QuantType.QInt8)
        write_json(small / "recipe.json", read_json(source / "recipe.json"))
        (small / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
        embedders = {"float32": OnnxEmbedder(source, config), "int8": OnnxEmbedder(small, config)}
        found = {name: quality(collection, embedder) for name, embedder in embedders.items()}
        texts = collection.videos.texts[: given.texts]
        seconds: dict[str, list[float]] = {name: [] for name in embedders}
        for _ in range(3):
            for name, embedder in embedders.items():
                started = time.perf_counter()
                embedder.embed(texts)
                seconds[name].append(time.perf_counter() - started)
        sizes = [path.stat().st_size / 2**20 for path in (source / MODEL, small / MODEL)]
    for metric in ("mrr", "ndcg@10"):
        gap = found["int8"][metric] - found["float32"][metric]
        low, high = bootstrap_interval(gap)
        means = " and ".join(f"{name} {found[name][metric].mean():.4f}" for name in found)
        print(f"{collection.name}, {len(gap)} queries, {metric}: {means}, {gap.mean():+.4f} [{low:+.4f}, {high:+.4f}]")
    held = abs(np.mean(found["int8"]["ndcg@10"] - found["float32"]["ndcg@10"])) <= TOLERANCE
    print(f"nDCG@10 holds to {TOLERANCE}: {'yes' if held else 'no'}")
    ratio = np.median(np.array(seconds["float32"]) / np.array(seconds["int8"]))
    print(f"int8 is {ratio:.2f} times as fast; {sizes[0]:.0f} MiB against {sizes[1]:.0f} MiB")


if __name__ == "__main__":
    main()
