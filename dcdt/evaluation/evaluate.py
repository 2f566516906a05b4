"""Evaluate any system's scores, given as plain dictionaries (`dcdt.evaluate`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dcdt.evaluation.ranking import DEFAULT_KS, metric_names, ranking_metrics, tie_order
from dcdt.evaluation.statistics import mean_interval
from dcdt.evaluation.units import best_positives
from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

ByQuery = Mapping[str, Mapping[str, float]]  # query id -> video id -> score, or grade
UNSCORED_RANK = 2**62  # of a judged video without a score: it adds less than 1e-18 to a metric


@dataclass(frozen=True)
class Evaluation:
    """Metrics of scores on judgments.

    Attributes:
        means: metric -> mean over queries.
        per_query: metric -> query id -> value; means and intervals are derived from it.
        left_out: queries without a positive, or that are scored and not judged; no metric counts them.
        units: query id -> its best positive (the highest grade, ties by the hash): queries that share it are one unit.
    """

    means: dict[str, float]
    per_query: dict[str, dict[str, float]]
    left_out: list[str]
    units: dict[str, str]

    def interval(self, metric: str) -> tuple[float, float]:
        """Compute the 95 % interval of a mean over queries, by units; (nan, nan) for a single unit.

        Raises:
            UserError: no such metric.
        """
        if metric not in self.per_query:
            raise UserError(f"'{one_line(metric)}' is no metric here; there are {', '.join(self.per_query)}.")
        values = self.per_query[metric]
        return mean_interval(list(values.values()), [self.units[query] for query in values], bounds=(0.0, 1.0))


def evaluate(
    scores: ByQuery, qrels: ByQuery, ks: Sequence[int] = DEFAULT_KS, positive_grade: float = 1.0
) -> Evaluation:
    """Rank the videos of every judged query by their scores and measure the rankings.

    Equal scores are ranked by a hash of the video id, as everywhere. A judged query without scores counts as 0, and so
    does a positive without a score: score every video.

    Args:
        scores: query id -> video id -> score; higher is better, infinities are allowed.
        qrels: query id -> video id -> grade; videos that are not listed have grade 0.
        ks: cut-offs of recall@k, precision@k, hit@k and ndcg@k.
        positive_grade: the lowest grade of a positive.

    Returns:
        Means, values of every query, and the queries that were left out.

    Raises:
        UserError: a score or grade that is no number, a set or list instead of a dictionary, a cut-off below 1, no
            query with a positive, ids of several types, or no judged query, or no judged video, with a score.

    >>> evaluation = evaluate({"q": {"a": 0.1, "b": 0.9}}, {"q": {"a": 1}}, ks=[1])
    >>> evaluation.means["mrr"], evaluation.per_query["recall@1"]
    (0.5, {'q': 0.0})
    """
    if not positive_grade > 0 or not ks or min(ks) < 1:
        raise UserError(
            f"positive_grade is {positive_grade:g} and ks are {list(ks)}; the one is above 0, the others are from 1."
        )
    for name, by_query in (("scores", scores), ("qrels", qrels)):
        wrong = next((query for query, values in by_query.items() if not isinstance(values, Mapping)), None)
        if wrong is not None:
            raise UserError(
                f"{name}: those of query {one_line(repr(wrong))} are a {type(by_query[wrong]).__name__}; "
                "give a dictionary of video ids and numbers, such as {'v1': 1}."
            )
    judged = {query: grades for query, grades in qrels.items() if _has_positive(query, grades, positive_grade)}
    if not judged:
        raise UserError(f"none of {len(qrels)} queries has a video of grade {positive_grade:g} or more.")
    scored, videos = ({video for part in parts for video in part} for parts in (scores.values(), judged.values()))
    for kind, names in (("query", [*qrels, *scores]), ("video", [*videos, *scored])):
        other = min((name for name in names if not isinstance(name, str)), key=repr, default=None)
        text = min((name for name in names if isinstance(name, str)), default=None)
        if other is not None and text is not None:
            what = f"{one_line(repr(other))} ({type(other).__name__}) and {one_line(repr(text))}"
            raise UserError(f"{kind} ids are of several types, such as {what}; make all of them texts.")
    for kind, ids, others in (("query", judged.keys(), scores.keys()), ("video", videos, scored)):
        if others and not ids & others:
            one, other = (min(map(repr, names))[:40] for names in (ids, others))
            raise UserError(f"no judged {kind} is among the scored ones, such as {one} and {other}: are the ids alike?")
    names = list(dict.fromkeys(video for part in (*scores.values(), *judged.values()) for video in part))
    tie_position = dict(zip(names, tie_order(names).tolist(), strict=True))
    width = max(map(len, judged.values()))
    ranks = torch.zeros(len(judged), width, dtype=torch.int64)  # (Q, J), 0 at padding
    grades = torch.zeros(len(judged), width)  # (Q, J)
    for row, (query, query_grades) in enumerate(judged.items()):
        ranks[row, : len(query_grades)] = torch.tensor(
            _ranks(query, scores.get(query, {}), list(query_grades), tie_position)
        )
        grades[row, : len(query_grades)] = torch.tensor(list(query_grades.values()), dtype=torch.float32)
    values = ranking_metrics(ranks, grades, positive_grade, ks)  # name -> (Q,)
    per_query = {name: dict(zip(judged, values[name].tolist(), strict=True)) for name in metric_names(ks)}
    means = {name: float(values[name].double().mean()) for name in per_query}
    left_out = sorted((set(scores) | set(qrels)) - set(judged))
    return Evaluation(means, per_query, left_out, _units(judged, tie_position, positive_grade))


def _units(judged: ByQuery, tie_position: Mapping[str, int], positive_grade: float) -> dict[str, str]:
    """Name the best positive of each query."""
    positives = [
        (row, tie_position[video], grade)
        for row, query_grades in enumerate(judged.values())
        for video, grade in query_grades.items()
        if grade >= positive_grade
    ]
    rows, positions, grades = (np.array(column) for column in zip(*positives, strict=True))
    video_of = {position: video for video, position in tie_position.items()}
    return {
        query: video_of[best]
        for query, best in zip(judged, best_positives(rows, positions, grades)[1].tolist(), strict=True)
    }


def _has_positive(query: str, grades: Mapping[str, float], positive_grade: float) -> bool:
    wrong = next((video for video, grade in grades.items() if not np.isfinite(grade)), None)
    if wrong is not None:
        raise UserError(
            f"qrels: the grade of query {one_line(repr(query))} and video {one_line(repr(wrong))} is {grades[wrong]}; "
            "give a number."
        )
    return any(grade >= positive_grade for grade in grades.values())


def _ranks(
    query: str, scored: Mapping[str, float], judged: Sequence[str], tie_position: Mapping[str, int]
) -> list[int]:
    """Rank each judged video among the scored ones, from 1; those without a score come after all."""
    videos = list(scored)
    values = np.fromiter(scored.values(), dtype=np.float64, count=len(videos))  # (n,)
    if np.isnan(values).any():
        wrong = videos[int(np.isnan(values).argmax())]
        raise UserError(
            f"scores: that of query {one_line(repr(query))} and video {one_line(repr(wrong))} is NaN; give a number."
        )
    order = np.lexsort((np.array([tie_position[video] for video in videos]), -values))  # (n,)
    rank = {videos[row]: i for i, row in enumerate(order.tolist(), start=1)}
    return [rank.get(video, UNSCORED_RANK + i) for i, video in enumerate(judged)]
