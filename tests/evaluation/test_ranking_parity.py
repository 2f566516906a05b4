"""The ranking metrics equal ir-measures (trec_eval) and ranx on runs without ties."""

import numpy as np
import pytest
import torch

import dcdt
from dcdt.evaluation.ranking import judged_ranks, ranking_metrics, tie_order

KS = (1, 5, 10)
N_VIDEOS = 40


def random_collection(seed):
    """A full run without ties, graded judgments, and queries missing on either side.

    Queries 0 to 19 have both; 20 and 21 are judged but not in the run; 22 and 23 are in the run but not judged.
    """
    rng = np.random.default_rng(seed)
    names = [f"v{row}" for row in range(N_VIDEOS)]
    scores = rng.permuted(np.tile(np.arange(N_VIDEOS) / 8 - 2, (24, 1)), axis=1).astype(np.float32)
    qrels = {}
    for query in range(22):
        videos = rng.choice(N_VIDEOS, size=rng.integers(1, 16), replace=False)
        grades = rng.integers(1, 4, size=len(videos))
        grades[0] = 3  # a positive under any threshold
        qrels[f"q{query}"] = {names[video]: int(grade) for video, grade in zip(videos, grades, strict=True)}
    shown = [query for query in range(24) if query not in (20, 21)]
    run = {f"q{query}": {name: float(scores[query, row]) for row, name in enumerate(names)} for query in shown}
    return names, scores, qrels, run


def our_values(names, scores, qrels, positive_grade):
    """name -> {query id: value} for the queries with both scores and judgments."""
    width = max(len(judgments) for judgments in qrels.values())
    judged, grades = torch.full((20, width), -1), torch.zeros(20, width)
    for query in range(20):
        for column, (name, grade) in enumerate(qrels[f"q{query}"].items()):
            judged[query, column], grades[query, column] = names.index(name), grade
    ranks = judged_ranks(torch.from_numpy(scores[:20]), judged, tie_order(names))
    values = ranking_metrics(ranks, grades, positive_grade, KS)
    return {name: {f"q{row}": value for row, value in enumerate(column.tolist())} for name, column in values.items()}


def their_values(qrels, run, positive_grade):
    """(our name, query id) -> what ir-measures says."""
    import ir_measures
    from ir_measures import AP, RR, P, R, Success, nDCG

    measures = {"mrr": RR(rel=positive_grade), "map": AP(rel=positive_grade)}
    for k in KS:
        measures |= {f"recall@{k}": R(rel=positive_grade) @ k, f"precision@{k}": P(rel=positive_grade) @ k}
        measures |= {f"hit@{k}": Success(rel=positive_grade) @ k, f"ndcg@{k}": nDCG @ k}
    names = {str(measure): name for name, measure in measures.items()}
    found = ir_measures.iter_calc(list(measures.values()), qrels, run)
    return {(names[str(value.measure)], value.query_id): value.value for value in found}


@pytest.mark.parametrize("positive_grade", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_equals_ir_measures(seed, positive_grade):
    names, scores, qrels, run = random_collection(seed)
    theirs = their_values(qrels, run, positive_grade)
    ours = our_values(names, scores, qrels, positive_grade)
    assert list(ours) == ["mrr", "map"] + [f"{m}@{k}" for k in KS for m in ("recall", "precision", "hit", "ndcg")]
    for name, per_query in ours.items():
        for query, value in per_query.items():
            assert value == pytest.approx(theirs[name, query], abs=1e-6), (name, query)


@pytest.mark.parametrize("positive_grade", [1, 2, 3])
@pytest.mark.parametrize("kept", [40, 12])  # videos a query keeps: all, or the head that a run file holds
def test_evaluate_equals_ir_measures_on_whole_and_cut_runs(positive_grade, kept):
    _, _, qrels, run = random_collection(5)
    run = {q: dict(sorted(found.items(), key=lambda pair: -pair[1])[:kept]) for q, found in run.items()}
    found = dcdt.evaluate(run, qrels, KS, positive_grade)
    theirs = their_values(qrels, run, positive_grade)
    for name, per_query in found.per_query.items():
        assert set(per_query) == set(qrels)  # with the two that were not scored, which found nothing
        for query, value in per_query.items():
            assert value == pytest.approx(theirs.get((name, query), 0), abs=1e-6), (name, query)
        assert found.means[name] == pytest.approx(np.mean(list(per_query.values())), abs=1e-7)
    assert found.left_out == ["q22", "q23"]


@pytest.mark.slow  # ranx compiles for half a minute on its first use
@pytest.mark.parametrize("positive_grade", [1, 2, 3])
def test_equals_ranx(positive_grade):
    from ranx import Qrels, Run, evaluate

    names, scores, qrels, run = random_collection(7)
    binary = {q: {v: 1 for v, g in grades.items() if g >= positive_grade} for q, grades in qrels.items()}
    binary_names = {"mrr": "mrr", "map": "map"}
    binary_names |= {f"{ours}@{k}": f"{theirs}@{k}" for k in KS for ours, theirs in RANX_NAMES.items()}
    theirs = Run(run)
    evaluate(Qrels(binary), theirs, list(binary_names.values()), make_comparable=True)
    ours = our_values(names, scores, qrels, positive_grade)
    for name, ranx_name in binary_names.items():
        assert {q: theirs.scores[ranx_name][q] for q in ours[name]} == pytest.approx(ours[name], abs=1e-6)
    graded = Run(run)
    evaluate(Qrels(qrels), graded, [f"ndcg@{k}" for k in KS], make_comparable=True)
    for k in KS:
        found = {q: graded.scores[f"ndcg@{k}"][q] for q in ours["mrr"]}
        assert found == pytest.approx(ours[f"ndcg@{k}"], abs=1e-6)


RANX_NAMES = {"recall": "recall", "precision": "precision", "hit": "hit_rate"}
