"""Do 8-bit weights keep the quality of the local embedder, and what do they save?

    python benchmarks/int8.py FOLDER [--texts 200]

Dynamic int8 of ONNX Runtime as it comes, for questions and videos alike, and the two ways of
`dcdt.embeddings.providers.eight_bit` for questions alone, over the videos' float32 vectors. Embeds a collection with
each, and prints nDCG@10 and MRR of the
untrained cosine on the open three quarters, with the difference's interval, how alike the questions' vectors are, and
the ratio of the speeds, of the first texts in batches and of the questions one by one. The rows of nDCG@10 and of the
speeds are merged into benchmarks/results/int8.json.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from measured import RESULTS, interleaved, merge, ratio, row
from omegaconf import OmegaConf
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch.nn.functional import normalize

from dcdt.config import config_folder, validate
from dcdt.data.beir import load_collection
from dcdt.data.datamodule import side_tensors
from dcdt.data.splits import Side, sealed
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers.eight_bit import WAYS, quantise
from dcdt.embeddings.providers.onnx import MODEL, RECIPE, TOKENIZER, OnnxEmbedder
from dcdt.embeddings.providers.onnx_export import exported
from dcdt.evaluation.ranking import judged_ranks, ranking_metrics, tie_order
from dcdt.evaluation.statistics import bootstrap_interval
from dcdt.utils.files import read_json, write_json

OUT = RESULTS / "int8.json"
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


def quantised(source: Path, folder: Path, config: LocalEmbedderConfig, name: str, titles: list[str]) -> OnnxEmbedder:
    """The exported model with 8-bit weights, in a folder of its own."""
    folder.mkdir()
    if name in WAYS:
        quantise(source, folder / MODEL, OnnxEmbedder(source, config), titles, name)
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
    config = validate(LocalEmbedderConfig, OmegaConf.load(config_folder() / "embedder" / "local.yaml"), "embedder")
    source = exported(config)
    collection = load_collection(given.folder)
    with tempfile.TemporaryDirectory() as folder:
        embedders = {"float32": OnnxEmbedder(source, config)}
        titles = collection.field_texts("title")
        for name in ("int8", *WAYS):
            embedders[name] = quantised(source, Path(folder) / name, config, name, titles)
        whole = embedders["float32"]
        found = {
            "float32": quality(collection, whole, whole),
            "int8": quality(collection, embedders["int8"], embedders["int8"]),
            **{name: quality(collection, embedders[name], whole) for name in WAYS},
        }
        batched = times_as_fast(embedders, [list(collection.videos.texts[: given.texts])])
        asked = collection.queries.texts[:ONE_BY_ONE]
        alone = times_as_fast(embedders, [[text] for text in asked])
        cosines = {name: (embedder.embed(asked) * whole.embed(asked)).sum(1) for name, embedder in embedders.items()}
    rows = []
    for name in ("int8", *WAYS):
        for metric in ("mrr", "ndcg@10"):
            gap = found[name][metric] - found["float32"][metric]
            low, high = bootstrap_interval(gap)
            means = f"{found[name][metric].mean():.4f} against {found['float32'][metric].mean():.4f}"
            interval = f"{gap.mean():+.4f} [{low:+.4f}, {high:+.4f}]"
            print(f"{collection.name}, {len(gap)} queries, {name}, {metric}: {means}, {interval}")
        value, base = found[name]["ndcg@10"].mean(), found["float32"]["ndcg@10"].mean()
        what = f"{name}, {collection.name}, {len(gap)} questions"
        against = f"float32 {base:.4f}, difference {interval}; cosine to it {cosines[name].mean():.4f}"
        lost = f"loses at most {TOLERANCE}"
        rows.append(row(f"{what}: nDCG@10", value, "", against, None, lost, value - base >= -TOLERANCE))
        against = f"float32, one question after the other; {batched[name]:.2f} in batches"
        rows.append(row(f"{what}: times as fast", alone[name], "", against))
    merge(OUT, rows)


if __name__ == "__main__":
    main()
