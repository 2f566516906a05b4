import json
from dataclasses import replace

import ir_measures
import numpy as np
import pyarrow.parquet as pq
import pytest
from support import make_collection, prepare, quiet_trainer

from baselines.config import ZeroShotConfig
from baselines.zero_shot import ZeroShot
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.histories import count_watchers
from dcdt.data.splits import warmth
from dcdt.evaluation.lists import LIST_METRICS
from dcdt.evaluation.pairs import best_f1_threshold
from dcdt.runs.folder import RunFolder
from dcdt.runs.results import _columns, summarise, summarise_lists, write_results

SPLITS = {"query": SplitConfig("query", 3, 10, "all"), "video": SplitConfig("video", 1, 10, "all")}


def scored(small, split):
    """Zero-shot tested on a split: its data and results."""
    made = prepare(small, SPLITS[split])
    data = RankingDataModule(made.collection, made.split, made.pairs, None, 16, 7, (1, 2))
    model = ZeroShot(ZeroShotConfig("zero_shot", ["title", "text"], "none"), made.tables)
    quiet_trainer().test(model, datamodule=data, verbose=False)
    return data, model.results


@pytest.fixture(params=list(SPLITS))
def run(request, small, tmp_path):
    """A run's folder with what was written into it."""
    data, results = scored(small, request.param)
    metrics = summarise(results)
    assert write_results(RunFolder(tmp_path), results, metrics, data) == []
    return tmp_path, data, results, metrics


def test_metrics_are_the_means_of_every_side(run):
    folder, data, results, metrics = run
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert {name.split("/")[0] for name in metrics} == set(data.sides)
    for side, result in results.items():
        assert metrics[f"{side}/mrr"] == pytest.approx(np.mean(result.metrics["mrr"].tolist()))
        assert metrics[f"{side}/n_queries"] == len(result.queries)
        assert metrics[f"{side}/tie_rate"] == 0


