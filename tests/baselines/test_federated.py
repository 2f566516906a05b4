"""A federation on one collection: its sums fit the pooled model, and what is drawn as a school is one."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from federation.test_sums import WIDTH, ridge_config
from support import make_collection, prepare

from baselines.config import FederatedConfig, ZeroShotConfig
from baselines.federated import Federated, infer_membership
from dcdt.config import validate
from dcdt.data.beir import load_collection
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.splits import make_split
from dcdt.data.types import normalise_text
from dcdt.models.query_batch import query_batch
from dcdt.models.ridge_towers import RidgeTowers
from dcdt.serving.export import scorer_of
from dcdt.utils.errors import NotApplicable, UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """150 queries, some of equal text, of two subjects."""
    made = make_collection(tmp_path_factory.mktemp("federated") / "all", 20, 150, repeats=9)
    lines = (made / "queries.jsonl").read_text().splitlines()
    marked = [
        line.replace('"metadata": {', f'"metadata": {{"subject": "{"ab"[i % 141 % 2]}", ')
        for i, line in enumerate(lines)
    ]
    (made / "queries.jsonl").write_text("\n".join(marked) + "\n")
    return made


@pytest.fixture(scope="module")
def made(folder):
    return load(folder, 3)


def load(folder, schools):
    parts = prepare(folder, SplitConfig("query", 0, 10, "all", schools=schools), pairs=False, width=WIDTH)
    return SimpleNamespace(**vars(parts), data=RankingDataModule(parts.collection, parts.split, {}, None, 16, 0))


def config(fit="sums", epsilon=None, model=None, **changes):
    return FederatedConfig("federated", fit, epsilon, 1e-5, 1, 20, model or ridge_config(**changes))


def fitted(made, cls, config):
    model = cls(config, made.tables)
    model.prepare(made.data)
    return model


def batches(made):
    for side in ("val", "test"):
        rows = made.data.sides[side].queries
        yield query_batch(made.collection, made.tables, rows), rows


@pytest.mark.parametrize("penalty", [None, 3.0])
def test_sums_without_noise_fit_the_pooled_model(made, penalty):
    pooled = fitted(made, RidgeTowers, ridge_config(penalty))
    model = fitted(made, Federated, config(penalty=penalty))
    assert model.merged.penalty == pooled.penalty
    for batch, rows in batches(made):
        torch.testing.assert_close(model.score(batch), pooled.score(batch), atol=1e-5, rtol=0)
        expected = pooled.score_left_out(batch, rows)
        torch.testing.assert_close(model.score_left_out(batch, rows), expected, atol=1e-5, rtol=0)
    figures = model.statistics()
    assert (figures["federated/schools"], figures["federated/rounds"]) == (3, 1 if penalty else 2)
    assert 2 * 8 * WIDTH**2 < figures["federated/bytes"] < 2 * 8 * WIDTH**2 + 1000
    assert 0 <= figures["federated/auc_model"] <= 1 and "dcdt_ridge/penalty" in figures


def test_local_queries_are_ranked_by_the_model_of_their_own_school(made):
    model = fitted(made, Federated, config("local"))
    names = np.array(made.split.schools)
    for batch, rows in batches(made):
        scores, left_out = model.score(batch), model.score_left_out(batch, rows)
        for name in set(made.split.schools):
            own = RankingDataModule(made.collection, made.split.where(names == name), {}, None, 16, 0)
            alone = fitted(SimpleNamespace(tables=made.tables, data=own), RidgeTowers, ridge_config())
            is_own = torch.from_numpy(names[rows.numpy()] == name)
            assert is_own.any()
            torch.testing.assert_close(scores[is_own], alone.score(batch)[is_own])
            torch.testing.assert_close(left_out[is_own], alone.score_left_out(batch, rows)[is_own])
    assert "federated/bytes" not in model.statistics()
    with pytest.raises(UserError, match="holds no model for questions from elsewhere"):
        Federated(config("local"), made.tables).score(batch)


def test_a_message_tells_who_is_in_it(made):
    """Leverage is 1 or less for what was summed; noise of a large epsilon changes that little."""
    model = fitted(made, Federated, config())
    names = np.array(made.split.schools)
    schools = [RankingDataModule(made.collection, made.split.where(names == "school 01"), {}, None, 16, 0)]
    few = model.merged.sum_training(schools[0]).tensors
    by_message, by_model = infer_membership(model.merged, schools, [few])
    assert by_message > 0.6 and 0 <= by_model <= 1
    rng = torch.Generator().manual_seed(0)
    lost = torch.randn(WIDTH, WIDTH, generator=rng, dtype=torch.float64) * 1e4
    assert infer_membership(model.merged, schools, [{"gram": lost + lost.T}])[0] < by_message


def test_noise_changes_the_model_and_needs_opacus(made, monkeypatch):
    monkeypatch.setattr("baselines.federated.noise_multiplier", lambda *_: 0.5)
    pooled, noised = fitted(made, RidgeTowers, ridge_config()), fitted(made, Federated, config(epsilon=1.0))
    batch, rows = next(batches(made))
    assert not torch.allclose(noised.score(batch), pooled.score(batch), atol=1e-3)
    assert torch.equal(noised.score_left_out(batch, rows), noised.score(batch))  # none is left out of sums with noise
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "opacus", None)
    monkeypatch.setitem(sys.modules, "opacus.accountants.utils", None)
    with pytest.raises(NotApplicable, match=r"dcdt\[federated\]"):
        fitted(made, Federated, config(epsilon=1.0))


def test_what_cannot_be_fitted_is_refused_in_words(made, folder):
    with pytest.raises(UserError, match="model=federated cannot be served yet"):
        scorer_of(Federated(config(), made.tables), "federated")
    with pytest.raises(NotApplicable, match="Flower in an environment of its own"):
        fitted(made, Federated, config("fedavg"))
    with pytest.raises(UserError, match="zero_shot is not fitted from sums"):
        fitted(made, Federated, config(model=ZeroShotConfig("zero_shot", ["title", "text"], "none")))
    with pytest.raises(UserError, match=r"needs schools: split\.schools=5"):
        fitted(load(folder, None), Federated, config())
    with pytest.raises(UserError, match=r"split\.schools is 'town'; no query has it .*subject, timestamp"):
        load(folder, "town")
    with pytest.raises(UserError, match="schools"):
        validate(SplitConfig, dict(name="query", index=0, n_folds=10, part="all", schools=21), "split")


@pytest.mark.parametrize("mix", ["iid", "subject"])
def test_schools_are_of_equal_size_and_equal_texts_are_of_one(folder, mix):
    collection = load_collection(folder)
    split = make_split(collection, SplitConfig("query", 0, 10, "all", schools=5, school_mix=mix))
    of_text = {}
    for text, school in zip(collection.queries.texts, split.schools, strict=True):
        assert of_text.setdefault(normalise_text(text), school) == school
    sizes = [list(of_text.values()).count(school) for school in sorted(set(split.schools))]
    assert len(sizes) == 5 and max(sizes) - min(sizes) <= 1
    subjects = {school: set() for school in split.schools}
    for metadata, text in zip(collection.queries.metadata, collection.queries.texts, strict=True):
        subjects[of_text[normalise_text(text)]].add(metadata["subject"])
    assert sum(len(names) == 1 for names in subjects.values()) >= (0 if mix == "iid" else 3)
    assert (min(map(len, subjects.values())) == 2) == (mix == "iid")


def test_schools_may_be_named_by_a_field(folder):
    collection = load_collection(folder)
    split = make_split(collection, SplitConfig("query", 0, 10, "all", schools="subject"))
    assert set(split.schools) == {"a", "b"}
    mask = np.array(split.schools) == "a"
    own = split.where(mask)
    assert 0 < len(own.train.queries) < len(split.train.queries)
    assert len({split.fingerprint, own.fingerprint, split.where(~mask).fingerprint}) == 3  # by which pairs are stored
    assert all(mask[row] for side in (own.train, own.val, own.test) for row in [*side.queries, *side.judgments.query])
    assert mask[own.pairs[:, 0]].all()
