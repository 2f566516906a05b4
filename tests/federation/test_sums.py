"""A model fitted from the sums of several schools is the model fitted on the queries of all of them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from federation.schools import divide
from scipy.sparse import csr_matrix
from support import make_collection, prepare, slow_but

from baselines.collaborative import Collaborative
from baselines.config import BM25Config, CollaborativeConfig, HybridConfig, ZeroShotConfig
from baselines.hybrid import Hybrid
from baselines.linear import fit_ease, fit_ease_gram, gram_matrix
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.models.config import RidgeConfig
from dcdt.models.query_batch import query_batch
from dcdt.models.ridge_towers import RidgeTowers, ridge, ridge_of_sums

FIELDS = ["title", "text"]
WIDTH = 24


def load(folder):
    parts = prepare(folder, SplitConfig("query", 0, 10, "all"), pairs=False, width=WIDTH)
    parts.data = RankingDataModule(parts.collection, parts.split, {}, None, 16, 0)
    return parts


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """150 queries, some of equal text, pooled and at three schools."""
    folder = tmp_path_factory.mktemp("federated")
    source = make_collection(folder / "all", 20, 150, grades=(1, 2), positive_grade=2, twins=2, repeats=9)
    pooled, schools = divide(source, folder)
    return SimpleNamespace(pooled=load(pooled), schools=[load(school) for school in schools])


def ridge_config(penalty=None, fit_on="judged", **changes):
    values = dict(whiten="soft", neighbours=3, neighbour_weight=0.2, fit_on=fit_on, penalty=penalty)
    return RidgeConfig("dcdt_ridge", FIELDS, **{**values, **changes})


def hybrid_config(fusion="convex", tune_on="judged", first=None, **changes):
    lexical = BM25Config("bm25", FIELDS, "rank_bm25", "plus", 1.5, 0.75, None, False, True)
    return HybridConfig("hybrid", fusion, tune_on, 60, first or lexical, ridge_config(**changes))


EASE = CollaborativeConfig("collaborative", "ease", 8, 0.1, 10.0, 0.05, 20)
CONFIGS = {
    "ease": (Collaborative, EASE),
    "ridge": (RidgeTowers, ridge_config()),
    "ridge of training queries": (RidgeTowers, ridge_config(fit_on="train", whiten="none")),
    "ridge with a penalty": (RidgeTowers, ridge_config(penalty=3.0)),
    "hybrid": (Hybrid, hybrid_config()),
    "hybrid tuned on validation": (Hybrid, hybrid_config(tune_on="val", fit_on="train")),
    "hybrid with a penalty": (Hybrid, hybrid_config(penalty=10.0)),
    "hybrid of ranks": (Hybrid, hybrid_config("rrf")),
    "hybrid of vectors": (Hybrid, hybrid_config(first=ZeroShotConfig("zero_shot", FIELDS, "none"))),
}


def federated(made, cls, config, clip=None, included=True, hub=None):
    """The model of the schools' sums."""

    def total(parts):
        return {name: sum(part.tensors[name] for part in parts) for name in parts[0].tensors}

    models = [cls(config, school.tables) for school in made.schools]
    pairs = list(zip(models, made.schools, strict=True))
    sums = total([model.fitted_part.sum_training(school.data, clip) for model, school in pairs])
    losses = {}
    if models[0].loss_shapes():
        parts = [model.sum_losses(school.data, sums, clip) for model, school in pairs]
        losses = total(parts)
        assert {name: tuple(value.shape) for name, value in losses.items()} == models[0].loss_shapes()
        assert all(
            float(value.min()) >= 0 and float(value.max()) <= sum(p.n for p in parts) for value in losses.values()
        )
    assert {name: tuple(value.shape) for name, value in sums.items()} == models[0].fitted_part.sum_shapes()
    hub = hub or made.pooled
    model = cls(config, hub.tables)
    model.fitted_part.check_sums(sums, 0)
    model.fit_sums(hub.data, sums, losses, included)
    return model


@pytest.mark.parametrize("name", slow_but(["ease", "ridge", "hybrid", "hybrid of ranks"], CONFIGS))
def test_sums_of_schools_fit_the_model_of_all_queries(made, name):
    cls, config = CONFIGS[name]
    pooled, model = cls(config, made.pooled.tables), federated(made, cls, config)
    pooled.prepare(made.pooled.data)
    assert model.fits_from_sums
    assert model.statistics() == pooled.statistics()
    for side in ("test", "val"):
        rows = made.pooled.data.sides[side].queries
        batch = query_batch(made.pooled.collection, made.pooled.tables, rows)
        pairs = [(pooled.score(batch), model.score(batch))]
        if pooled.reads_validation:
            pairs.append((pooled.score_left_out(batch, rows), model.score_left_out(batch, rows)))
        for one, other in pairs:
            torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
            assert torch.equal(
                one.argsort(dim=1, descending=True, stable=True), other.argsort(dim=1, descending=True, stable=True)
            )


def test_the_choices_differ_from_what_one_school_would_choose(made):
    """Else the test above could not tell a choice of all schools from that of one."""
    chosen = {
        tuple(sorted(fitted(Hybrid, hybrid_config(), parts).statistics().items()))
        for parts in (made.pooled, *made.schools)
    }
    assert len(chosen) > 1


