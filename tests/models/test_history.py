import io
import itertools
import json
import math

import numpy as np
import pytest
import torch
from support import make_collection, prepare, quiet_trainer, slow_but

from baselines.config import ZeroShotConfig
from baselines.zero_shot import ZeroShot
from dcdt.data import histories as histories_module
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.histories import Histories, pool_history
from dcdt.data.interactions import load_interactions
from dcdt.models import history_tower
from dcdt.models.config import HistoryConfig
from dcdt.models.history import HistoryTowers, principal_directions
from dcdt.models.history_tower import HistoryTower, fit_tower, next_video_examples
from dcdt.models.query_batch import QueryBatch, query_batch
from dcdt.utils.errors import NotApplicable

N_VIDEOS, N_LEARNERS, N_QUERIES = 20, 30, 60
POOLINGS = ["mean", "attention"]
poolings = pytest.mark.parametrize("history", POOLINGS)


def config_of(history="attention", **changes):
    values = dict(whiten="soft", length=4, width=12, videos="learned", epochs=3, lr=1e-2, dropout=0.2)
    return HistoryConfig("dcdt_history", ["title", "text"], history=history, **{**values, **changes})


def make_folder(folder, asked=True, seed=0):
    """Watches at whole seconds from 0 to 99 of u0 to u24; learner u<k % 30> asks query q<k> at second 30 + k."""
    make_collection(folder, n_videos=N_VIDEOS, n_queries=N_QUERIES)
    path = folder / "queries.jsonl"
    if asked:
        queries = [json.loads(line) for line in path.read_text().splitlines()]
        for at, query in enumerate(queries):
            query["metadata"] = {"user_id": f"u{at % N_LEARNERS}", "timestamp": 30 + at}
        path.write_text("".join(json.dumps(query) + "\n" for query in queries))
    else:
        path.unlink()
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{user}", f"v{item}", int(rng.integers(0, 100)))
        for user in range(25)
        for item in rng.choice(N_VIDEOS, 9, replace=False)
    ]
    return write_watches(folder, rows)


def write_watches(folder, rows):
    text = "".join(f"{user},{item},{time}\n" for user, item, time in rows)
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + text)
    return folder


def read_watches(folder):
    lines = (folder / "interactions.csv").read_text().splitlines()[1:]
    return [(user, item, float(time)) for user, item, time in (line.split(",") for line in lines)]