def without_questions(folder, n_videos=20):
    """A collection of 40 learners who watched six videos each, and the results of the mean of their vectors."""
    make_collection(folder, n_videos=n_videos)
    (folder / "queries.jsonl").unlink()
    rng = np.random.default_rng(0)
    lines = "".join(
        f"u{user},v{item},{user + 10 * at}\n"
        for user in range(40)
        for at, item in enumerate(rng.permutation(n_videos)[:6])
    )
    (folder / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{lines}")
    made = prepare(folder, SplitConfig("time", 0, 10, "all"), pairs=False)
    data = RankingDataModule(made.collection, made.split, {}, None, 16, 7, (1, 3))
    model = ZeroShot(ZeroShotConfig("zero_shot", ["title", "text"], "none", "mean"), made.tables)
    quiet_trainer().test(model, datamodule=data, verbose=False)
    return data, model.results


def test_lists_are_measured_where_there_are_no_questions(tmp_path):
    data, results = without_questions(tmp_path / "made")
    summary = summarise_lists(results, data)
    assert set(summary) == {f"{side}/{name}@3" for side in data.sides for name in LIST_METRICS}
    watchers, n_learners = count_watchers(data)
    result = results["test"]
    best = [scores.argsort(descending=True)[:3].tolist() for scores in result.scores]
    assert summary["test/coverage@3"] == len({row for rows in best for row in rows}) / data.sides["test"].n_candidates
    shares = [sum(float(watchers[row]) for row in rows) / 3 / n_learners for rows in best]
    assert summary["test/popularity@3"] == pytest.approx(sum(shares) / len(shares))
    data.collection = replace(data.collection, has_questions=True)
    assert summarise_lists(results, data) == {}


def test_pair_metrics_use_the_threshold_of_validation(run):
    _, _, results, metrics = run
    best = {name: best_f1_threshold(*_columns(results[name].pairs)) for name in ("val", "test")}
    assert metrics["val/pair_threshold"] == best["val"] != best["test"]
    for side in ("val", "test"):
        score, label = results[side].pairs.T
        accepted = score >= metrics["val/pair_threshold"]
        assert metrics[f"{side}/pair_accuracy"] == pytest.approx((accepted == label.bool()).float().mean().item())
        hits = (accepted & label.bool()).sum().item()
        assert metrics[f"{side}/pair_f1"] == pytest.approx(2 * hits / (accepted.sum() + label.sum()).item())
    assert not any(name.startswith("test_all/pair") for name in metrics)


def test_per_query_scores(run):
    folder, data, results, _ = run
    table = pq.read_table(folder / "per_query.parquet")
    assert table.column_names == ["query_id", "split", "fold", "seed", "kind", "warm", "metric", "value", "unit"]
    rows = table.to_pylist()
    assert len(rows) == sum(len(result.queries) * len(result.metrics) for result in results.values())
    found = {(row["split"], row["metric"], row["query_id"]): row for row in rows}
    assert len(found) == len(rows)
    for side, result in results.items():
        warm = warmth(data.split, data.split.sides[side], 2)
        for metric, values in result.metrics.items():
            for query, value, word in zip(result.queries.tolist(), values.tolist(), warm, strict=True):
                row = found[side, metric, data.collection.queries.ids[query]]
                assert row["value"] == value
                assert (row["fold"], row["seed"], row["kind"], row["warm"]) == (data.split.index, 7, "", word)
                assert row["unit"] == data.units[query]


def measured(folder, data, measures):
    """Values of ir_measures for the run file, by (measure, query id)."""
    collection, side = data.collection, data.split.test
    ids, videos = collection.queries.ids, collection.videos.ids
    qrels = [
        ir_measures.Qrel(ids[query].replace(" ", "%20"), videos[video].replace(" ", "%20"), int(grade))
        for query, video, grade in zip(*vars(side.judgments).values(), strict=True)
    ]
    ranking = list(ir_measures.read_trec_run(str(folder / "run.trec")))
    assert {item.query_id for item in ranking} == {ids[row].replace(" ", "%20") for row in side.queries}
    return {(item.measure, item.query_id): item.value for item in ir_measures.iter_calc(measures, qrels, ranking)}


def test_the_run_file_gives_other_tools_the_same_metrics(run):
    folder, data, results, _ = run
    names = {ir_measures.RR(rel=2): "mrr", ir_measures.nDCG @ 2: "ndcg@2", ir_measures.P(rel=2) @ 2: "precision@2"}
    values = measured(folder, data, list(names))
    result = results["test"]
    for measure, name in names.items():
        for query, value in zip(result.queries.tolist(), result.metrics[name].tolist(), strict=True):
            assert values[measure, data.collection.queries.ids[query]] == pytest.approx(value, abs=1e-6)


def test_lines_of_the_run_file(run):
    folder, data, results, _ = run
    lines = [line.split(" ") for line in (folder / "run.trec").read_text().splitlines()]
    assert len(lines) == len(results["test"].queries) * data.split.test.candidates.sum()
    assert all(len(line) == 6 and line[1] == "Q0" and line[5] == "dcdt" for line in lines)
    first = [line for line in lines if line[0] == lines[0][0]]
    assert [int(line[3]) for line in first] == list(range(1, len(first) + 1))
    assert [np.float32(line[4]) for line in first] == results["test"].top[0][0].tolist()


def test_blanks_in_ids_do_not_break_the_run_file(small, tmp_path):
    data, results = scored(small, "query")
    plain, blank = data.collection, {}
    for name, old in (("queries", plain.queries), ("videos", plain.videos)):
        blank[name] = replace(old, ids=[f"{one[0]} \t{one[1:]}" for one in old.ids])
    data.collection = replace(plain, **blank)
    write_results(RunFolder(tmp_path), results, summarise(results), data)
    lines = [line.split() for line in (tmp_path / "run.trec").read_text().splitlines()]
    assert {len(line) for line in lines} == {6}
    first = plain.queries.ids[results["test"].queries[0]]
    assert lines[0][0] == f"q%20%20{first[1:]}"
    stored = pq.read_table(tmp_path / "per_query.parquet")["query_id"].to_pylist()
    assert f"q \t{first[1:]}" in stored  # only the run file needs the encoding


def test_scores_and_labels_of_every_pair(run):
    folder, data, results, _ = run
    rows = pq.read_table(folder / "scores.parquet").to_pylist()
    collection, side = data.collection, data.split.test
    candidates = np.flatnonzero(side.candidates)
    assert len(rows) == len(side.queries) * len(candidates)
    positives = set(zip(collection.positives.query.tolist(), collection.positives.video.tolist(), strict=True))
    at = iter(rows)
    for place, query in enumerate(side.queries.tolist()):
        for video in candidates.tolist():
            row = next(at)
            assert (row["query_id"], row["video_id"]) == (collection.queries.ids[query], collection.videos.ids[video])
            assert row["score"] == results["test"].scores[place, video].item()
            assert row["label"] == ((query, video) in positives)
    assert sum(row["label"] for row in rows) > 0


def test_the_pairs_of_the_test_side(run):
    folder, data, results, metrics = run
    rows = pq.read_table(folder / "pairs.parquet").to_pylist()
    scores = {
        (row["query_id"], row["video_id"]): row["score"] for row in pq.read_table(folder / "scores.parquet").to_pylist()
    }
    assert len(rows) == len(results["test"].pairs)
    positives = {
        (data.collection.queries.ids[query], data.collection.videos.ids[video])
        for query, video in zip(data.collection.positives.query, data.collection.positives.video, strict=True)
    }
    for row in rows:
        pair = row["query_id"], row["video_id"]
        assert row["score"] == scores[pair]
        assert row["label"] == (pair in positives)
        assert row["accepted"] == (row["score"] >= metrics["val/pair_threshold"])


def test_too_many_scores_are_left_out_and_said_so(small, tmp_path):
    data, results = scored(small, "query")
    results["test"].scores = None
    [note] = write_results(RunFolder(tmp_path), results, summarise(results), data)
    n = len(results["test"].queries) * 20
    assert note.startswith(f"scores.parquet is left out: {n:,} scores")
    assert not (tmp_path / "scores.parquet").exists()
