"""Write the results of a run: metrics, per-query values, ranking, pairs and scores."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcdt.data.datamodule import RankingDataModule
from dcdt.data.histories import count_watchers
from dcdt.data.splits import Split, warmth
from dcdt.data.types import Collection
from dcdt.evaluation.lists import LIST_METRICS, list_metrics
from dcdt.evaluation.pairs import best_f1_threshold, pair_metrics
from dcdt.models.query_batch import query_batch
from dcdt.models.ranking import MAX_STORED_SCORES, SideResult
from dcdt.models.recommender import Recommender
from dcdt.runs.folder import RunFolder
from dcdt.utils.errors import NotApplicable
from dcdt.utils.files import atomic_write, write_json, write_text

_BLANK = re.compile(r"\s")


def summarise(results: dict[str, SideResult]) -> dict[str, float]:
    """Mean of every metric of every side, tie rates, and the pair metrics at the threshold that validation chose."""
    summary: dict[str, float] = {}
    for side, result in results.items():
        for name, values in result.metrics.items():
            summary[f"{side}/{name}"] = float(values.double().mean())
        summary[f"{side}/n_queries"] = len(result.queries)
        summary[f"{side}/tie_rate"] = float(result.ties.double().mean())
    val_pairs = results["val"].pairs
    if val_pairs is not None:
        threshold = best_f1_threshold(*_columns(val_pairs))
        summary["val/pair_threshold"] = threshold
        for side in ("val", "test"):
            pairs = results[side].pairs
            if pairs is not None:
                pair_values = pair_metrics(*_columns(pairs), threshold)
                summary.update({f"{side}/pair_{name}": value for name, value in pair_values.items()})
    return summary


def summarise_lists(results: dict[str, SideResult], data: RankingDataModule) -> dict[str, float]:
    """Coverage, popularity and novelty (`list_metrics`) of every side, in a collection without questions."""
    if data.collection.has_questions:
        return {}
    try:
        watchers = count_watchers(data)
    except NotApplicable:
        return {}
    k, summary = data.ks[-1], dict[str, float]()
    for side, result in results.items():
        scores, rows = (part[:, :k].numpy() for part in result.top)
        values = list_metrics(rows, scores > -np.inf, *watchers, data.sides[side].n_candidates)
        summary |= {f"{side}/{name}@{k}": value for name, value in zip(LIST_METRICS, values, strict=True)}
    return summary


def write_results(
    folder: RunFolder, results: dict[str, SideResult], metrics: dict[str, float], data: RankingDataModule
) -> list[str]:
    """Write metrics.json, per_query.parquet, run.trec, pairs.parquet and scores.parquet.

    Returns:
        Notes for the user about what was left out.
    """
    collection, split, files = data.collection, data.split, folder.files
    write_json(files.metrics, metrics)
    _write_parquet(files.per_query, _per_query(results, data))
    write_text(files.ranking, _trec(results["test"], collection))
    if "val/pair_threshold" in metrics:
        _write_parquet(files.pairs, _pairs(results, metrics["val/pair_threshold"], data))
    scores = results["test"].scores
    if scores is None:
        n = len(results["test"].queries) * len(collection.videos)
        return [f"scores.parquet is left out: {n:,} scores are above its limit of {MAX_STORED_SCORES:,}."]
    _write_parquet(files.scores, _scores(results["test"].queries, scores, collection, split))
    return []


@torch.no_grad()
def write_moments(folder: RunFolder, model: Recommender, data: RankingDataModule) -> None:
    """Write moments.parquet: the second of a video that a test query asks about, and the start of its best passage.

    Nothing is written without moments.tsv, or where the model does not tell passages apart.
    """
    collection, tested, rows = data.collection, set(data.sides["test"].queries.tolist()), []
    for query, video, seconds in collection.moments:
        if query not in tested:
            continue
        scores = model.passage_scores(query_batch(collection, model.tables, torch.tensor([query])), video)
        if scores is not None:
            passages = collection.passages
            start = passages.starts[passages.offsets[video] + int(scores[0].argmax())]
            names = collection.queries.ids[query], collection.videos.ids[video]
            rows.append((*names, seconds, float(start), data.units[query]))
    rows = [row for row in rows if np.isfinite(row[3])]
    if rows:
        columns = ("query_id", "video_id", "seconds", "start", "unit")
        _write_parquet(folder.files.moments, pa.table(dict(zip(columns, zip(*rows, strict=True), strict=True))))


def _pairs(results: dict[str, SideResult], threshold: float, data: RankingDataModule) -> pa.Table:
    """The pair protocol of the test side: query_id, video_id, label, score, and whether the score is accepted."""
    pairs, scored_pairs = data.sides["test"].pairs, results["test"].pairs
    assert pairs is not None and scored_pairs is not None
    scores, labels = _columns(scored_pairs)
    queries, videos = data.collection.queries.ids, data.collection.videos.ids
    rows = data.sides["test"].queries[pairs[:, 0]]
    return pa.table(
        {
            "query_id": [queries[row] for row in rows.tolist()],
            "video_id": [videos[row] for row in pairs[:, 1].tolist()],
            "label": labels,
            "score": scores,
            "accepted": scores >= threshold,
        }
    )


def _columns(pairs: Tensor) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores (m,) and labels (m,) of pairs (m, 2)."""
    return pairs[:, 0].double().numpy(), pairs[:, 1].numpy() > 0.5


