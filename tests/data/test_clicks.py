"""Judgments from what learners clicked: reading, the bias of ranks, weights, and what training makes of them."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from commands import dcdt as command
from support import make_collection, prepare

from dcdt.data.beir import load_collection
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.feedback import (
    MIN_PROPENSITY,
    Feedback,
    Shown,
    add_clicks,
    click_weights,
    estimate_propensities,
    keyed_hash,
    read_feedback,
)
from dcdt.data.splits import make_split, weak_counts
from dcdt.losses.config import InfoNCEConfig, TripletConfig
from dcdt.losses.infonce import InfoNCELoss
from dcdt.losses.triplet import TripletLoss
from dcdt.models import ridge_towers
from dcdt.models.config import RidgeConfig
from dcdt.models.ridge_towers import RidgeTowers
from dcdt.samplers.catalogue import CatalogueSampler
from dcdt.samplers.config import CatalogueSamplerConfig, InBatchSamplerConfig, RandomSamplerConfig
from dcdt.samplers.in_batch import InBatchSampler
from dcdt.samplers.pool import training_pool
from dcdt.samplers.random import RandomSampler
from dcdt.utils.errors import UserError

LOOKED = 0.65 ** np.arange(10)  # of the simulated learners, by rank; the estimate starts at 1 / rank


def write_events(folder, answers, marks, name="events-1-1.jsonl", tail=""):
    """Write events; answers are (id, question, videos), marks (answer, video, event)."""
    folder.mkdir(parents=True, exist_ok=True)
    shown = [
        {"answer": answer, "time": 1.0, "question": question, "hashed": False, "user": None, "models": []}
        | {"videos": videos}
        for answer, question, videos in answers
    ]
    marked = [{"answer": a, "time": 2.0 + at, "video": v, "event": e} for at, (a, v, e) in enumerate(marks)]
    (folder / name).write_text("".join(json.dumps(event) + "\n" for event in [*shown, *marked]) + tail)
    return folder


def simulate(rng, question, rankings, relevance, n, start=0):
    """Answers to a question by turns from several rankings, and clicks by the position-based model."""
    answers, marks = [], []
    for at in range(n):
        videos = rankings[at % len(rankings)]
        name = f"{question}-{start + at}"
        answers.append((name, question, videos))
        marks += [
            (name, video, "click")
            for rank, video in enumerate(videos)
            if rng.random() < LOOKED[rank] * relevance.get(video, 0.02)
        ]
    return answers, marks


@pytest.fixture
def collection(tmp_path):
    return load_collection(make_collection(tmp_path / "made", n_videos=12, n_queries=30))


def test_events_are_joined_and_what_does_not_fit_is_counted(tmp_path):
    answers = [("a", "rank", ["v1", "v2"]), ("b", "span", ["v3"])]
    marks = [("a", "v2", "click"), ("a", "v2", "click"), ("a", "v9", "click"), ("z", "v1", "click")]
    marks += [("b", "v3", "up"), ("b", "v3", "down"), ("a", "v1", "up")]
    folder = write_events(tmp_path, answers, marks, tail='{"answer": "c", "ti')
    write_events(tmp_path, [("d", "late", ["v1"])], [("a", "v1", "click")], "events-0-2.jsonl")  # of another process
    found = read_feedback(folder)
    assert set(found.answers) == {"a", "b", "d"}
    assert found.values == {"a": {"v2": 1, "v1": 1}, "b": {"v3": -1}}
    assert found.dropped == {"unreadable lines": 1, "repeated clicks": 1, "clicks on what was not shown": 2}
    with pytest.raises(UserError, match="holds no answers"):
        read_feedback(tmp_path / "other")


@pytest.mark.parametrize("seed", [0, 1])
def test_the_bias_of_ranks_is_estimated_from_videos_at_several_ranks(seed):
    rng = np.random.default_rng(seed)
    pair = rng.integers(0, 40, 60_000)
    rank = rng.integers(0, 8, len(pair))
    relevance = rng.uniform(0.1, 0.9, 40)
    clicked = rng.random(len(pair)) < LOOKED[rank] * relevance[pair]
    np.testing.assert_allclose(estimate_propensities(pair, rank, clicked), LOOKED[:8], rtol=0.15)
    alone = np.arange(8)
    with pytest.raises(UserError, match="--propensities FILE"):  # each video at one rank: nothing tells
        estimate_propensities(alone, alone, np.ones(8, dtype=bool))


def test_weights_are_sums_of_inverse_propensities(collection):
    answers = {
        name: Shown(answer=name, time=0, question=question, hashed=False, user=None, models=[], videos=videos)
        for name, question, videos in [
            ("a", "What is rank", ["v1", "v2", "v3"]),
            ("b", "what is RANK?", ["v2", "v1", "gone"]),
            ("c", "span", ["v4", "v5"]),
        ]
    }
    values = {"a": {"v1": 1, "v3": 1}, "b": {"v2": 1, "v1": -1}, "c": {"v5": 1}}
    looked = np.array([1.0, 0.5, 0.001])
    weights, _ = click_weights(feedback := Feedback(answers, values, Counter()), collection, b"", looked)
    raw = {("What is rank", "v2"): 1 / 2, ("What is rank", "v3"): 1 / MIN_PROPENSITY, ("span", "v5"): 2.0}
    mean = sum(raw.values()) / len(raw)  # v1: a click at rank 1 less a thumb down at rank 2 is below 0
    for (text, video), value in raw.items():
        assert weights[text][video] == pytest.approx(value / mean, rel=1e-3)
    assert sum(map(len, weights.values())) == len(raw)
    assert feedback.dropped["videos with more thumbs down than clicks"] == 1
    assert feedback.dropped["videos shown that the collection lacks"] == 1


def test_hashed_questions_are_told_by_those_of_the_collection(collection):
    text, salt = collection.queries.texts[3], b"salt"
    hashes = [keyed_hash(salt, text.strip().lower()), keyed_hash(salt, "never asked")]
    answers = {
        name: Shown(answer=name, time=0, question=name, hashed=True, user=None, models=[], videos=["v1", "v2"])
        for name in hashes
    }
    feedback = Feedback(answers, {name: {"v2": 1} for name in hashes}, Counter())
    assert click_weights(feedback, collection, salt, LOOKED)[0] == {text: {"v2": 1.0}}
    assert feedback.dropped["answers to questions without a known text"] == 1


def test_clicks_are_added_once_train_only_and_say_so(tmp_path, collection):
    answers = [("a", "a question of learners", ["v1", "v2"]), ("b", "a question of learners", ["v2", "v1"])]
    answers += [("c", collection.queries.texts[0].upper(), ["v3"]), ("d", "nobody clicked", ["v3"])]
    folder = write_events(tmp_path / "log", answers, [("a", "v1", "click"), ("b", "v1", "click"), ("c", "v3", "click")])
    table = tmp_path / "table.csv"
    table.write_text("rank,propensity\n1,1\n2,0.5\n")
    before = (collection.path / "queries.jsonl").read_text()
    line = ["collection", "feedback", folder, "--into", collection.path, "--propensities", table]
    assert command(*line).returncode == 0
    done = command(*line)  # again: in place of the first ones
    assert "4 answers were read; 2 judgments of 2 questions were added." in done.stdout
    assert "2 queries are weak: made from clicks" in done.stdout.replace("\n", " ")
    assert (collection.path / "queries.jsonl").read_text().startswith(before)
    clicked = load_collection(collection.path)
    assert len(clicked.queries) == len(collection.queries) + 2
    weights = [sorted(of.values()) for of in clicked.weights.values()]
    assert sorted(weights) == [[pytest.approx(0.8)], [pytest.approx(1.2)]]  # 1 / 1 of one answer; (1 + 2) / 2 of two
    for name, n in (("query", 1), ("folds", 10), ("video", 2), ("paper", 5)):
        for index in range(n):
            split = make_split(clicked, SplitConfig(name, index, max(n, 10), "all"))
            counts = weak_counts(clicked, split)
            assert set(counts) <= {"train", "clicks"}
            held_out = {int(row) for side in split.sides.values() for row in side.queries}
            assert not held_out & set(clicked.weights)
            if 0 in held_out and name != "paper":  # the text of a held-out query is not trained on
                assert counts.get("clicks", 0) <= 1
    assert weak_counts(clicked, make_split(clicked, SplitConfig("query", 0, 1, "all", train_on="judged"))) == {}


def test_a_collection_of_clicks_alone_is_not_tested_on(tmp_path, collection):
    answers = [(f"a{at}", f"asked {at}", ["v1", "v2"]) for at in range(20)]
    folder = write_events(tmp_path / "log", answers, [(name, "v1", "click") for name, _, _ in answers])
    (tmp_path / "table.csv").write_text("rank,propensity\n1,1\n")
    add_clicks(folder, collection, tmp_path / "table.csv")
    for path in (collection.path / "qrels").glob("*.tsv"):
        if path.stem != "clicks":
            path.unlink()
    alone = load_collection(collection.path)
    assert len(alone.weights) == 20
    with pytest.raises(UserError, match="Add judged queries"):
        make_split(alone, SplitConfig("query", 0, 1, "all"))


@pytest.mark.parametrize("text", ["rank,propensity\n2,1\n", "rank,propensity\n1,0\n", "rank,chance\n1,1\n"])
def test_a_table_of_propensities_is_checked(tmp_path, collection, text):
    folder = write_events(tmp_path / "log", [("a", "asked", ["v1"])], [("a", "v1", "click")])
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises(UserError, match="give rank 1 and its propensity"):
        add_clicks(folder, collection, tmp_path / "table.csv")


@pytest.mark.parametrize("given", [{"v1": -1}, {"v1": "2"}, {"v1": math.nan}, {"v1": 1e9}, [1, 2], "much"])
def test_a_weight_that_is_none_is_refused(collection, given):
    collection.queries.metadata[2]["weights"] = given
    with pytest.raises(UserError, match="'q2' has the weight"):
        _ = collection.weights


@pytest.mark.parametrize("given", [None, {}, {"unknown": 2}])
def test_weights_of_nothing_are_none(collection, given):
    collection.queries.metadata[2]["weights"] = given
    assert collection.weights == {}


def trained_on(folder, events, raw):
    """The rank of each question's true video after fitting the ridge on clicks alone, whose weights may be ignored."""
    collection = load_collection(folder)
    table = folder.parent / "none.csv"
    table.write_text("rank,propensity\n1,1\n")  # every rank as likely: raw clicks
    add_clicks(events, collection, table if raw else None)
    made = prepare(folder, SplitConfig("query", 0, 1, "all", train_on="weak"), pairs=False, width=64)
    data = RankingDataModule(made.collection, made.split, {}, None, 16, 0)
    model = RidgeTowers(RidgeConfig("dcdt_ridge", ["title", "text"], "none", 3, 0.0, "train", 1.0), made.tables)
    model.prepare(data)
    ranks = []
    for row in sorted(made.collection.weights):
        with torch.no_grad():
            scores = model.encode_queries(made.tables.queries[row : row + 1]) @ model.video_vectors().T
        true = made.collection.videos.row_of[f"v{made.collection.queries.texts[row].split()[-1]}"]
        ranks.append(int((scores[0] > scores[0, true]).sum()) + 1)
    return np.array(ranks)


