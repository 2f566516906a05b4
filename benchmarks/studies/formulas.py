"""What are tokens of formulas worth to BM25, and spoken formulas to an embedder?

    python benchmarks/studies/formulas.py [FOLDER ...]

Untrained models on the open queries in the collection's language, all at once: `zero_shot`, `bm25` and the even sum
of their z-scores. `linear_algebra` is always there, with its notation queries apart; khan_exercises also with the text
of the exercise, which holds its LaTeX. Differences to the texts as written have 95 % intervals by units. `every symbol`
makes each letter, number, command and operator a token.
"""

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import rank_bm25
import torch
from omegaconf import OmegaConf
from spoken import speak_formulas
from torch import Tensor
from torch.nn.functional import normalize

from dcdt.config import config_folder, validate
from dcdt.config.paths import cache_root
from dcdt.data.beir import load_collection
from dcdt.data.datamodule import SideTensors, side_tensors
from dcdt.data.formulas import split_formulas
from dcdt.data.splits import Side, is_sealed
from dcdt.data.tokens import tokenizer
from dcdt.data.types import Collection, Documents, join_fields
from dcdt.data.units import query_units
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.tables import load_tables
from dcdt.evaluation.fusion import convex_sum
from dcdt.evaluation.ranking import judged_ranks, ranking_metrics, tie_order
from dcdt.evaluation.statistics import mean_interval
from dcdt.models.components import z_scores

SYMBOL = re.compile(r"\\[A-Za-z]+|[A-Za-z]|\d+|[-=+*/<>|!^_']")


def every_symbol(text: str) -> list[str]:
    """Words, and the symbols of formulas one by one."""
    formulas = (part for is_formula, part in split_formulas(text) if is_formula)
    return tokenizer(stop_words=True)(text) + [f"${symbol}" for part in formulas for symbol in SYMBOL.findall(part)]


def bm25_scores(collection: Collection, rows: list[int], tokenize: Callable[[str], list[str]]) -> Tensor:
    """Score queries by BM25 as model=bm25 does, (Q, N)."""
    texts = join_fields([collection.field_texts(name) for name in ("title", "text")])
    model = rank_bm25.BM25Okapi([tokenize(text) or [""] for text in texts], k1=1.5, b=0.75)
    words = [[word for word in tokenize(collection.queries.texts[row]) if word in model.idf] for row in rows]
    return torch.from_numpy(np.stack([model.get_scores(query) for query in words])).float()


def read_aloud(documents: Documents) -> Documents:
    """Documents with their formulas as they are read aloud."""
    titles, texts = ([speak_formulas(text) for text in column] for column in (documents.titles, documents.texts))
    return replace(documents, titles=titles, texts=texts)


def cosines(collection: Collection, rows: list[int], spoken: bool) -> Tensor:
    """Score queries as model=zero_shot does, (Q, N)."""
    if spoken:
        videos, queries = read_aloud(collection.videos), read_aloud(collection.queries)
        collection = replace(collection, videos=videos, queries=queries)
    values = OmegaConf.load(config_folder() / "embedder" / "local.yaml")
    config = validate(LocalEmbedderConfig, values, "embedder")
    tables = load_tables(collection, ["title", "text"], config, str(cache_root()), progress=False)
    return tables.queries[rows] @ normalize(tables.frozen, dim=1).T


def variants(collection: Collection, rows: list[int]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield model, treatment and scores; what is as written comes first."""
    written, spoken = cosines(collection, rows, False), cosines(collection, rows, True)
    words, tokens, symbols = (
        bm25_scores(collection, rows, split)
        for split in (tokenizer(stop_words=True), tokenizer(stop_words=True, formulas=True), every_symbol)
    )
    yield from (("zero_shot", "as written", written), ("zero_shot", "spoken", spoken))
    yield from (("bm25", "as written", words), ("bm25", "tokens", tokens), ("bm25", "every symbol", symbols))
    parts = (("as written", words, written), ("tokens", tokens, written), ("spoken", words, spoken))
    for name, first, second in (*parts, ("tokens and spoken", tokens, spoken)):
        yield "hybrid", name, convex_sum(z_scores(first, None), z_scores(second, None), 0.5)


def metric_values(scores: Tensor, side: SideTensors, collection: Collection) -> tuple[np.ndarray, np.ndarray]:
    """MRR and nDCG@10 of each query, (Q,) each."""
    ranks = judged_ranks(scores, side.judged, tie_order(collection.videos.ids))
    values = ranking_metrics(ranks, side.grades, collection.positive_grade)
    return values["mrr"].double().numpy(), values["ndcg@10"].double().numpy()


def with_exercises(collection: Collection) -> Collection:
    """The collection with the text of the exercise in each query."""
    texts = [
        f"{text} {metadata.get('question', '')}".strip()
        for text, metadata in zip(collection.queries.texts, collection.queries.metadata, strict=True)
    ]
    return replace(collection, queries=replace(collection.queries, texts=texts))


def main() -> None:
    """Print one table."""
    print("| queries | with formula | model | treatment | MRR | nDCG@10 | MRR minus as written |")
    print("|---|---|---|---|---|---|---|")
    for folder in [config_folder().parent / "data" / "linear_algebra", *map(Path, sys.argv[1:])]:
        collection = load_collection(folder)
        others = np.concatenate([np.zeros(0, dtype=np.int64), *collection.slice_rows().values()])
        rows = np.setdiff1d(np.unique(collection.positives.query), others)
        rows = np.array([row for row in rows.tolist() if not is_sealed(collection.queries.texts[row])])
        judged = collection.related.where(np.isin(collection.related.query, rows))
        side = side_tensors("open", Side(rows, np.ones(len(collection.videos), dtype=bool), judged), collection)
        every = query_units(collection, tie_order(collection.videos.ids).numpy())
        units = np.array([every[row] for row in rows.tolist()])
        kinds = np.array([collection.queries.metadata[row].get("kind") == "notation" for row in rows.tolist()])
        read = {folder.name: collection}
        if any("question" in metadata for metadata in collection.queries.metadata):
            read[f"{folder.name} with the exercise"] = with_exercises(collection)
        for name, texts in read.items():
            has = np.array([any(one for one, _ in split_formulas(texts.queries.texts[row])) for row in rows.tolist()])
            subsets = {name: np.ones(len(rows), dtype=bool), **({f"{name}, notation": kinds} if kinds.any() else {})}
            reference = {}
            for model, treatment, scores in variants(texts, rows.tolist()):
                mrr, ndcg = metric_values(scores, side, collection)
                change = mrr - reference.setdefault(model, mrr)
                for subset, keep in subsets.items():
                    low, high = mean_interval(change[keep], units[keep].tolist())
                    gap = "" if treatment == "as written" else f"{change[keep].mean():+.3f} [{low:+.3f}, {high:+.3f}]"
                    cells = f"{model} | {treatment} | {mrr[keep].mean():.3f} | {ndcg[keep].mean():.3f} | {gap}"
                    print(f"| {subset} ({keep.sum()}) | {has[keep].sum()} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
