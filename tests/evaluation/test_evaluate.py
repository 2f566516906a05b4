"""`dcdt.evaluate` on dictionaries: brute force, ties, what is left out, and mistakes."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dcdt
from dcdt.evaluation.ranking import tie_order
from dcdt.evaluation.statistics import mean_interval
from dcdt.utils.errors import UserError

VIDEOS = [f"v{at}" for at in range(9)]
SCORES = st.dictionaries(st.sampled_from(VIDEOS), st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 2.0]))
GRADES = st.dictionaries(st.sampled_from(VIDEOS), st.sampled_from([-1, 0, 1, 2]))


def brute_reciprocal_rank(scores, grades, order):
    """Walk down the list."""
    ranked = sorted(scores, key=lambda video: (-scores[video], order[video]))
    places = [at for at, video in enumerate(ranked, start=1) if grades.get(video, 0) >= 1]
    return 1 / places[0] if places else 0.0


@given(st.lists(st.tuples(SCORES, GRADES), min_size=1, max_size=5))
def test_every_query_has_the_value_of_brute_force(cases):
    scores = {f"q{at}": found for at, (found, _) in enumerate(cases)}
    qrels = {f"q{at}": grades for at, (_, grades) in enumerate(cases)}
    judged = [query for query, grades in qrels.items() if any(grade >= 1 for grade in grades.values())]
    if not judged:
        with pytest.raises(UserError, match=r"none of \d queries has a video of grade 1 or more"):
            dcdt.evaluate(scores, qrels)
        return
    names = {video for part in scores.values() for video in part}
    if names and names.isdisjoint(video for query in judged for video in qrels[query]):
        with pytest.raises(UserError, match="no judged video is among the scored ones"):
            dcdt.evaluate(scores, qrels)
        return
    found = dcdt.evaluate(scores, qrels)
    order = dict(zip(sorted(names), tie_order(sorted(names)).tolist(), strict=True))
    assert list(found.per_query["mrr"]) == judged and set(found.left_out) == set(qrels) - set(judged)
    for query, value in found.per_query["mrr"].items():
        assert value == pytest.approx(brute_reciprocal_rank(scores[query], qrels[query], order), abs=1e-6)


def test_a_query_without_scores_found_nothing_and_one_without_judgments_is_left_out():
    found = dcdt.evaluate({"a": {"x": 1.0, "y": 0.5}, "c": {"x": 1.0}}, {"a": {"y": 2}, "b": {"x": 1}}, ks=[1, 2])
    assert found.per_query["ndcg@2"] == {"a": pytest.approx(1 / math.log2(3)), "b": 0.0}
    assert (found.means["mrr"], found.left_out) == (0.25, ["c"])
    assert found.units == {"a": "y", "b": "x"}
    low, high = found.interval("mrr")
    assert 0 <= low <= 0.25 <= high <= 1


def test_queries_that_share_their_best_positive_are_one_unit():
    """The highest grade decides, then the order of ties, whether a video is scored or not."""
    scores = {f"q{at}": {"a": 1.0, "b": 0.5} for at in range(4)}
    qrels = {"q0": {"a": 1}, "q1": {"a": 2, "c": 1}, "q2": {"c": 2, "a": 1}, "q3": {"b": 1, "c": 1, "a": 0}}
    found = dcdt.evaluate(scores, qrels)
    first = min("bc", key=dict(zip("abc", tie_order(list("abc")).tolist(), strict=True)).get)
    assert found.units == {"q0": "a", "q1": "a", "q2": "c", "q3": first}
    values = list(found.per_query["mrr"].values())
    assert found.interval("mrr") == mean_interval(values, list(found.units.values()), (0, 1))
    assert found.interval("mrr") != mean_interval(values, None, (0, 1))


@pytest.mark.parametrize(
    ("scores", "qrels", "more", "words"),
    [
        ({"q": {"x": math.nan}}, {"q": {"x": 1}}, {}, "that of query 'q' and video 'x' is NaN"),
        ({"q": {"x": 1.0}}, {"q": {"x": math.inf}}, {}, "the grade of query 'q' and video 'x' is inf"),
        ({}, {}, {}, "none of 0 queries"),
        ({"q": {"x": 1.0}}, {"q": {"x": 1}}, {"ks": [0]}, "ks are \\[0\\]"),
        ({"q": {"x": 1.0}}, {"q": {"x": 1}}, {"positive_grade": 0}, "positive_grade is 0"),
    ],
)
def test_mistakes_are_told(scores, qrels, more, words):
    with pytest.raises(UserError, match=words):
        dcdt.evaluate(scores, qrels, **more)


def test_an_unknown_metric_is_told():
    with pytest.raises(UserError, match="'ndcg' is no metric here; there are mrr, map"):
        dcdt.evaluate({"q": {"x": 1.0}}, {"q": {"x": 1}}).interval("ndcg")
