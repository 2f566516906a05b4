"""Do 8-bit weights keep the quality of the local embedder, and what do they save?

    python benchmarks/int8.py FOLDER [--texts 200]

Two ways: dynamic int8 of ONNX Runtime for questions and videos alike, and weights in blocks of 128 with a scale each
(MatMulNBits) for questions alone, over the videos' float32 vectors. Embeds a collection with each, and prints nDCG@10
and MRR of the untrained cosine on the open three quarters, with the difference's interval, and the ratio of the speeds,
of the first texts in batches and of the questions one by one.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import torch
from measured import interleaved, ratio
from omegaconf import OmegaConf
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch.nn.functional import normalize

from dcdt.config import LocalEmbedderConfig, config_folder, typed
from dcdt.data.collection import load_collection
from dcdt.data.datamodule import side_tensors
from dcdt.data.splits import Side, sealed
from dcdt.embedders.export import exported
from dcdt.embedders.onnx import MODEL, RECIPE, TOKENIZER, OnnxEmbedder
from dcdt.evaluation.ranking import judged_ranks, ranking_metrics, tie_order
from dcdt.evaluation.statistics import bootstrap_interval
from dcdt.files import read_json, write_json

TOLERANCE = 0.002  # of nDCG@10
ONE_BY_ONE = 300  # questions


def quality(collection: SimpleNamespace, asks: OnnxEmbedder, shows: OnnxEmbedder) -> dict[str, np.ndarray]:
    """Per-query MRR and nDCG@10 of the open queries, title and text vectors summed."""
    rows = np.unique(collection.positives.query)
    rows = np.array([row for row in rows.tolist() if not sealed(collection.queries.texts[row])])
    judged = collection.related.where(np.isin(collection.related.query, rows))
    side = side_tensors("open", Side(rows, np.ones(len(collection.videos), dtype=bool), judged), collection)
    title, text = (torch.from_numpy(shows.embed(collection.field_texts(name))) for name in ("title", "text"))
    queries = torch.from_numpy(asks.embed([collection.queries.texts[row] for row in rows.tolist()]))
    ranks = judged_ranks(queries @ normalize(title + text, dim=1).T, side.judged, tie_order(collection.videos.ids))
    metrics = ranking_metrics(ranks, side.grades, collection.positive_grade)
    return {name: metrics[name].double().numpy() for name in ("mrr", "ndcg@10")}


def quantised(source: Path, folder: Path, config: LocalEmbedderConfig, blocks: bool) -> OnnxEmbedder:
    """The exported model with 8-bit weights, in a folder of its own."""
    if blocks:
        made = MatMulNBitsQuantizer(
            onnx.load(source / MODEL), bits=8, block_size=128, is_symmetric=True, accuracy_level=4
        )
        made.process()
        onnx.save(made.model.model, folder / MODEL)
    else:
        quantize_dynamic(source / MODEL, folder / MODEL, weight_type=QuantType.QInt8)
    write_json(folder / RECIPE, read_json(source / RECIPE))
    (folder / TOKENIZER).write_bytes((source / TOKENIZER).read_bytes())
    return OnnxEmbedder(folder, config)


def times_as_fast(embedders: dict[str, OnnxEmbedder], lists: list[list[str]]) -> dict[str, float]:
    """How many times as fast as float32 each embeds the lists, one call a list."""

    def job(embedder: OnnxEmbedder) -> None:
        for texts in lists:
            embedder.embed(texts)

    seconds = interleaved({name: partial(job, embedder) for name, embedder in embedders.items()}, repeats=3, warm=0)
    return {name: ratio(seconds, "float32", name) for name in embedders}


def main() -> None:
    """Print quality and speed of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--texts", type=int, default=200)
    given = parser.parse_args()
    config = typed(LocalEmbedderConfig, OmegaConf.load(config_folder() / "embedder" / "local.yaml"), "embedder")
    source = exported(config)
    collection = load_collection(given.folder)
    with tempfile.TemporaryDirectory() as folder:
        embedders = {"float32": OnnxEmbedder(source, config)}
        for name in ("int8", "blocks"):
            (Path(folder) / name).mkdir()
            embedders[name] = quantised(source, Path(folder) / name, config, name == "blocks")
        whole = embedders["float32"]
        found = {
            "float32": quality(collection, whole, whole),
            "int8": quality(collection, embedders["int8"], embedders["int8"]),
            "blocks": quality(collection, embedders["blocks"], whole),
        }
        batched = times_as_fast(embedders, [list(collection.videos.texts[: given.texts])])
        alone = times_as_fast(embedders, [[text] for text in collection.queries.texts[:ONE_BY_ONE]])
    for name in ("int8", "blocks"):
        for metric in ("mrr", "ndcg@10"):
            gap = found[name][metric] - found["float32"][metric]
            low, high = bootstrap_interval(gap)
            means = f"{found[name][metric].mean():.4f} against {found['float32'][metric].mean():.4f}"
            told = f"{collection.name}, {len(gap)} queries, {name}, {metric}: {means}"
            print(f"{told}, {gap.mean():+.4f} [{low:+.4f}, {high:+.4f}]")
        held = abs(np.mean(found[name]["ndcg@10"] - found["float32"]["ndcg@10"])) <= TOLERANCE
        print(
            f"{name}: nDCG@10 holds to {TOLERANCE}: {'yes' if held else 'no'}; "
            f"{batched[name]:.2f} times as fast in batches, {alone[name]:.2f} times question by question"
        )


if __name__ == "__main__":
    main()
