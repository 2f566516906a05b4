import io
import json

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import ElasticNet
from support import make_collection, prepare, quiet_trainer, slow_but

from baselines.collaborative import Collaborative
from baselines.config import CollaborativeConfig
from baselines.implicit_models import ITERATIONS, ImplicitModel
from baselines.linear import fit_ease, fit_slim
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.models.query_batch import QueryBatch, query_batch
from dcdt.utils.errors import NotApplicable, UserError

KINDS = ["als", "bpr", "cosine", "tfidf", "bm25", "ease", "slim"]
N_VIDEOS, N_QUERIES, N_LEARNERS = 20, 60, 30
kinds = pytest.mark.parametrize("kind", KINDS)


def config_of(kind="als", **changes):
    values = dict(factors=8, regularization=0.1, alpha=10.0, learning_rate=0.05, neighbours=N_VIDEOS)
    return CollaborativeConfig("collaborative", kind, **{**values, **changes})


def checkerboard(n=40):
    """Learner u watched the videos of u's colour, but for video u: which is what u should be shown."""
    board = np.fromfunction(lambda row, column: (row + column) % 2 == 0, (n, n)).astype("f4")
    np.fill_diagonal(board, 0)
    return csr_matrix(board)


def fitted(kind, watched=None, seed=0, **changes):
    changes = {"neighbours": 40, **changes}
    if kind in ITERATIONS and watched is None:  # a board of two colours needs few factors
        changes = {"regularization": 0.01, "factors": 3 if kind == "als" else 8, **changes}
    model = ImplicitModel(config_of(kind, **changes))
    model.fit(checkerboard() if watched is None else watched, seed)
    return model


@kinds
def test_the_checkerboard_is_filled(kind):
    watched = checkerboard()
    scores = fitted(kind).score(watched)
    assert scores.shape == watched.shape
    scores[watched.nonzero()] = -np.inf
    assert scores.argmax(1).tolist() == list(range(40))


@kinds
def test_the_other_colour_stands_last(kind):
    watched = checkerboard()
    scores = fitted(kind).score(watched)
    own = np.fromfunction(lambda row, column: (row + column) % 2 == 0, (40, 40))
    assert (scores[own].reshape(40, 20).min(1) > scores[~own].reshape(40, 20).max(1)).all()


@kinds
def test_fitting_twice_gives_the_same_bytes_and_another_seed_others(kind):
    rng = np.random.default_rng(0)
    watched = csr_matrix((rng.random((60, 25)) < 0.2).astype("f4"))
    one, two, other = (fitted(kind, watched, seed).score(watched) for seed in (3, 3, 4))
    assert one.tobytes() == two.tobytes()
    assert (one.tobytes() == other.tobytes()) == (kind not in ITERATIONS)


def test_als_folds_a_history_in_by_least_squares():
    rng = np.random.default_rng(0)
    model = fitted("als", csr_matrix((rng.random((50, 12)) < 0.3).astype("f4")))
    history = np.zeros((2, 12), dtype="f4")
    history[0, [1, 5]] = 1
    history[1, 7] = 2
    items = model.items.astype(np.float64)
    for row, counts in enumerate(history):
        confidence = np.where(counts > 0, 10.0 * counts, 1.0)
        system = items.T @ (confidence[:, None] * items) + 0.1 * np.eye(8)
        learner = np.linalg.solve(system, items.T @ (confidence * (counts > 0)))
        np.testing.assert_allclose(model.score(csr_matrix(history))[row], items @ learner, rtol=1e-3, atol=1e-4)


