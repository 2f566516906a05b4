"""dcdt_hierarchical: dcdt_history to the digit until its second level is fitted; attention against loops; units."""

import io
import json
import math

import numpy as np
import pytest
import torch
from test_history import (
    N_VIDEOS,
    leaks,
    make_folder,
    read_watches,
    run_on,
)
from test_history import config_of as flat_config

from dcdt.data import histories as histories_module
from dcdt.data.histories import Histories
from dcdt.models.config import HierarchicalConfig
from dcdt.models.hierarchical import SECOND_LEVEL, HierarchicalTower, HierarchicalTowers
from dcdt.models.history_tower import fit_tower, next_video_examples
from dcdt.models.query_batch import QueryBatch
from dcdt.utils.errors import MissingField


def config_of(units="sessions", **changes):
    values = dict(whiten="soft", length=4, width=12, videos="learned", epochs=3, lr=1e-2, dropout=0.2)
    topics = dict(gap_hours=10 / 3600, topic_key=None, n_topics=4)
    values = {**values, **topics, **changes}
    return HierarchicalConfig("dcdt_hierarchical", ["title", "text"], history="attention", units=units, **values)


def hierarchical_on(monkeypatch, folder, config, split="query"):
    monkeypatch.setattr("test_history.HistoryTowers", HierarchicalTowers)
    return run_on(folder, config, split)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("hierarchical") / "made")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("hierarchical") / "bare", asked=False)


def random_towers(generator, width=5, n=9):
    tower = HierarchicalTower(config_of(), n, width)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return tower, torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=-1)


@pytest.mark.parametrize("asking", [False, True])
def test_attention_within_units_and_then_across_them_is_what_loops_say(asking):
    generator = torch.Generator().manual_seed(1)
    tower, base = random_towers(generator)
    videos = tower.videos(base).detach()
    watched = torch.tensor([[3, 1, 7, 2, 5], [2, 4, -1, -1, -1], [6, -1, -1, -1, -1], [0, 8, 1, 3, -1]])
    units = torch.tensor([[4, 4, 2, 4, 0], [1, 1, -1, -1, -1], [3, -1, -1, -1, -1], [7, 6, 7, 5, -1]])
    asked = torch.nn.functional.normalize(torch.randn(4, 5, generator=generator), dim=-1)
    found = tower.learners(videos, watched, asked if asking else None, units=units).detach()
    m, b, d, n = (float(getattr(tower, name).detach()) for name in SECOND_LEVEL)
    match, decay = float(tower.match.detach()), float(tower.decay.detach())
    for row, listed in enumerate(watched.tolist()):
        own = [video for video in listed if video >= 0]
        query = asked[row] if asking else videos[own[0]]
        logits = [match * float(query @ videos[v]) - decay * math.log(1 + age) for age, v in enumerate(own)]
        order = list(dict.fromkeys(units[row, : len(own)].tolist()))
        pooled, total = torch.zeros(5), 0.0
        for age, unit in enumerate(order):
            members = [at for at in range(len(own)) if units[row, at] == unit]
            mass = sum(math.exp(logits[at]) for at in members)
            vector = sum(math.exp(logits[at]) / mass * videos[own[at]] for at in members)
            similarity = float(query @ vector / vector.norm())
            level = m * math.log(mass) + b * similarity - d * math.log(1 + age) + n * math.log(len(members))
            weight = math.exp(math.log(mass) + level)
            pooled, total = pooled + weight * vector, total + weight
        pool = torch.nn.functional.normalize(pooled / total, dim=0)
        expected = torch.nn.functional.normalize(pool + pool @ tower.map.detach(), dim=0)
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("units", ["sessions", "topics"])
def test_untrained_and_refused_it_is_dcdt_history_to_the_digit(folder, bare, monkeypatch, units):
    for place, split, epochs in ((folder, "query", 0), (bare, "time", 0), (folder, "query", 3)):
        flat = run_on(place, flat_config(epochs=epochs), split)[2]
        monkeypatch.setattr(HierarchicalTowers, "_validation_mrr", lambda self, data: 0.5)  # no gain: refused
        model, _, found = hierarchical_on(monkeypatch, place, config_of(units, epochs=epochs), split)
        monkeypatch.undo()
        assert all(float(getattr(model.tower, name).detach()) == 0 for name in SECOND_LEVEL)
        assert all(torch.equal(flat[name], found[name]) for name in flat)