def run_on(folder, config, split="query"):
    """A prepared model, its DataModule and the scores of every held-out query, by query id."""
    made = prepare(folder, SplitConfig(split, 0, 10, "all"), pairs=False, width=256)
    data = RankingDataModule(made.collection, made.split, {}, None, 16, 0)
    model = HistoryTowers(config, made.tables)
    model.prepare(data)
    rows = np.unique(np.concatenate([side.queries for side in made.split.sides.values()]))
    with torch.no_grad():
        scores = model.score(query_batch(made.collection, made.tables, torch.from_numpy(rows)))
    return model, data, dict(zip([made.collection.queries.ids[row] for row in rows], scores, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("history") / "made")


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Nobody asks."""
    return make_folder(tmp_path_factory.mktemp("history") / "bare", asked=False)


# Pooling, against loops.


def unit(vector):
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector] if length else vector


def random_tower(history, generator, width=5, n=9):
    tower = HistoryTower(config_of(history), n, width)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    tower.popularity = torch.rand(n, generator=generator)
    return tower, torch.nn.functional.normalize(torch.randn(n, width, generator=generator), dim=-1)


@poolings
@pytest.mark.parametrize("asking", [False, True])
def test_pooling_is_what_a_loop_says(history, asking):
    generator = torch.Generator().manual_seed(1)
    tower, base = random_tower(history, generator)
    videos = tower.videos(base).detach()
    watched = torch.tensor([[3, 1, 7], [2, -1, -1], [-1, -1, -1], [4, 4, -1]])
    asked = torch.nn.functional.normalize(torch.randn(4, 5, generator=generator), dim=-1)
    asked[3] = 0  # one of them asks nothing
    found = tower.learners(videos, watched, asked if asking else None).detach()
    scores = tower.score(found, videos, tower.popularity).detach()
    for row, listed in enumerate(watched.tolist()):
        own = [video for video in listed if video >= 0]
        query = asked[row] if asking and row != 3 else videos[own[0]] if own else None
        weights = [1.0] * len(own)
        if history == "attention":
            match, decay = float(tower.match.detach()), float(tower.decay.detach())
            weights = [
                math.exp(match * float(query @ videos[video]) - decay * math.log(1 + age))
                for age, video in enumerate(own)
            ]
        total = [sum(w * float(videos[v][d]) for w, v in zip(weights, own, strict=True)) for d in range(5)]
        pool = torch.tensor(unit(total), dtype=torch.float32)
        expected = torch.tensor(unit((pool + pool @ tower.map.detach()).tolist()))
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)
        prior = float(tower.prior.detach())
        value = [float(expected @ videos[v]) + prior * float(tower.popularity[v]) for v in range(9)]
        torch.testing.assert_close(scores[row], torch.tensor(value), rtol=1e-4, atol=1e-5)
    assert not found[2].any()


def test_padding_weighs_nothing_and_a_history_of_nothing_is_zero():
    vectors = torch.eye(3)
    assert pool_history(vectors, torch.full((2, 0), -1)).tolist() == [[0.0] * 3] * 2
    short, wide = torch.tensor([[1]]), torch.tensor([[1, -1, -1]])
    assert torch.equal(pool_history(vectors, short), pool_history(vectors, wide))
    assert torch.equal(pool_history(vectors, wide, torch.tensor([[0.0, 9.0, 9.0]])), vectors[1:2])


def test_untrained_towers_are_the_mean(bare):
    model, data, _ = run_on(bare, config_of("mean", epochs=0, width=5000, whiten="none"), "time")
    with torch.no_grad():
        model.tower.prior.zero_()
    zero_shot = ZeroShot(ZeroShotConfig("zero_shot", ["title", "text"], "none", "mean"), model.tables)
    zero_shot.prepare(data)
    queries = query_batch(data.collection, model.tables, data.sides["test"].queries)
    model.config.length = N_VIDEOS
    torch.testing.assert_close(model.score(queries).detach(), zero_shot.score(queries), rtol=1e-4, atol=1e-5)


# What may be seen.


def asked_at(name):
    row = int(name[1:])
    return f"u{row % N_LEARNERS}", 30 + row


def leaks(folder, other, config, split):
    """Whether something planted at or after a held-out query's time changes its scores."""
    before = run_on(folder, config, split)[2]
    for name in list(before)[:12:3]:
        user, time = asked_at(name)
        kept = [watch for watch in read_watches(folder) if watch[0] != user or watch[2] < time]
        for planted in ([], [(user, "v1", time)] * 5, [(user, "v2", time + 1), (user, "v3", time + 2)]):
            write_watches(other, [*kept, *planted])
            if not torch.equal(run_on(other, config, split)[2][name], before[name]):
                return True
    return False


@pytest.mark.parametrize("split", slow_but(["time"], ["query", "time"]))
def test_nothing_at_or_after_the_question_reaches_its_scores(folder, tmp_path, split):
    assert not leaks(folder, make_folder(tmp_path / "other"), config_of(), split)


def test_a_history_that_looks_ahead_is_found_out(folder, tmp_path, monkeypatch):
    """The test above can fail: here `before` returns everything."""
    whole = Histories.watched_before
    monkeypatch.setattr(
        histories_module.Histories, "watched_before", lambda self, user, time: whole(self, user, math.inf)
    )
    assert leaks(folder, make_folder(tmp_path / "other"), config_of(), "query")


def test_fitting_that_looks_ahead_is_found_out(folder, tmp_path, monkeypatch):
    everything = lambda watches, asked, cutoff: np.ones(len(watches), dtype=bool)  # noqa: E731
    monkeypatch.setattr("dcdt.models.history.fittable_watches", everything)
    assert leaks(folder, make_folder(tmp_path / "other"), config_of(), "query")


def test_nothing_from_the_cutoff_on_is_fitted(bare, tmp_path):
    model, data, _ = run_on(bare, config_of(), "time")
    cutoff = data.split.cutoff
    expected = np.zeros(N_VIDEOS)
    for user, item, time in read_watches(bare):
        asked = [
            meta["timestamp"]
            for name, meta in zip(data.collection.queries.ids, data.collection.queries.metadata, strict=True)
            if name == user
            and any(data.collection.queries.row_of[name] in side.queries for side in data.split.sides.values())
        ]
        expected[int(item[1:])] += time < min([cutoff, *asked])
    np.testing.assert_allclose(model.tower.popularity.expm1().numpy(), expected, atol=1e-4)
    assert 0 < expected.sum() < len(read_watches(bare))


def test_examples_are_all_earlier_watches_of_the_same_learner(folder):
    collection = prepare(folder, SplitConfig("query", 0, 10, "all")).collection
    watches = load_interactions(folder / "interactions.csv", collection.videos.row_of)
    examples = next_video_examples(*(torch.from_numpy(part) for part in (watches.user, watches.item, watches.time)))
    expected = []
    triples = list(zip(watches.user.tolist(), watches.item.tolist(), watches.time.tolist(), strict=True))
    for user, item, time in triples:
        earlier = [other for who, other, when in triples if who == user and when < time]
        if earlier:
            expected.append((item, [*earlier[-4:][::-1], *[-1] * (4 - len(earlier[-4:]))]))
    found = examples.histories(torch.arange(len(examples.target)), 4)
    assert list(zip(examples.target.tolist(), found.tolist(), strict=True)) == expected
    assert any(one[0] == two[0] and one[2] == two[2] for one, two in itertools.pairwise(triples))


# Fitting.


def test_the_correction_makes_the_batch_stand_for_the_catalogue():
    """exp(own) + sum of exp(s) / pi over what stands in a batch is, in the mean, the sum over the catalogue."""
    share, size = torch.tensor([0.6, 0.3, 0.08, 0.02]).double(), 4
    scores, own = torch.tensor([0.3, -0.2, 1.0, 0.5]).double(), 1
    total = 0.0
    for others in np.ndindex(4, 4, 4):  # the videos of the other three examples
        columns = torch.unique(torch.tensor([own, *others]))
        label = torch.full((size,), int((columns == own).nonzero()))
        logits = scores[columns] + history_tower._logq_correction(share[columns], label, size)[0].double()
        total += float(share[list(others)].prod() * logits.exp().sum())
    assert total == pytest.approx(float(scores.exp().sum()), rel=1e-5)


def test_videos_the_learner_has_are_no_negatives_but_the_own_is():
    watched, columns = torch.tensor([[5, 2, -1], [9, -1, -1], [0, 7, 5]]), torch.tensor([0, 2, 5])
    found = history_tower._watched_mask(watched, columns, torch.tensor([1, 0, 2]))
    assert found.tolist() == [[False, False, True], [False, False, False], [True, False, False]]


@pytest.mark.parametrize("videos", ["frozen", "learned"])
def test_fitting_learns_which_video_comes_next(videos):
    """Video v is always followed by v + 1."""
    n = 12
    user = torch.arange(40).repeat_interleave(4)
    item = (torch.arange(40)[:, None] + torch.arange(4)).flatten() % n
    time = torch.arange(4).repeat(40).double()
    base = torch.nn.functional.normalize(torch.randn(n, 12, generator=torch.Generator().manual_seed(0)), dim=-1)
    config = config_of(videos=videos, epochs=150, lr=2e-2, dropout=0.0)
    tower = HistoryTower(config, n, 12)
    losses = fit_tower(tower, base, next_video_examples(user, item, time), config, 0, again=False)
    with torch.no_grad():
        shown = tower.videos(base)
        scores = tower.score(tower.learners(shown, torch.arange(n)[:, None], None), shown, tower.popularity)
    scores[torch.arange(n), torch.arange(n)] = -torch.inf
    assert losses[-1] < losses[0] / 4
    assert (scores.argmax(1) == (torch.arange(n) + 1) % n).float().mean() >= 0.9


@poolings
def test_the_same_seed_gives_the_same_scores_and_the_global_generator_does_not_matter(folder, history):
    one = run_on(folder, config_of(history))[2]
    torch.manual_seed(99)
    two = run_on(folder, config_of(history))[2]
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_principal_directions_are_orthonormal_and_hold_the_most():
    vectors = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 9)
    basis = principal_directions(vectors, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3), rtol=1e-4, atol=1e-5)
    values = torch.linalg.eigvalsh(vectors.T @ vectors).flip(0)
    assert float((vectors @ basis).square().sum()) == pytest.approx(float(values[:3].sum()), rel=1e-4)


