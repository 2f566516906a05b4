"""What is a model that knows Chinese worth on Chinese questions, and what does it cost on English ones?

    python benchmarks/studies/languages.py

Untrained cosine (title and text vectors summed) on linear_algebra by `embedder=local` and `embedder=multilingual`: the
open questions in English and the slice in Chinese, with 95 % intervals by units, and of the difference.
"""

import numpy as np
import torch
from omegaconf import OmegaConf
from torch.nn.functional import normalize

from dcdt.config import config_folder, validate
from dcdt.config.registry import GROUPS
from dcdt.data.beir import load_collection
from dcdt.data.datamodule import side_tensors
from dcdt.data.splits import Side, is_sealed
from dcdt.data.units import query_units
from dcdt.embeddings.providers import make_embedder
from dcdt.evaluation.ranking import judged_ranks, ranking_metrics, tie_order
from dcdt.evaluation.statistics import mean_interval

NAMES = ("local", "multilingual")


def main() -> None:
    """Print one table."""
    conf = config_folder()
    collection = load_collection(conf.parent / "data" / "linear_algebra")
    chinese = collection.slice_rows()["zh"]
    english = np.setdiff1d(np.unique(collection.positives.query), chinese)
    english = np.array([row for row in english.tolist() if not is_sealed(collection.queries.texts[row])])
    print("| questions | embedder | MRR | nDCG@10 | MRR minus local |\n|---|---|---|---|---|")
    embedders = {
        name: make_embedder(
            validate(GROUPS["embedder"][name].schema, OmegaConf.load(conf / "embedder" / f"{name}.yaml"), name)
        )
        for name in NAMES
    }
    for language, rows in (("English", english), ("Chinese", chinese)):
        judged = collection.related.where(np.isin(collection.related.query, rows))
        side = side_tensors("open", Side(rows, np.ones(len(collection.videos), dtype=bool), judged), collection)
        every = query_units(collection, tie_order(collection.videos.ids).numpy())
        reference, units = None, [every[row] for row in rows.tolist()]
        for name, embedder in embedders.items():
            title, text = (torch.from_numpy(embedder.embed(collection.field_texts(part))) for part in ("title", "text"))
            queries = torch.from_numpy(embedder.embed([collection.queries.texts[row] for row in rows.tolist()]))
            ranks = judged_ranks(
                queries @ normalize(title + text, dim=1).T, side.judged, tie_order(collection.videos.ids)
            )
            found = ranking_metrics(ranks, side.grades, collection.positive_grade)
            mrr, ndcg = found["mrr"].double().numpy(), found["ndcg@10"].double().numpy()
            reference = mrr if reference is None else reference
            low, high = mean_interval(mrr, units, (0.0, 1.0))
            gap = mean_interval(mrr - reference, units)
            apart = "" if name == NAMES[0] else f"{(mrr - reference).mean():+.3f} [{gap[0]:+.3f}, {gap[1]:+.3f}]"
            cells = f"{mrr.mean():.3f} [{low:.3f}, {high:.3f}] | {ndcg.mean():.3f} | {apart}"
            print(f"| {language} ({len(rows)}) | {name} | {cells} |")


if __name__ == "__main__":
    main()
