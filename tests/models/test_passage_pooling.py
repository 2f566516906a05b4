"""Passages of transcripts: pooled as by loops over videos, drawn for training as they are ranked."""

import itertools

import pytest
import torch
from support import make_collection, prepare
from torch.nn.functional import normalize

from baselines.config import ZeroShotConfig
from baselines.zero_shot import ZeroShot
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.tables import PassageVectors, Tables
from dcdt.losses.config import ContrastiveConfig, InfoNCEConfig
from dcdt.losses.contrastive import ContrastiveLoss
from dcdt.losses.infonce import InfoNCELoss
from dcdt.models import recommender
from dcdt.models.config import DCDTConfig, DCDTResidualConfig, OptimizerConfig, RidgeConfig
from dcdt.models.dual_tower import DualTower
from dcdt.models.passages import Pooling, best_rows
from dcdt.models.query_batch import QueryBatch, query_batch
from dcdt.models.residual import ResidualTowers
from dcdt.models.ridge_towers import RidgeTowers, fitted_sides, fitting_targets, ridge, smooth_with_neighbours
from dcdt.samplers.base import explicit_batch

COUNTS, N_QUERIES, WIDTH = [3, 1, 5, 2, 4, 1], 4, 12
FIELDS = ["title", "text", "transcript"]
kinds = pytest.mark.parametrize("kind", ["max", "softmax"])


def make_tables(dtype=torch.float32, fields=FIELDS):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return normalize(torch.randn(*shape, WIDTH, generator=generator), dim=-1)

    offsets = [0, *torch.tensor(COUNTS).cumsum(0).tolist()]
    vectors, queries, videos = draw(sum(COUNTS)), draw(N_QUERIES), draw(3, len(COUNTS))
    means = [vectors[start:end].mean(0) for start, end in itertools.pairwise(offsets)]
    videos[2] = normalize(torch.stack(means), dim=-1)
    frozen = normalize(videos[:2].sum(0), dim=-1)
    tables = Tables(queries, videos, frozen, FIELDS, PassageVectors.of(vectors, offsets)).to(dtype=dtype)
    return tables.select_fields(fields)


def batch_of(tables):
    n = len(tables.queries)
    return QueryBatch(tables.queries.float(), ["?"] * n, [None] * n, [None] * n)


def pooled(similarities, kind, temperature=0.02):
    if kind == "max":
        return max(similarities)
    values = torch.tensor(similarities)
    return float((values * (values / temperature).softmax(0)).sum())


@torch.no_grad()
def by_loops(tables, encode_query, encode_video, kind):
    scores = torch.zeros(len(tables.queries), len(COUNTS))
    for query in range(len(tables.queries)):
        for video in range(len(COUNTS)):
            similarities = []
            for row in range(tables.passages.offsets[video], tables.passages.offsets[video + 1]):
                fields = [tables.videos[layer, video].float() for layer in range(len(tables.fields) - 1)]
                fields.append(tables.passages.vectors[row].float())
                similarities.append(
                    float(encode_query(tables.queries[query].float()) @ encode_video(torch.stack(fields)))
                )
            scores[query, video] = pooled(similarities, kind)
    return scores


@kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("fields", [FIELDS, ["text", "transcript"], ["transcript"]])
def test_zero_shot_is_the_pooled_cosine_of_loops(kind, dtype, fields, monkeypatch):
    tables = make_tables(dtype, fields)
    model = ZeroShot(ZeroShotConfig("zero_shot", fields, "none", passages=kind), tables)
    unit = lambda vector: normalize(vector, dim=-1)  # noqa: E731

    def encode(parts):  # the passage is the last one
        return unit(parts[-1]) + (unit(parts[:-1].sum(0)) if len(parts) > 1 else 0)

    expected = by_loops(tables, unit, encode, kind)
    for size in (1, 4, 100):  # blocks of one video, of several, of all
        monkeypatch.setattr(recommender, "MAX_PASSAGE_ROWS", size)
        torch.testing.assert_close(model.score(batch_of(tables)), expected, atol=2e-6, rtol=0)