def test_training_on_corrected_clicks_recovers_the_order_that_raw_clicks_lose(tmp_path):
    """The video that answers best stands at rank 5 mostly, one that answers half as well at rank 1."""
    rng = np.random.default_rng(0)
    answers, marks = [], []
    for question in range(10):
        others = [f"v{(question + step) % 10 + 10}" for step in range(3)]
        best, second = f"v{question}", f"v{(question + 3) % 10}"
        first = [second, *others, best]
        found = simulate(rng, f"what is {question}", [*7 * [first], first[::-1]], {best: 0.9, second: 0.45}, 400)
        answers += found[0]
        marks += found[1]
    events = write_events(tmp_path / "log", answers, marks)
    texts = [f"what is {question}" for question in range(10)]
    corrected = trained_on(with_vectors(tmp_path / "one", texts), events, raw=False)
    raw = trained_on(with_vectors(tmp_path / "two", texts), events, raw=True)
    assert len(raw) == len(corrected) == 10
    assert (corrected == 1).mean() >= 0.9
    assert (raw == 1).mean() <= 0.3


def with_vectors(folder, texts):
    """A collection whose cache also has random vectors of these texts."""
    from support import EMBEDDER

    from dcdt.embeddings.cache import VectorCache
    from dcdt.embeddings.providers import space_of

    make_collection(folder, n_videos=20, n_queries=20)
    vectors = np.random.default_rng(1).normal(size=(len(texts), space_of(EMBEDDER).dimensions))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    VectorCache(folder / "embeddings", space_of(EMBEDDER)).add(texts, vectors)
    return folder