def test_bpr_folds_a_history_in_by_expected_steps(monkeypatch):
    monkeypatch.setitem(ITERATIONS, "bpr", 2)
    rng = np.random.default_rng(0)
    model = fitted("bpr", csr_matrix((rng.random((50, 9)) < 0.3).astype("f4")), learning_rate=0.3, regularization=0.2)
    factors, bias = model.items[:, :-1].astype(np.float64), model.items[:, -1].astype(np.float64)
    own, counts = [2, 6], {2: 1, 6: 3}
    others = [at for at in range(9) if at not in own]
    total = sum(model.popularity[at] for at in others)
    learner = np.zeros(8)
    for _ in range(2):
        step = np.zeros(8)
        for liked in own:
            for disliked in others:
                gap = (factors[liked] - factors[disliked]) @ learner + bias[liked] - bias[disliked]
                push = model.popularity[disliked] / total / (1 + np.exp(gap))
                step += counts[liked] * push * (factors[liked] - factors[disliked])
            step -= counts[liked] * 0.2 * learner
        learner += 0.3 * step
    history = np.zeros((1, 9), dtype="f4")
    history[0, own] = [1, 3]
    assert np.abs(learner).max() > 0.01
    np.testing.assert_allclose(model.score(csr_matrix(history))[0], factors @ learner + bias, rtol=1e-5, atol=1e-7)


def test_a_folded_learner_is_like_the_fitted_one():
    watched = checkerboard()
    for kind in ITERATIONS:
        model = fitted(kind)
        folded, own = model.score(watched), model.score_fitted(0, 40)
        assert min(np.corrcoef(folded[row], own[row])[0, 1] for row in range(40)) > 0.9


@kinds
def test_a_learner_without_history_gets_the_popular_and_a_video_nobody_watched_stands_last(kind):
    rng = np.random.default_rng(0)
    board = (rng.random((60, 25)) < np.linspace(0.05, 0.5, 25)).astype("f4")
    board[:, 4] = 0
    model = fitted(kind, csr_matrix(board))
    history = np.zeros((3, 25), dtype="f4")
    history[1, 4] = 1  # known to nobody else
    history[2, 9] = 1
    scores = model.score(csr_matrix(history))
    assert model.has_known_video(csr_matrix(history)).tolist() == [False, False, True]
    watched = np.arange(25) != 4
    np.testing.assert_array_equal(scores[:2, watched], np.tile(board.sum(0)[watched], (2, 1)))
    assert (scores.argmin(1) == 4).all()
    assert not np.array_equal(scores[2, watched], scores[0, watched])


def test_ease_is_the_ridge_regression_of_each_video_on_the_others():
    rng = np.random.default_rng(0)
    watched = rng.random((40, 9)) * (rng.random((40, 9)) < 0.4)
    weights = fit_ease(csr_matrix(watched), 3.0)
    for video in range(9):
        others = np.delete(watched, video, axis=1)
        expected = np.linalg.solve(others.T @ others + 3.0 * np.eye(8), others.T @ watched[:, video])
        np.testing.assert_allclose(np.delete(weights[:, video], video), expected, rtol=1e-5, atol=1e-7)
    assert (np.diag(weights) == 0).all()


@pytest.mark.parametrize(("l1", "l2"), [(0.3, 2.0), (2.0, 1.0), (0.05, 0.5)])
def test_slim_is_the_elastic_net_of_each_video_on_the_others(l1, l2):
    rng = np.random.default_rng(0)
    watched = rng.integers(1, 3, (40, 9)) * (rng.random((40, 9)) < 0.4)
    weights = fit_slim(csr_matrix(watched), l1, l2).toarray()
    net = {"alpha": (l1 + l2) / 40, "l1_ratio": l1 / (l1 + l2), "positive": True, "fit_intercept": False}
    for video in range(9):
        others = np.delete(watched, video, axis=1)
        expected = ElasticNet(**net, tol=1e-9, max_iter=10_000).fit(others, watched[:, video]).coef_
        np.testing.assert_allclose(np.delete(weights[:, video], video), expected, atol=5e-4)
    assert (np.diag(weights) == 0).all() and 0 < (weights > 0).mean() < 1


@pytest.mark.parametrize("kind", ["ease", "slim"])
def test_linear_kinds_refuse_what_would_not_fit_in_memory(kind):
    with pytest.raises(UserError, match=rf"model\.kind={kind} takes at most 20,000 videos.*here are 20,001"):
        fitted(kind, csr_matrix((2, 20_001)))