def test_the_mean_of_passages_is_one_more_field():
    tables = make_tables()
    model = ZeroShot(ZeroShotConfig("zero_shot", FIELDS, "none", passages="mean"), tables)
    expected = tables.queries @ normalize(tables.videos.sum(0), dim=-1).T
    torch.testing.assert_close(model.score(batch_of(tables)), expected)
    assert model.passage_scores(batch_of(tables), 2) is None


def test_a_softmax_lies_between_mean_and_maximum_and_starts_near_it():
    scores, video = torch.rand(5, 40), torch.arange(8).repeat_interleave(5)
    values = scores.view(5, 8, 5)
    soft = Pooling("softmax")(scores, video, 8)
    assert (soft <= values.amax(2) + 1e-6).all() and (soft > values.mean(2)).all()
    assert (values.amax(2) - soft).mean() < 0.02


def test_best_rows_by_loops():
    scores, video = torch.randn(3, sum(COUNTS)), torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS))
    scores[:, 4] = scores[:, 5]  # of equals the first
    rows = best_rows(scores, video, len(COUNTS), 3)
    for query in range(3):
        for at in range(len(COUNTS)):
            own = (video == at).nonzero().flatten().tolist()
            ranked = sorted(own, key=lambda row: -float(scores[query, row]))[:3]
            assert rows[query, at].tolist() == ranked + [-1] * (3 - len(ranked))


def models(kind):
    tables, optimizer = make_tables(), OptimizerConfig(1e-3, 0.01, "constant")
    torch.manual_seed(0)
    infonce = InfoNCELoss(InfoNCEConfig("infonce", "each", 0.05, False))
    contrastive = ContrastiveLoss(ContrastiveConfig("contrastive", 1.0, squared=False))
    for attention in ("none", "query"):
        config = DCDTConfig("dcdt", FIELDS, 8, 0.0, attention, "concat", kind)
        yield DualTower(config, tables, contrastive, optimizer)
        residual = DCDTResidualConfig("dcdt_residual", FIELDS, 4, "none", 0.0, attention, "sum", kind)
        yield ResidualTowers(residual, tables, infonce, optimizer)


@kinds
def test_towers_are_pooled_as_loops_do(kind):
    for model in models(kind):
        expected = by_loops(model.tables, model.encode_queries, model.encode_videos, kind)
        torch.testing.assert_close(model.score(batch_of(model.tables)), expected, atol=2e-6, rtol=0)


@kinds
def test_training_measures_what_ranking_does(kind, monkeypatch):
    """With as many passages drawn as there are."""
    for model in models(kind):
        if model.pooling.kind == "softmax":
            model.pooling.n_drawn = max(COUNTS)
        model.record_loss, seen = (lambda *given: None), []
        monkeypatch.setattr(model.loss, "forward", lambda *given, seen=seen: seen.append(given) or given[0])
        scores = model.score(batch_of(model.tables)).detach()
        rows = torch.tensor([[0, 2, 1, 4], [3, 2, 0, 5]])
        model.train()
        model.training_step(explicit_batch(rows), 0)
        assert model.training
        expected = scores[rows[:, :1], rows[:, 1:]]
        wanted = expected if model.loss.measure == "similarity" else (2 - 2 * expected).sqrt()
        torch.testing.assert_close(seen[-1][0], wanted, atol=1e-4, rtol=0)
        columns = {"query": torch.tensor([0, 3]), "columns": torch.arange(6), "label": torch.eye(6)[[1, 2]]}
        model.training_step({**columns, "weight": torch.ones(2, 6), "n_positives": 1}, 0)
        wanted = scores[[0, 3]] if model.loss.measure == "similarity" else (2 - 2 * scores[[0, 3]]).sqrt()
        torch.testing.assert_close(seen[-1][0], wanted, atol=1e-4, rtol=0)