def fitted(cls, config, parts):
    model = cls(config, parts.tables)
    model.prepare(parts.data)
    return model


def test_queries_that_are_no_part_of_the_sums_are_scored_as_they_are(made):
    model = federated(made, RidgeTowers, ridge_config(), included=False)
    rows = made.pooled.data.sides["val"].queries
    batch = query_batch(made.pooled.collection, made.pooled.tables, rows)
    assert torch.equal(model.score_left_out(batch, rows), model.score(batch))


@pytest.mark.parametrize("n", [4, 40])
@pytest.mark.parametrize("penalty", [0.3, 10.0, float("inf")])
def test_sums_give_the_ridge_of_the_inputs(n, penalty):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    expected, found = ridge(x, y), ridge_of_sums(x.T @ x, x.T @ y)
    torch.testing.assert_close(found.matrix(penalty), expected.matrix(penalty), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.left_out(penalty, x, y), expected.left_out(penalty, x, y), atol=1e-5, rtol=1e-5)


def test_of_equal_penalties_the_largest_is_chosen(made):
    model = RidgeTowers(ridge_config(), made.pooled.tables)
    sums = model.sum_training(made.pooled.data).tensors
    losses = {"quality": torch.tensor([1.0, 3.0, 2.0, 3.0, 0.0, 3.0, 1.0, 1.0])}
    assert model.fit_sums(made.pooled.data, sums, losses, True) == 5 and float(model.penalty) == 100


def test_weights_of_queries_are_left_out_as_weights():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(12, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    weights = torch.rand(12, 1, generator=generator, dtype=torch.float64)
    found = ridge_of_sums((x * weights).T @ x, (x * weights).T @ y).left_out(1.0, x, y, weights)
    others = ~torch.eye(12, dtype=torch.bool)
    fits = [ridge_of_sums((x * weights)[keep].T @ x[keep], (x * weights)[keep].T @ y[keep]) for keep in others]
    expected = torch.stack([row + row @ fit.matrix(1.0).double() for row, fit in zip(x, fits, strict=True)])
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_learner_counts_as_few_queries_where_clipped(made, tmp_path):
    source = make_collection(tmp_path / "all", 20, 60)
    school = load(divide(source, tmp_path, 1)[1][0])
    for row, metadata in enumerate(school.collection.queries.metadata):
        metadata["user_id"] = "busy" if row % 2 else f"u{row}"
    model = RidgeTowers(ridge_config(), school.tables)
    free, clipped = model.sum_training(school.data), model.sum_training(school.data, 2)
    fitted_rows = [row for rows in (school.split.train, school.split.val) for row in rows.queries.tolist()]
    n_busy = sum(row % 2 for row in fitted_rows)
    assert n_busy > 2
    assert float(free.tensors["gram"].trace()) == pytest.approx(len(fitted_rows), abs=1e-4)
    assert float(clipped.tensors["gram"].trace()) == pytest.approx(len(fitted_rows) - n_busy + 2, abs=1e-4)
    inputs, targets, weights, _ = model._fitting_data(school.data, model._prepare_videos(school.data), 2)
    busy = torch.tensor([row % 2 == 1 for row in model._group])
    x, y = inputs[busy].double() * weights[[*model._group]][busy].unsqueeze(1), targets[busy].double()
    part = [x.T @ inputs[busy].double(), x.T @ y]
    assert sum(float(matrix.square().sum()) for matrix in part) ** 0.5 <= clipped.sensitivity == 2 * 2**0.5


def test_ease_of_sums_is_ease_of_all_learners():
    rng = np.random.default_rng(0)
    watched = csr_matrix(rng.poisson(0.4, (50, 12)).astype("f4"))
    parts = [gram_matrix(watched[rows], "ease").toarray() for rows in (slice(0, 7), slice(7, 30), slice(30, 50))]
    np.testing.assert_allclose(fit_ease_gram(sum(parts), 5.0), fit_ease(watched, 5.0), atol=1e-6)


def test_ease_takes_noise_that_makes_the_sums_indefinite():
    noise = np.random.default_rng(0).normal(0, 50, (12, 12))
    weights = fit_ease_gram(np.eye(12) + noise + noise.T, 1.0)
    assert np.isfinite(weights).all() and (np.diag(weights) == 0).all()


def test_only_models_with_sums_are_fitted_from_them(made):
    tables, zero_shot = made.pooled.tables, ZeroShotConfig("zero_shot", FIELDS, "none")
    als = CollaborativeConfig("collaborative", "als", 8, 0.1, 10.0, 0.05, 20)
    assert Collaborative(EASE, tables).fits_from_sums and not Collaborative(als, tables).fits_from_sums
    untrained = HybridConfig("hybrid", "convex", "val", 60, hybrid_config().first, zero_shot)
    nested = HybridConfig("hybrid", "convex", "val", 60, hybrid_config().first, hybrid_config())
    assert not Hybrid(untrained, tables).fits_from_sums and not Hybrid(nested, tables).fits_from_sums