# Cold learners, weights, saving.


def test_cold_learners_are_counted_and_get_the_question_and_what_is_watched_often(folder):
    model, data, found = run_on(folder, config_of())
    cold = {name: 0 for name in data.split.sides}
    asked = ZeroShot(ZeroShotConfig("zero_shot", ["title", "text"], "soft"), model.tables)
    asked.prepare(data)
    for side, part in data.split.sides.items():
        for row in part.queries.tolist():
            user, time = asked_at(data.collection.queries.ids[row])
            if any(watch[0] == user and watch[2] < time for watch in read_watches(folder)):
                continue
            cold[side] += 1
            batch = query_batch(data.collection, model.tables, torch.tensor([row]))
            expected = asked.score(batch)[0] + model.weight * model.tower.prior.detach() * model.tower.popularity
            torch.testing.assert_close(found[data.collection.queries.ids[row]], expected, rtol=1e-4, atol=1e-5)
    assert {key: value for key, value in model.statistics().items() if "cold" in key} == {
        f"{side}/cold_queries": number for side, number in cold.items()
    }
    assert 0 < cold["val"] < len(data.split.val.queries)


def test_without_history_and_question_it_is_popularity(bare):
    model, _, found = run_on(bare, config_of("none"), "time")
    popular = model.tower.popularity.argsort(stable=True)
    for scores in found.values():
        assert torch.equal(scores.argsort(stable=True), popular)
    assert float(model.weight) == 1.0


