import io

import numpy as np
import pytest
import torch
from hydra import compose
from support import prepare, quiet_trainer

from baselines.hybrid import WEIGHTS, Hybrid, _scores_for_side, candidate_ranks, fuse, validate_weights, z_scores
from dcdt.config import parse
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.evaluation.ranking import tie_order
from dcdt.models.query_batch import query_batch
from dcdt.models.recommender import Recommender
from dcdt.utils.errors import NotApplicable, UserError

pytestmark = pytest.mark.usefixtures("hydra")


def config_of(*overrides):
    composed = compose("config", overrides=["data=files", "data.path=/x", "model=hybrid", *overrides])
    return parse(composed).model


@pytest.fixture(scope="module")
def made(small):
    parts = prepare(small, SplitConfig("query", 0, 10, "all"))
    parts.data = RankingDataModule(parts.collection, parts.split, parts.pairs, None, 16, 0)
    return parts


@pytest.fixture(scope="module")
def cold(small):
    """Videos held out, so that the candidates of a query are some of the videos only."""
    parts = prepare(small, SplitConfig("video", 0, 10, "all"))
    parts.data = RankingDataModule(parts.collection, parts.split, parts.pairs, None, 16, 0, ks=(1, 2))
    return parts


def prepared(made, *overrides):
    model = Hybrid(config_of(*overrides), made.tables)
    model.prepare(made.data)
    return model


def brute_mrr(scores, made):
    """MRR of the validation side, query by query, from (n, N) scores."""
    side, order = made.split.val, tie_order(made.collection.videos.ids).numpy()
    values = []
    for row, query in enumerate(side.queries.tolist()):
        here = side.judgments.query == query
        positive = here & (side.judgments.grade >= made.collection.positive_grade)
        wanted = set(side.judgments.video[positive].tolist())
        candidates = np.flatnonzero(side.candidates)
        ranked = sorted(candidates.tolist(), key=lambda video: (-float(scores[row, video]), order[video]))
        values.append(1 / (1 + next(at for at, video in enumerate(ranked) if video in wanted)))
    return float(np.mean(values))


def parts_on_validation(model, made):
    rows = torch.from_numpy(made.split.val.queries)
    queries = query_batch(made.collection, made.tables, rows, made.data.sides["val"])
    return queries, model.first.score(queries).numpy(), model.second.score(queries).numpy()


def z_by_hand(scores, candidates):
    rows = []
    for row in scores.astype(np.float64):
        among = row[candidates]
        rows.append((row - among.mean()) / among.std() if among.std() > 0 else np.zeros_like(row))
    return np.stack(rows)


@pytest.mark.parametrize("fixture", ["made", "cold"])
def test_the_chosen_weight_is_the_best_on_validation(fixture, request):
    made = request.getfixturevalue(fixture)
    model = prepared(made)
    _, first, second = parts_on_validation(model, made)
    candidates = made.split.val.candidates
    by_weight = {
        step / 10: brute_mrr(
            (step / 10 * z_by_hand(first, candidates) + (1 - step / 10) * z_by_hand(second, candidates)).astype("f4"),
            made,
        )
        for step in range(11)
    }
    best = max(by_weight.values())
    assert min(by_weight.values()) < best
    assert by_weight[model.statistics()["hybrid/weight"]] == pytest.approx(best)
    assert validate_weights(model, made.data) == pytest.approx(by_weight)
    evenest = min((weight for weight in by_weight if by_weight[weight] == best), key=lambda weight: abs(weight - 0.5))
    assert abs(model.statistics()["hybrid/weight"] - 0.5) == pytest.approx(abs(evenest - 0.5))


@pytest.mark.parametrize("fixture", ["made", "cold"])
def test_the_chosen_weight_scores(fixture, request):
    made = request.getfixturevalue(fixture)
    model, trainer = prepared(made), quiet_trainer()
    weight, candidates = model.statistics()["hybrid/weight"], made.split.val.candidates
    found = trainer.validate(model, datamodule=made.data, verbose=False)[0]["val/mrr"]
    assert found == pytest.approx(validate_weights(model, made.data)[weight])
    trainer.test(model, datamodule=made.data, verbose=False)
    _, first, second = parts_on_validation(model, made)
    expected = weight * z_by_hand(first, candidates) + (1 - weight) * z_by_hand(second, candidates)
    scores = model.results["val"].scores.numpy()
    ranked = np.isfinite(scores)
    assert ranked.any(0).tolist() == candidates.tolist()
    np.testing.assert_allclose(scores[ranked], expected[ranked], atol=1e-4)