def test_tfidf_stays_finite_where_learners_weigh_nothing():
    board = np.zeros((3, 4), dtype="f4")
    board[0, [0, 1, 2]] = 1  # three of four: weight log(4 / 4)
    board[1, 3] = board[2, 3] = 1
    assert np.isfinite(fitted("tfidf", csr_matrix(board)).score(csr_matrix(board))).all()


# The recommender: what it may see.


def make_folder(folder, askers=True, n_videos=N_VIDEOS, seed=0):
    """A collection with watches at whole seconds from 0 to 99; learner u<k % 30> asks query q<k> at second 30 + k.

    Learners u0 to u24 have watches; u25 to u29 are unknown to the file.
    """
    make_collection(folder, n_videos=n_videos, n_queries=N_QUERIES)
    rng = np.random.default_rng(seed)
    if askers:
        path = folder / "queries.jsonl"
        queries = [json.loads(line) for line in path.read_text().splitlines()]
        for at, query in enumerate(queries):
            query["metadata"] = {"user_id": f"u{at % N_LEARNERS}", "timestamp": 30 + at}
        path.write_text("".join(json.dumps(query) + "\n" for query in queries))
    rows = [
        (f"u{user}", f"v{item}", int(rng.integers(0, 100)))
        for user in range(25)
        for item in rng.choice(n_videos, 9, replace=False)
    ]
    write_watches(folder, rows)
    return folder


def write_watches(folder, rows):
    text = "".join(f"{user},{item},{time}\n" for user, item, time in rows)
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + text)


def read_watches(folder):
    lines = (folder / "interactions.csv").read_text().splitlines()[1:]
    return [(user, item, float(time)) for user, item, time in (line.split(",") for line in lines)]