def test_the_weight_of_the_history_is_the_best_on_validation(folder):
    model, data, _ = run_on(folder, config_of())
    found = {}
    for weight in (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0):
        model.weight = torch.tensor(weight)
        found[weight] = quiet_trainer().validate(model, datamodule=data, verbose=False)[0]["val/mrr"]
    chosen = run_on(folder, config_of())[0].weight
    assert float(chosen) == pytest.approx(max(found, key=lambda weight: found[weight]))


@pytest.mark.parametrize("history", ["none", *POOLINGS])
def test_a_saved_model_scores_the_same(folder, history):
    model, _, _ = run_on(folder, config_of(history))
    other = HistoryTowers(config_of(history), model.tables)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    users = ["u1", "u7", "u29", None, "u3"]
    batch = QueryBatch(model.tables.queries[:5], [""] * 5, users, [90.0, 40.0, 50.0, 60.0, 99.0])
    assert torch.equal(other.score(batch), model.score(batch))
    assert other.statistics() == model.statistics()


def test_no_interactions_are_not_applicable(tmp_path):
    folder = make_folder(tmp_path / "made")
    (folder / "interactions.csv").unlink()
    with pytest.raises(NotApplicable, match=r"no interactions\.csv"):
        run_on(folder, config_of())
    write_watches(folder, [(f"u{user}", "v1", 1) for user in range(9)])
    with pytest.raises(NotApplicable, match="no learner watched a second video"):
        run_on(folder, config_of())