def test_every_weight_is_tried_and_the_most_even_first():
    assert sorted(WEIGHTS) == [step / 10 for step in range(11)]
    assert WEIGHTS[0] == 0.5 and set(WEIGHTS[-2:]) == {0.0, 1.0}


def test_a_part_alone_where_the_weight_is_0_or_1():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 3, 9, generator=generator)
    assert torch.equal(fuse(first, second, 1.0, None).argsort(), first.argsort())
    assert torch.equal(fuse(first, second, 0.0, None).argsort(), second.argsort())


def test_z_scores_are_over_the_candidates_and_0_where_all_are_equal():
    scores = torch.tensor([[1.0, 3.0, 5.0, 100.0], [0.1, 0.1, 0.1, 7.0]])
    candidates = torch.tensor([0, 1, 2])
    found = z_scores(scores, candidates)
    torch.testing.assert_close(found[0, :3], torch.tensor([-1.0, 0.0, 1.0]) * (3 / 2) ** 0.5)
    assert found[1].tolist() == [0, 0, 0, 0]
    assert z_scores(scores, None)[1, 3] > 0


def test_ranks_break_ties_by_the_order_of_the_house():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(4, (6, 11), generator=generator).float()
    order = torch.randperm(11, generator=generator)
    candidates = torch.rand(11, generator=generator) > 0.3
    found = candidate_ranks(scores, order, int(candidates.sum()), candidates)
    for row in range(6):
        ranked = sorted(candidates.nonzero().flatten().tolist(), key=lambda at: (-scores[row, at], order[at]))
        assert [int(found[row, at]) for at in ranked] == list(range(1, len(ranked) + 1))
        assert (found[row, ~candidates] == len(ranked) + 1).all()


@pytest.mark.parametrize("fixture", ["made", "cold"])
def test_reciprocal_rank_fusion(fixture, request):
    made = request.getfixturevalue(fixture)
    model = prepared(made, "model.fusion=rrf", "model.k=7")
    queries, first, second = parts_on_validation(model, made)
    order, candidates = tie_order(made.collection.videos.ids).tolist(), np.flatnonzero(made.split.val.candidates)
    found = model.score(queries).numpy()
    for row in range(len(first)):
        expected = np.zeros(len(order))
        for scores in (first[row], second[row]):
            for at, video in enumerate(sorted(candidates.tolist(), key=lambda v: (-float(scores[v]), order[v]))):
                expected[video] += 1 / (7 + at + 1)
        np.testing.assert_allclose(found[row, candidates], expected[candidates], rtol=1e-6)
    assert model.statistics() == {}


def test_parts_are_chosen_by_name_and_keep_their_own_values():
    config = config_of("model@model.first=zero_shot", "model@model.second=bm25", "model.second.k1=0.9")
    assert (config.first.name, config.second.name, config.second.k1) == ("zero_shot", "bm25", 0.9)
    assert config.fields == ["title", "text"]
    with pytest.raises(UserError, match=r"model\.first\.k1 is -1"):
        config_of("model.first.k1=-1")
    with pytest.raises(UserError, match=r"model@model\.first=zero_shot"):
        config_of("model.first=zero_shot")
    with pytest.raises(UserError, match=r"model\.first\.fusion is not set"):
        config_of("model.first.name=hybrid")


def test_each_part_reads_its_own_fields(made):
    model = Hybrid(config_of("model@model.first=zero_shot", "model.first.fields=[text]"), made.tables)
    assert model.first.tables.fields == ["text"]
    assert torch.equal(model.first.tables.videos[0], made.tables.videos[1])
    assert model.second.tables is made.tables


def test_a_part_that_is_trained_is_refused_by_name(made):
    with pytest.raises(UserError, match="single_tower is"):
        Hybrid(config_of("model@model.second=single_tower"), made.tables)


def test_what_a_part_lacks_the_whole_lacks(made):
    with pytest.raises(NotApplicable, match=r"no interactions\.csv"):
        prepared(made, "model@model.second=collaborative")