# Weights in training.


def weighted(folder, weights):
    """A small collection whose queries q0, q1, ... have these weights, by video id."""
    path = make_collection(folder, n_videos=12, n_queries=40) / "queries.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["metadata"] |= {"weights": weights[line["_id"]]} if line["_id"] in weights else {}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return prepare(folder, SplitConfig("query", 0, 1, "all"), pairs=False, width=32)


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """Every positive of the even queries weighs 3, the first one of each 6."""
    folder = tmp_path_factory.mktemp("weighted") / "plain"
    plain = prepare(make_collection(folder, n_videos=12, n_queries=40), SplitConfig("query", 0, 1, "all"), pairs=False)
    weights = {}
    for query, video in zip(
        plain.collection.positives.query.tolist(), plain.collection.positives.video.tolist(), strict=True
    ):
        if query % 2 == 0:
            own = weights.setdefault(f"q{query}", {})
            own[f"v{video}"] = 3 if own else 6
    return weighted(tmp_path_factory.mktemp("weighted") / "heavy", weights)


@pytest.mark.parametrize("name", ["random", "in_batch", "catalogue"])
def test_batches_weigh_the_positives(heavy, name):
    samplers = {
        "random": lambda pool: RandomSampler(RandomSamplerConfig("random", 2), pool, None),
        "in_batch": lambda pool: InBatchSampler(InBatchSamplerConfig("in_batch", False), pool, None),
        "catalogue": lambda pool: CatalogueSampler(CatalogueSamplerConfig("catalogue"), pool, None),
    }
    pool = training_pool(heavy.collection, heavy.split)
    sampler = samplers[name](pool)
    rows = torch.cat([sampler.pairs, sampler.draw(torch.Generator().manual_seed(0))], dim=1)
    batch, seen = sampler.batch(rows[torch.randperm(len(rows))]), set()
    columns = batch.get("columns")
    for at, query in enumerate(batch["query"].tolist()):
        for column in range(batch["weight"].shape[1]):
            is_positive = column == 0 if columns is None else batch["label"][at, column] == 1
            row = columns[column] if columns is not None else batch["video"][at] if column == 0 else -1
            wanted = heavy.collection.weights.get(query, {}).get(int(row), 1.0) if is_positive else None
            assert wanted is None or batch["weight"][at, column] == wanted
            assert is_positive or batch["weight"][at, column] in (0, 1)
            seen.add(wanted)
    assert seen >= {1.0, 3.0, 6.0}