@kinds
def test_every_parameter_learns_and_the_loss_falls(kind):
    for model in models(kind):
        model.record_loss = lambda *given: None
        trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
        batch, losses = explicit_batch(torch.tensor([[0, 2, 1, 4], [3, 4, 0, 5], [1, 0, 2, 3]])), []
        for _ in range(20):
            model.zero_grad()
            loss = model.training_step(batch, 0)
            loss.backward()
            losses.append(loss.item())
            with torch.no_grad():
                for parameter in trained.values():
                    parameter -= 0.05 * parameter.grad
        assert losses[-1] < losses[0]
        assert [name for name, parameter in trained.items() if not parameter.grad.any()] == []
        assert ("pooling.log_temperature" in model.state_dict()) == (kind == "softmax")


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    folder = make_collection(tmp_path_factory.mktemp("spoken") / "c", spoken=15)
    parts = prepare(folder, SplitConfig("query", 0, 10, "all"), FIELDS, width=32)
    parts.data = RankingDataModule(parts.collection, parts.split, parts.pairs, None, 16, 0)
    return parts


def ridge_towers(spoken, weight, penalty):
    model = RidgeTowers(RidgeConfig("dcdt_ridge", FIELDS, "soft", 3, weight, "train", penalty), spoken.tables)
    model.prepare(spoken.data)
    return model


def test_ridge_towers_start_from_the_untrained_cosine(spoken):
    untrained = ZeroShot(ZeroShotConfig("zero_shot", FIELDS, "soft"), spoken.tables)
    untrained.prepare(spoken.data)
    queries = query_batch(spoken.collection, spoken.tables, torch.from_numpy(spoken.split.test.queries))
    scores = ridge_towers(spoken, 0.0, float("inf")).score(queries)
    torch.testing.assert_close(scores, untrained.score(queries), atol=1e-5, rtol=0)
    assert not torch.allclose(ridge_towers(spoken, 0.3, float("inf")).score(queries), scores, atol=1e-3)


def test_ridge_towers_are_fitted_on_the_best_passages_of_positives(spoken):
    model, tables, collection = ridge_towers(spoken, 0.3, 10.0), spoken.tables, spoken.collection
    sides = fitted_sides(spoken.data, "train")
    groups, targets, _ = fitting_targets(collection, sides, model.video_vectors(), model._best_passages)
    positives = {}
    for query, video in zip(collection.positives.query.tolist(), collection.positives.video.tolist(), strict=True):
        positives.setdefault(query, set()).add(video)
    for rows, target in zip(groups, targets, strict=True):
        vectors = []
        for video in sorted(set().union(*(positives[row] for row in rows))):
            passages = normalize(tables.passages.vectors[tables.passages.rows_of(video)] @ model.whitening, dim=-1)
            cosines = [float(tables.queries[rows[0]] @ model.whitening @ passage) for passage in passages]
            vectors.append(passages[cosines.index(max(cosines))] + model.other_vectors()[video])
        torch.testing.assert_close(target, normalize(torch.stack(vectors).mean(0), dim=-1), atol=1e-5, rtol=0)
    inputs = normalize(tables.queries[[rows[0] for rows in groups]] @ model.whitening, dim=-1)
    expected = model.whitening + model.whitening @ ridge(inputs, targets).matrix(10.0)
    torch.testing.assert_close(model.query_map, expected, atol=1e-4, rtol=1e-4)
    text = normalize(tables.videos[:2].sum(0) @ model.whitening, dim=-1)
    torch.testing.assert_close(model.other_vectors(), smooth_with_neighbours(text, 3, 0.3))


def test_vectors_of_passages_follow_the_weights():
    model = next(models("max"))
    first = model.score(batch_of(model.tables))
    with torch.no_grad():
        model.field_towers[2].linear.weight.mul_(-1)
    assert torch.equal(model.score(batch_of(model.tables)), first)  # until the mode changes, as for videos
    model.eval()
    assert not torch.equal(model.score(batch_of(model.tables)), first)


def test_passage_scores_of_a_video():
    tables = make_tables()
    model = ZeroShot(ZeroShotConfig("zero_shot", FIELDS, "none"), tables)
    scores = model.passage_scores(batch_of(tables), 2)
    assert scores.shape == (N_QUERIES, 5)
    others = tables.queries @ normalize(tables.videos[:2].sum(0), dim=-1)[2]
    torch.testing.assert_close(scores.amax(1) + others, model.score(batch_of(tables))[:, 2])