def _per_query(results: dict[str, SideResult], data: RankingDataModule) -> pa.Table:
    """Long format: query_id, split, fold, seed, kind (or school), warm, metric, value, unit (`query_units`)."""
    collection, split, tables = data.collection, data.split, []
    kinds = split.schools or [str(metadata.get("kind", "")) for metadata in collection.queries.metadata]
    for name, result in results.items():
        rows = result.queries.tolist()
        warm = warmth(split, split.sides[name], collection.positive_grade)
        for metric, values in result.metrics.items():
            tables.append(
                pa.table(
                    {
                        "query_id": [collection.queries.ids[row] for row in rows],
                        "split": [name] * len(rows),
                        "fold": pa.array([split.index] * len(rows), pa.int32()),
                        "seed": pa.array([data.seed] * len(rows), pa.int64()),
                        "kind": [kinds[row] for row in rows],
                        "warm": warm,
                        "metric": [metric] * len(rows),
                        "value": pa.array(values.double().numpy()),
                        "unit": [data.units[row] for row in rows],
                    }
                )
            )
    return pa.concat_tables(tables)


def _trec(result: SideResult, collection: Collection) -> str:
    """Lines `query Q0 video rank score dcdt`; blanks in ids are percent-encoded, since trec_eval splits on them."""
    videos = [_BLANK.sub("%20", name) for name in collection.videos.ids]
    lines = []
    for query, scores, rows in zip(result.queries.tolist(), *(part.tolist() for part in result.top), strict=True):
        name = _BLANK.sub("%20", collection.queries.ids[query])
        for rank, (score, row) in enumerate(zip(scores, rows, strict=True), start=1):
            if score == float("-inf"):
                break
            lines.append(f"{name} Q0 {videos[row]} {rank} {score:.9g} dcdt\n")
    return "".join(lines)


def _scores(queries: Tensor, scores: Tensor, collection: Collection, split: Split) -> pa.Table:
    """Score of every (test query, candidate video) pair with its label (1: positive)."""
    candidates = np.flatnonzero(split.test.candidates)
    labels = np.zeros(scores.shape, dtype=np.int8)
    positions = {row: position for position, row in enumerate(queries.tolist())}
    judged = split.test.judgments
    for query, video, grade in zip(judged.query.tolist(), judged.video.tolist(), judged.grade.tolist(), strict=True):
        labels[positions[query], video] = grade >= collection.positive_grade
    query_ids = pa.array([collection.queries.ids[row] for row in queries.tolist()])
    video_ids = pa.array([collection.videos.ids[row] for row in candidates.tolist()])
    n, m = len(query_ids), len(video_ids)
    return pa.table(
        {
            "query_id": pa.DictionaryArray.from_arrays(np.repeat(np.arange(n, dtype=np.int32), m), query_ids),
            "video_id": pa.DictionaryArray.from_arrays(np.tile(np.arange(m, dtype=np.int32), n), video_ids),
            "score": scores.numpy()[:, candidates].reshape(-1),
            "label": labels[:, candidates].reshape(-1),
        }
    )


def _write_parquet(path: Path, table: pa.Table) -> None:
    with atomic_write(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