def run_on(folder, kind="als", split="query", **changes):
    """A prepared model, its DataModule and the scores of every held-out query, by query row."""
    made = prepare(folder, SplitConfig(split, 0, 10, "all"))
    data = RankingDataModule(made.collection, made.split, made.pairs, None, 16, 0)
    model = Collaborative(config_of(kind, **changes), made.tables)
    model.prepare(data)
    rows = np.unique(np.concatenate([side.queries for side in made.split.sides.values()]))
    scores = model.score(query_batch(made.collection, made.tables, torch.from_numpy(rows)))
    return model, data, dict(zip(rows.tolist(), scores, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("watched") / "made")


def asked(row):
    return f"u{row % N_LEARNERS}", 30 + row


@pytest.mark.parametrize("kind", slow_but(["cosine", "als"], [*KINDS, "popularity"]))
@pytest.mark.parametrize("split", ["query", "time"])
def test_nothing_the_asker_does_later_reaches_the_scores(folder, tmp_path, kind, split):
    _, _, before = run_on(folder, kind, split)
    other = make_folder(tmp_path / "other")
    rng = np.random.default_rng(1)
    checked = 0
    for row in before:
        user, time = asked(row)
        if user in {f"u{at}" for at in range(25, 30)} or checked >= 4:
            continue
        later = [watch for watch in read_watches(folder) if watch[0] == user and watch[2] >= time]
        kept = [watch for watch in read_watches(folder) if watch not in later]
        for changed in (
            [(user, f"v{rng.integers(N_VIDEOS)}", time + extra) for _, _, extra in [*later, later[0]]] if later else [],
            [],
            [(user, "v1", time)] * 50,
        ):
            write_watches(other, [*kept, *changed])
            assert torch.equal(run_on(other, kind, split)[2][row], before[row])
        checked += bool(later)
    assert checked >= 3


@kinds
def test_what_the_asker_did_earlier_does_reach_the_scores(folder, tmp_path, kind):
    _, _, before = run_on(folder, kind)
    row = next(
        row for row in before if any(w[0] == asked(row)[0] and w[2] < asked(row)[1] for w in read_watches(folder))
    )
    user, time = asked(row)
    other = make_folder(tmp_path / "other")
    write_watches(other, [w for w in read_watches(folder) if w[0] != user or w[2] >= time])
    assert not torch.equal(run_on(other, kind)[2][row], before[row])


def test_a_history_ends_strictly_before_its_question(folder):
    model, _, _ = run_on(folder)
    user, time = "u3", 47.0
    expected = np.zeros(N_VIDEOS)
    for name, item, when in read_watches(folder):
        expected[int(item[1:])] += name == user and when < time
    found = model.counts([user, user, None, user, "nobody"], [time, 0.0, 9.0, None, 9.0]).toarray()
    assert found.tolist() == [expected.tolist(), *[[0.0] * N_VIDEOS] * 4]
    watched = next(when for name, _, when in read_watches(folder) if name == user)
    assert model.counts([user], [watched]).sum() == model.counts([user], [watched + 0.5]).sum() - 1


@kinds
def test_nothing_from_the_cutoff_on_is_fitted(folder, tmp_path, kind):
    _, data, before = run_on(folder, kind, "time")
    cutoff = data.split.cutoff
    assert 0 < sum(time >= cutoff for *_, time in read_watches(folder)) < len(read_watches(folder))
    askers = {asked(row)[0] for row in before}
    other = make_folder(tmp_path / "other")
    kept = [watch for watch in read_watches(folder) if watch[2] < cutoff or watch[0] in askers]
    assert len(kept) < len(read_watches(folder))
    write_watches(other, kept)
    after = run_on(other, kind, "time")[2]
    assert all(torch.equal(after[row], before[row]) for row in before)
    write_watches(other, [*kept, ("a newcomer", "v1", cutoff), ("u30", "v2", cutoff + 1)])
    after = run_on(other, kind, "time")[2]
    assert all(torch.equal(after[row], before[row]) for row in before)
    write_watches(other, [watch for watch in kept if watch[0] in askers or watch[2] < cutoff - 20])
    after = run_on(other, kind, "time")[2]
    assert not all(torch.equal(after[row], before[row]) for row in before)


def test_who_is_fitted_on_what(folder):
    model, data, _ = run_on(folder, "popularity")
    first = {}
    for side in data.split.sides.values():
        for row in side.queries.tolist():
            user, time = asked(row)
            first[user] = min(time, first.get(user, np.inf))
    expected = np.zeros(N_VIDEOS)
    for user, item, time in read_watches(folder):
        expected[int(item[1:])] += time < first.get(user, np.inf)
    assert model.model.popularity.tolist() == expected.tolist()
    assert 0 < len(first) < N_LEARNERS
    assert any(user in first and time >= first[user] for user, _, time in read_watches(folder))


@pytest.mark.parametrize("kind", ["ease", "slim"])
def test_linear_kinds_weigh_a_watch_by_how_many_the_learner_had_later(folder, kind):
    """Asked with a decay: the latest watch weighs 1, the one before it the decay, and so on; fitted on counts."""
    model, _, scores = run_on(folder, kind, decay=0.5, l2=5.0)
    plain = run_on(folder, kind, l2=5.0)[0]
    items, same = (one.model.items.toarray() if kind == "slim" else one.model.items for one in (model, plain))
    np.testing.assert_array_equal(items, same)
    known, checked = model.model.popularity > 0, 0
    for row, found in scores.items():
        user, time = asked(row)
        own = sorted((w for w in read_watches(folder) if w[0] == user and w[2] < time), key=lambda w: (w[2], w[1]))
        expected = np.zeros(N_VIDEOS)
        for age, (_, item, _) in enumerate(reversed(own)):
            expected += 0.5**age * items[int(item[1:])]
        if any(known[int(item[1:])] for _, item, _ in own):
            np.testing.assert_allclose(found.numpy()[known], expected[known], atol=1e-6)
            checked += len(own) > 2
    assert checked > 5


def test_cold_queries_are_counted_and_ranked_by_popularity(folder):
    model, data, scores = run_on(folder)
    cold = {name: 0 for name in data.split.sides}
    for name, side in data.split.sides.items():
        for row in side.queries.tolist():
            user, time = asked(row)
            known = any(watch[0] == user and watch[2] < time for watch in read_watches(folder))
            cold[name] += not known
            popular = np.array_equal(scores[row].numpy(), model.model.popularity.astype("f4"))
            assert popular == (not known)
    assert model.statistics() == {f"{name}/cold_queries": number for name, number in cold.items()}
    assert 0 < cold["val"] < len(data.split.val.queries)


def test_questions_without_learners_are_all_cold(tmp_path):
    folder = make_folder(tmp_path / "anonymous", askers=False)
    model, data, scores = run_on(folder)
    assert model.statistics()["test/cold_queries"] == len(data.split.test.queries)
    assert model.model.popularity.sum() == len(read_watches(folder))
    expected = torch.from_numpy(model.model.popularity).float()
    assert all(torch.equal(row, expected) for row in scores.values())


def test_a_question_without_a_time_has_no_history(tmp_path):
    folder = make_folder(tmp_path / "timeless")
    path = folder / "queries.jsonl"
    queries = [json.loads(line) for line in path.read_text().splitlines()]
    for query in queries:
        del query["metadata"]["timestamp"]
    path.write_text("".join(json.dumps(query) + "\n" for query in queries))
    model, data, _ = run_on(folder, "popularity")
    askers = {asked(row)[0] for side in data.split.sides.values() for row in side.queries.tolist()}
    assert model.model.popularity.sum() == sum(user not in askers for user, *_ in read_watches(folder)) > 0
    assert model.statistics()["val/cold_queries"] == len(data.split.val.queries)


def test_a_time_that_is_no_number_is_named(tmp_path):
    folder = make_folder(tmp_path / "spelt")
    path = folder / "queries.jsonl"
    path.write_text(path.read_text().replace('"timestamp": ', '"timestamp": "noon", "was": '))
    with pytest.raises(UserError, match=r"the query 'q.*' has the timestamp 'noon'"):
        run_on(folder)


def test_no_interactions_are_not_applicable(tmp_path):
    folder = make_folder(tmp_path / "bare")
    (folder / "interactions.csv").unlink()
    with pytest.raises(NotApplicable, match=r"no interactions\.csv"):
        run_on(folder)


def test_no_interactions_before_the_questions_are_not_applicable(tmp_path):
    folder = make_folder(tmp_path / "late")
    write_watches(folder, [("u0", "v1", 1000)])
    with pytest.raises(NotApplicable, match="no interaction of the collection is before"):
        run_on(folder, split="time")


@pytest.mark.parametrize("kind", [*KINDS, "popularity"])
def test_a_saved_model_scores_the_same(folder, kind):
    model, _, _ = run_on(folder, kind)
    other = Collaborative(config_of(kind), model.tables)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    users = ["u1", "u7", "u29", None, "u3"]
    batch = QueryBatch(torch.zeros(5, 2), [""] * 5, users, [90.0, 40.0, 50.0, 60.0, 99.0])
    assert torch.equal(other.score(batch), model.score(batch))
    assert other.statistics() == model.statistics()
    assert len(model.score(batch).unique(dim=0)) > (1 if kind != "popularity" else 0)


def test_it_is_validated_and_tested_like_every_model(folder):
    model, data, _ = run_on(folder)
    trainer = quiet_trainer()
    found = trainer.validate(model, datamodule=data, verbose=False)[0]["val/mrr"]
    trainer.test(model, datamodule=data, verbose=False)
    assert float(model.results["val"].metrics["mrr"].mean()) == pytest.approx(found)
    assert model.score(query_batch(data.collection, model.tables, torch.tensor([0]))).dtype == torch.float32
    assert not Collaborative.trained_by_epochs and not Collaborative.decoupled