@pytest.mark.parametrize("fusion", ["convex", "rrf"])
def test_a_saved_model_scores_the_same(made, fusion):
    model, other = prepared(made, f"model.fusion={fusion}"), Hybrid(config_of(f"model.fusion={fusion}"), made.tables)
    model.weight.fill_(0.2)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    queries, *_ = parts_on_validation(model, made)
    assert torch.equal(other.score(queries), model.score(queries))
    assert float(other.weight) == pytest.approx(0.2)


@pytest.mark.parametrize("fit_on", ["train", "judged"])
@pytest.mark.slow
def test_tune_on_judged_counts_every_query_as_if_left_out(made, fit_on):
    overrides = ("model@model.second=dcdt_ridge", "model.tune_on=judged", f"model.second.fit_on={fit_on}")
    model = prepared(made, *overrides)
    found = validate_weights(model, made.data, judged=True)
    assert float(model.weight) == pytest.approx(max(WEIGHTS, key=lambda weight: found[weight]))
    order, positives = tie_order(made.collection.videos.ids).numpy(), made.collection.positives
    related = made.collection.related
    for weight in (0.0, 0.3, 1.0):
        values = []
        for side in (made.split.train, made.split.val):
            rows = torch.from_numpy(side.queries)
            queries = query_batch(made.collection, made.tables, rows)
            second = model.second.score_left_out if side is made.split.train or fit_on == "judged" else None
            second = second(queries, rows) if second else model.second.score(queries)
            for row, scores in zip(rows.tolist(), fuse(model.first.score(queries), second, weight, None), strict=True):
                wanted = set(positives.video[positives.query == row].tolist())
                here = related.query == row
                grade = dict(zip(related.video[here].tolist(), related.grade[here].tolist(), strict=True))
                ranked = sorted(range(len(scores)), key=lambda video: (-float(scores[video]), order[video]))
                rank = next(at for at, video in enumerate(ranked) if video in wanted)
                gain = sum(grade.get(video, 0) / np.log2(at + 2) for at, video in enumerate(ranked[:10]))
                ideal = sum(g / np.log2(at + 2) for at, g in enumerate(sorted(grade.values(), reverse=True)[:10]))
                values.append((1 / (1 + rank) + gain / ideal) / 2)
        assert found[weight] == pytest.approx(np.mean(values))


def test_validation_is_scored_as_left_out_where_a_part_reads_it(made):
    model = prepared(made, "model@model.second=dcdt_ridge", "model.second.penalty=0.01")
    trainer = quiet_trainer()
    trainer.test(model, datamodule=made.data, verbose=False)
    rows = torch.from_numpy(made.split.val.queries)
    queries = query_batch(made.collection, made.tables, rows, made.data.sides["val"])
    found = model.results["val"].scores
    mask = found.isfinite()
    torch.testing.assert_close(found[mask], model.score_left_out(queries, rows)[mask])
    assert not torch.allclose(found[mask], model.score(queries)[mask])


def test_a_part_that_is_a_hybrid_leaves_training_queries_out_of_its_own_parts(made):
    overrides = ("model@model.second=hybrid_towers", "model.tune_on=judged", "model.second.second.fit_on=train")
    model = prepared(made, *overrides, "model.second.second.penalty=0.01")
    rows, inner = torch.from_numpy(made.split.train.queries), model.second
    queries = query_batch(made.collection, made.tables, rows)
    parts = inner.first.score(queries), inner.second.score_left_out(queries, rows)
    found = _scores_for_side(inner, queries, rows, "train")
    torch.testing.assert_close(found, fuse(*parts, inner.weight, None))
    assert not torch.allclose(found, inner.score(queries))
    assert {"hybrid/weight", "second/hybrid/weight", "dcdt_ridge/penalty"} <= model.statistics().keys()


def test_tune_on_judged_needs_parts_that_can_leave_out(made):
    model = Hybrid(config_of("model.tune_on=judged"), made.tables)
    model.second.score_left_out = Recommender(made.tables).score_left_out  # of a model that says nothing of it
    with pytest.raises(UserError, match=r"Recommender cannot score its training queries.*\n.*tune_on=val"):
        model.prepare(made.data)