def test_the_ridge_is_weighted_least_squares_towards_weighted_means(heavy):
    data = RankingDataModule(heavy.collection, heavy.split, {}, None, 16, 0)
    model = RidgeTowers(RidgeConfig("dcdt_ridge", ["title", "text"], "none", 3, 0.0, "train", 2.0), heavy.tables)
    model.prepare(data)
    videos, rows, targets, weights = model.video_vectors(), [], [], []
    for query in heavy.split.train.queries.tolist():
        own = [video for row, video in heavy.split.pairs.tolist() if row == query]
        values = torch.tensor([heavy.collection.weights.get(query, {}).get(video, 1.0) for video in own])
        rows.append(query)
        targets.append(torch.nn.functional.normalize((videos[own] * values[:, None]).sum(0), dim=0))
        weights.append(values.mean())
    x = torch.nn.functional.normalize(heavy.tables.queries[rows], dim=-1).double()
    y, w = torch.stack(targets).double(), torch.stack(weights).double().sqrt()[:, None]
    gram = (x * w).T @ (x * w) + 2.0 * torch.eye(x.shape[1])
    expected = torch.eye(x.shape[1]) + torch.linalg.solve(gram, (x * w).T @ ((y - x) * w))
    torch.testing.assert_close(model.query_map.double(), expected, rtol=1e-3, atol=1e-4)
    assert len({float(weight) for weight in weights}) > 2


def test_weighted_queries_do_not_choose_the_penalty(heavy, monkeypatch):
    data = RankingDataModule(heavy.collection, heavy.split, {}, None, 16, 0)
    model = RidgeTowers(RidgeConfig("dcdt_ridge", ["title", "text"], "none", 3, 0.0, "train", None), heavy.tables)
    model.prepare(data)
    sides = [side for side in (data.sides["val"],)]
    plain = [row for row in sides[0].queries.tolist() if row not in heavy.collection.weights]
    assert 0 < len(plain) < len(sides[0].queries)
    model._group = {int(row): at for at, row in enumerate(sides[0].queries)}
    vectors = torch.zeros(len(sides[0].queries), heavy.tables.width)
    of = ridge_towers.quality
    counts = []
    monkeypatch.setattr(ridge_towers, "quality", lambda *given: counts.append(of(*given)) or counts[-1])
    weights = model._quality_weights(torch.ones(len(heavy.collection.queries), dtype=torch.float64), data)
    found = model._left_out_quality(vectors, sides, data, weights)
    kept = [at for at, row in enumerate(sides[0].queries.tolist()) if row in plain]
    assert found == pytest.approx(float(torch.cat(counts)[kept].sum()))


@pytest.mark.parametrize("positives", ["each", "any"])
def test_a_positive_of_weight_two_has_twice_its_loss(positives):
    similarity, label = torch.randn(1, 5), torch.tensor([[1.0, 1, 0, 0, 0]])
    infonce = InfoNCELoss(InfoNCEConfig("infonce", positives, 0.5, False))
    one = infonce(similarity, label, torch.tensor([[1.0, 1, 1, 1, 0]]))
    first, second = (
        infonce(similarity, label, torch.tensor([[2.0 * (at == 0), 2.0 * (at == 1), 1, 1, 0]])) for at in (0, 1)
    )
    torch.testing.assert_close(first + second, 2 * one)
    assert positives == "any" or not torch.allclose(first, second)
    triplet, distance = TripletLoss(TripletConfig("triplet", 0.5)), torch.rand(1, 5)
    alone = torch.tensor([[1.0, 0, 0, 0, 0]])
    torch.testing.assert_close(
        triplet(distance, alone, torch.tensor([[3.0, 1, 1, 1, 1]])), 3 * triplet(distance, alone)
    )