def test_the_second_level_is_fitted_and_kept_where_validation_gains(folder, monkeypatch):
    values = iter([0.1, 0.2])
    monkeypatch.setattr(HierarchicalTowers, "_validation_mrr", lambda self, data: next(values))
    flat, fitted = run_on(folder, flat_config())[0], hierarchical_on(monkeypatch, folder, config_of())[0]
    assert all(float(getattr(fitted.tower, name).detach()) != 0 for name in SECOND_LEVEL)
    for name, parameter in flat.tower.named_parameters():  # the first level stays as it was
        assert torch.equal(parameter, dict(fitted.tower.named_parameters())[name])
    assert {f"dcdt_hierarchical/{name}" for name in SECOND_LEVEL} <= set(fitted.statistics())


def test_a_learner_who_comes_back_to_a_topic_is_served_from_it():
    """The next video is of the newest unit's topic, whatever the many videos of older units say."""
    n_learners, base = 200, torch.eye(12)
    rng = np.random.default_rng(0)
    item, unit = [], []
    for _ in range(n_learners):
        old, new = rng.permutation(3)[:2]
        item += [*(4 * old + rng.permutation(4)), *(4 * new + rng.permutation(4)[:2])]
        unit += [0, 0, 0, 0, 1, 1]
    user = torch.arange(n_learners).repeat_interleave(6)
    time = torch.arange(6).repeat(n_learners).double()
    examples = next_video_examples(user, torch.tensor(item), time, torch.tensor(unit))
    config = config_of(epochs=30, lr=5e-2, dropout=0.0, width=12, videos="frozen", length=6)
    tower = HierarchicalTower(config, 12, 12)
    with torch.no_grad():
        tower.decay.zero_()
        tower.map.copy_(torch.block_diag(*[torch.ones(4, 4)] * 3))  # a video stands for its topic
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(name in SECOND_LEVEL)
    losses = fit_tower(tower, base, examples, config, 0, again=True)
    assert losses[-1] < losses[0] - 0.05
    assert tower.unit_decay > 0.2


def test_sessions_end_at_a_gap_and_topics_are_those_of_the_metadata_or_clusters(folder, monkeypatch, tmp_path):
    model, _, _ = hierarchical_on(monkeypatch, folder, config_of())
    last, number = {}, {}
    for user, _, time in sorted(read_watches(folder), key=lambda watch: (watch[0], watch[2])):
        if user not in last or time - last[user] > 10:
            number[user] = number.get(user, 0) + 1
        last[user] = time
    found = {user: len(set(model.units.watched_before(user, math.inf))) for user in number}
    assert found == number and max(number.values()) > 1
    own = make_folder(tmp_path / "own")
    lines = [json.loads(line) for line in (own / "corpus.jsonl").read_text().splitlines()]
    for at, video in enumerate(lines):
        video["metadata"] = {"series": f"s{at % 3}"}
    (own / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    topics = hierarchical_on(monkeypatch, own, config_of("topics", topic_key="series"))[0]
    topic = {(int(row) % 3, int(unit)) for row, unit in zip(topics.histories.items, topics.units.items, strict=True)}
    assert len(topic) == 3
    clusters = hierarchical_on(monkeypatch, own, config_of("topics"))[0]
    rows, units = clusters.histories.items, clusters.units.items
    assert 1 < len({*units.tolist()}) <= 4
    assert len({(int(row), int(unit)) for row, unit in zip(rows, units, strict=True)}) == N_VIDEOS
    with pytest.raises(MissingField, match="field 'subject'"):
        hierarchical_on(monkeypatch, own, config_of("topics", topic_key="subject"))


def test_nothing_at_or_after_the_question_reaches_its_scores(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("test_history.HistoryTowers", HierarchicalTowers)
    assert not leaks(folder, make_folder(tmp_path / "other"), config_of(), "time")


def test_units_that_look_ahead_are_found_out(folder, tmp_path, monkeypatch):
    whole = Histories.watched_before
    ahead = lambda self, user, time: whole(self, user, math.inf)  # noqa: E731
    monkeypatch.setattr("test_history.HistoryTowers", HierarchicalTowers)
    monkeypatch.setattr(histories_module.Histories, "watched_before", ahead)
    assert leaks(folder, make_folder(tmp_path / "other"), config_of(), "query")


def test_a_saved_model_scores_the_same(folder, monkeypatch):
    model, _, _ = hierarchical_on(monkeypatch, folder, config_of())
    with torch.no_grad():
        for name in SECOND_LEVEL:
            getattr(model.tower, name).fill_(0.7)
    other = HierarchicalTowers(config_of(), model.tables)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    batch = QueryBatch(model.tables.queries[:4], [""] * 4, ["u1", "u7", None, "u3"], [90.0, 40.0, 60.0, 99.0])
    assert torch.equal(other.score(batch), model.score(batch))
