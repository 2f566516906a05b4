"""Which of two interleaved models learners prefer, with simulated learners whose truth is known."""

from collections import Counter, defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from dcdt.data.feedback import Feedback, Shown
from dcdt.reporting.interleaving import compare_interleaved
from dcdt.serving import feedback as serving_feedback
from dcdt.serving.recommender import Recommendation
from dcdt.utils.errors import UserError

VIDEOS = [Recommendation(0, 0.0, f"v{at}", "", "", None, None, None, None) for at in range(12)]


@pytest.fixture
def rng(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(serving_feedback, "random", rng.random)
    return rng


def learners(rng, first, second, n, questions=1):
    """Feedback of n learners who look at rank k with 1 / k and click what is relevant: v0 mostly, v1 less."""
    answers, values = {}, defaultdict(dict)
    for at in range(n * questions):
        one, two = ([VIDEOS[video] for video in rank(rng)] for rank in (first, second))
        shown, teams = serving_feedback.team_draft(one, two, 5)
        name, ids = f"a{at}", [video.id for video in shown]
        models = [("good", "b1", 1), ("bad", "b2", 1)]
        given = {"question": "q", "hashed": False, "user": f"u{at % n}", "models": models, "videos": ids}
        answers[name] = Shown(answer=name, time=0, teams=teams, **given)
        for rank, video in enumerate(ids, 1):
            if rng.random() < {"v0": 0.9, "v1": 0.4}.get(video, 0.05) / rank:
                values[name][video] = 1
    return Feedback(answers, values, Counter())


def good(rng):
    return [0, 1, *(2 + rng.permutation(10)[:6])]


def bad(rng):
    return [*(2 + rng.permutation(10)[:6]), 1, 0]


def test_a_draft_is_fair_whole_and_in_each_models_order(rng):
    firsts = Counter()
    for _ in range(400):
        one, two = ([VIDEOS[at] for at in rng.permutation(12)[:8]] for _ in range(2))
        shown, teams = serving_feedback.team_draft(one, two, 6)
        ids = [video.id for video in shown]
        assert len(set(ids)) == 6 and [video.rank for video in shown] == list(range(1, 7))
        assert teams.count(0) == teams.count(1) == 3
        assert {teams[0], teams[1]} == {teams[2], teams[3]} == {0, 1}
        seen = set()
        for video, team in zip(ids, teams, strict=True):  # each picks its best that is not there yet
            assert video == next(item.id for item in (one, two)[team] if item.id not in seen)
            seen.add(video)
        firsts[teams[0]] += 1
    assert 150 < firsts[0] < 250
    short, teams = serving_feedback.team_draft(VIDEOS[:2], VIDEOS[:1], 9)
    assert sorted(video.id for video in short) == ["v0", "v1"] and len(teams) == 2


def test_the_better_model_wins(rng):
    (outcome,) = compare_interleaved(learners(rng, good, bad, 200)).values()
    wins, losses, ties, p = outcome
    assert wins > 3 * losses and p < 1e-6 and wins + losses + ties == 200


def test_a_tie_stays_a_tie(rng):
    """At 5 %: of 200 comparisons of equal models at most 17 may differ, as in every calibration here."""
    found = [next(iter(compare_interleaved(learners(rng, good, good, 40)).values())) for _ in range(200)]
    assert sum(p < 0.05 for *_, p in found) <= 17
    assert all(wins + losses > 0 for wins, losses, _, _ in found)


def test_a_learner_counts_once_and_thumbs_down_against(rng):
    feedback = learners(rng, good, bad, 3, questions=50)
    ((wins, losses, ties, p),) = compare_interleaved(feedback).values()
    assert wins + losses + ties == 3 and p >= 0.25
    for name, answer in feedback.answers.items():
        feedback.values[name] = {video: -1 for video, team in zip(answer.videos, answer.teams, strict=True) if not team}
    assert compare_interleaved(feedback) == {"good (b1) against bad (b2)": (0, 3, 0, 0.25)}


def test_answers_of_one_model_are_no_comparison():
    shown = SimpleNamespace(models=[("good", "b1", 1)], teams=[], videos=["v1"])
    with pytest.raises(UserError, match="no answer was interleaved"):
        compare_interleaved(Feedback({"a": shown}, {}, Counter()))
