import math

import numpy as np
import pytest
import torch
from support import prepare, quiet_trainer, related_sets, slow_but

from baselines.config import ZeroShotConfig
from baselines.zero_shot import ZeroShot
from dcdt.data import datamodule
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import IndexBatches, RankingDataModule
from dcdt.evaluation.ranking import tie_order
from dcdt.losses.config import ContrastiveConfig, InfoNCEConfig
from dcdt.losses.contrastive import ContrastiveLoss
from dcdt.losses.infonce import InfoNCELoss
from dcdt.models.config import DCDTConfig, OptimizerConfig
from dcdt.models.dual_tower import DualTower
from dcdt.models.recommender import Recommender
from dcdt.samplers.catalogue import CatalogueSampler
from dcdt.samplers.config import (
    CatalogueSamplerConfig,
    DynamicHardSamplerConfig,
    HardSamplerConfig,
    InBatchSamplerConfig,
    RandomSamplerConfig,
)
from dcdt.samplers.dynamic_hard import DynamicHardSampler
from dcdt.samplers.hard import HardSampler
from dcdt.samplers.in_batch import InBatchSampler
from dcdt.samplers.mining import hardest_negatives
from dcdt.samplers.pool import training_pool
from dcdt.samplers.random import RandomSampler

KS = (1, 2)  # the smallest side of the video split has two videos
QUERY, VIDEO = SplitConfig("query", 0, 10, "all"), SplitConfig("video", 1, 10, "all")
by_split = pytest.mark.parametrize("config", [QUERY, VIDEO], ids=lambda config: config.name)


def zero_shot(made):
    return ZeroShot(ZeroShotConfig("zero_shot", ["title", "text"], "none"), made.tables)


def dcdt(made, attention="none", seed=0, schedule="cosine"):
    torch.manual_seed(seed)
    config = DCDTConfig("dcdt", made.tables.fields, 16, 0.2, attention, "concat")
    loss = ContrastiveLoss(ContrastiveConfig("contrastive", 1.0, squared=False))
    return DualTower(config, made.tables, loss, OptimizerConfig(1e-3, 0.01, schedule))


class Fixed(Recommender):
    """A scorer that gives every pair the score of a table (Q, N)."""

    trained_by_epochs = False
    decoupled = False

    def __init__(self, made, table):
        super().__init__(made.tables)
        self.table = table

    def score(self, queries):
        rows = (queries.vectors[:, None] == self.tables.queries).all(-1).int().argmax(1)
        return self.table[rows]


def data_of(made, kind=None, batch_size=16, seed=0, pairs=True):
    sampler = None
    if kind == "random":
        pool = training_pool(made.collection, made.split)
        sampler = RandomSampler(RandomSamplerConfig("random", 4), pool, made.tables)
    elif kind == "hard":
        pool = training_pool(made.collection, made.split)
        sampler = HardSampler(HardSamplerConfig("hard", 4, 0.3, 200), pool, made.tables)
    return RankingDataModule(made.collection, made.split, made.pairs if pairs else {}, sampler, batch_size, seed, KS)


def outcome(made, model, **options):
    quiet_trainer(**options).test(model, datamodule=data_of(made), verbose=False)
    return model.results


def brute_force(made, name, scores):
    """Every metric of every query of a side from scores (Q, N) of the whole catalogue, in plain Python."""
    collection, side = made.collection, made.split.sides[name]
    ties = tie_order(collection.videos.ids)
    grades = {(q, v): float(g) for q, v, g in zip(*vars(collection.judgments).values(), strict=True) if g > 0}
    related = related_sets(collection)
    metrics = {}
    for query in side.queries.tolist():
        home = made.split.test.candidates if name == "test_all" else side.candidates
        judged = {video for video in related[query] if home[video]}
        shown = [v for v in np.flatnonzero(side.candidates).tolist() if v in judged or v not in related[query]]
        ranking = sorted(shown, key=lambda video: (-scores[query, video].item(), ties[video].item()))
        gains = [grades.get((query, video), 0.0) if video in judged else 0.0 for video in ranking]
        places = [at for at, gain in enumerate(gains, start=1) if gain >= collection.positive_grade]
        values = {"mrr": 1 / places[0], "map": np.mean([n / at for n, at in enumerate(places, start=1)])}
        for k in KS:
            hits = sum(at <= k for at in places)
            values |= {f"recall@{k}": hits / len(places), f"precision@{k}": hits / k, f"hit@{k}": float(hits > 0)}
            dcg, best = (
                sum(gain / math.log2(at + 1) for at, gain in enumerate(order[:k], start=1))
                for order in (gains, sorted(gains, reverse=True))
            )
            values[f"ndcg@{k}"] = dcg / best
        for metric, value in values.items():
            metrics.setdefault(metric, []).append(value)
    return metrics


@by_split
@pytest.mark.parametrize("make", [zero_shot, dcdt])
@pytest.mark.parametrize("cells", [2**24, 60])
def test_the_whole_evaluation_by_brute_force(small, monkeypatch, config, make, cells):
    monkeypatch.setattr(datamodule, "MAX_CHUNK_SCORES", cells)  # 60: three queries at a time
    made = prepare(small, config, width=64)
    model = make(made).eval()
    scores = model.encode_queries(made.tables.queries) @ model.encode_videos(made.tables.videos).T
    results = outcome(made, model)
    assert list(results) == (["val", "test", "test_all"] if config is VIDEO else ["val", "test"])
    for name, result in results.items():
        assert result.queries.tolist() == made.split.sides[name].queries.tolist()
        wanted = brute_force(made, name, scores)
        assert set(result.metrics) == set(wanted)
        for metric, values in wanted.items():
            assert result.metrics[metric].tolist() == pytest.approx(values, abs=1e-6), (name, metric)
    assert results["test"].metrics["mrr"].mean() < 1


@by_split
def test_the_ranking_the_scores_and_the_pairs_of_a_test(small, monkeypatch, config):
    monkeypatch.setattr(datamodule, "MAX_CHUNK_SCORES", 60)
    made = prepare(small, config, width=64)
    model = zero_shot(made)
    scores = model.encode_queries(made.tables.queries) @ model.encode_videos(made.tables.videos).T
    related = related_sets(made.collection)
    for name, result in outcome(made, model).items():
        side = made.split.sides[name]
        home = made.split.test.candidates if name == "test_all" else side.candidates
        for at, query in enumerate(side.queries.tolist()):
            gone = {video for video in related[query] if not home[video]}
            shown = [video for video in np.flatnonzero(side.candidates).tolist() if video not in gone]
            best = sorted(shown, key=lambda video: -scores[query, video])
            found = result.top[1][at][result.top[0][at] > -math.inf]
            assert found.tolist() == best
            kept = torch.full_like(scores[query], -math.inf)
            kept[shown] = scores[query, shown]
            torch.testing.assert_close(result.scores[at], kept)
        if name in made.pairs:
            pairs = made.pairs[name]
            torch.testing.assert_close(result.pairs[:, 0], scores[pairs.query, pairs.video])
            assert result.pairs[:, 1].tolist() == pairs.label.tolist()
        else:
            assert result.pairs is None


def test_without_a_pair_file_there_are_no_pair_scores(small):
    made = prepare(small, QUERY, width=64)
    model = zero_shot(made)
    quiet_trainer().test(model, datamodule=data_of(made, pairs=False), verbose=False)
    assert model.results["test"].pairs is None


def test_too_many_scores_are_not_kept(small, monkeypatch):
    monkeypatch.setattr("dcdt.models.ranking.MAX_STORED_SCORES", 10)
    made = prepare(small, QUERY, width=64)
    result = outcome(made, zero_shot(made))["test"]
    assert result.scores is None
    assert result.top[0].shape == (len(result.queries), 20)


def test_a_constant_scorer_scores_like_chance(small):
    made = prepare(small, QUERY, width=64)
    shape = len(made.collection.queries), len(made.collection.videos)
    results = outcome(made, Fixed(made, torch.zeros(shape)))
    for name in ("val", "test"):
        wanted = brute_force(made, name, torch.zeros(shape))["mrr"]
        assert results[name].metrics["mrr"].tolist() == pytest.approx(wanted)
        assert results[name].ties.mean() == 1
    everything = torch.cat([results[name].metrics["mrr"] for name in ("val", "test")])
    assert everything.mean() < 0.5
    assert outcome(made, zero_shot(made))["val"].ties.mean() == 0


def test_scores_that_are_not_numbers_are_an_error(small):
    made = prepare(small, QUERY, width=64)
    table = torch.rand(len(made.collection.queries), len(made.collection.videos))
    table[int(made.split.test.queries[0]), 3] = float("nan")
    with pytest.raises(ValueError, match="scores are NaN"):
        outcome(made, Fixed(made, table))


def test_validation_logs_the_means_of_its_side(small):
    made = prepare(small, QUERY, width=64)
    model = zero_shot(made)
    [logged] = quiet_trainer().validate(model, datamodule=data_of(made), verbose=False)
    wanted = brute_force(made, "val", made.tables.queries @ made.tables.frozen.T)
    assert logged == {f"val/{name}": pytest.approx(np.mean(values), abs=1e-6) for name, values in wanted.items()}


@pytest.mark.parametrize("attention", ["none", "query"])
def test_scores_are_fp32_whatever_training_uses(small, attention):
    made = prepare(small, QUERY, width=64)
    model = dcdt(made, attention)
    plain = outcome(made, model)["test"].scores
    mixed = outcome(made, model, precision="bf16-mixed")["test"].scores
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)


def fitted(made, kind="hard", seed=0, **options):
    model = dcdt(made, seed=seed)
    quiet_trainer(**{"max_epochs": 4, **options}).fit(model, datamodule=data_of(made, kind, seed=seed))
    return model


@pytest.mark.parametrize("kind", ["random", "hard"])
def test_the_same_seed_trains_the_same_weights(small, kind):
    made = prepare(small, QUERY, width=64)
    one, same, other = (fitted(made, kind, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_training_sees_the_batches_of_each_epoch(small, monkeypatch):
    made, seen = prepare(small, VIDEO, width=64), []
    plain = DualTower.training_step

    def noted(self, batch, index):
        seen.append(torch.column_stack([batch["query"], batch["video"], batch["negatives"]]))
        return plain(self, batch, index)

    monkeypatch.setattr(DualTower, "training_step", noted)
    fitted(made)
    data = data_of(made, "hard")
    wanted = [
        torch.column_stack([batch["query"], batch["video"], batch["negatives"]])
        for epoch in range(4)
        for batch in IndexBatches(
            torch.from_numpy(made.split.pairs), data.sampler, 16, 0, lambda epoch=epoch: epoch, torch.device("cpu")
        )
    ]
    assert len(seen) == len(wanted)
    assert all(torch.equal(one, other) for one, other in zip(seen, wanted, strict=True))
    rows = torch.cat(seen)
    assert made.split.train.candidates[rows[:, 1:]].all()  # no held-out video, not even as a negative


def test_the_loss_of_an_epoch_is_the_mean_over_its_pairs(small):
    made = prepare(small, QUERY, width=64)
    trainer, model, losses = quiet_trainer(max_epochs=2), dcdt(made), []
    assert len(made.split.pairs) % 16
    plain, logged = model.loss.forward, []

    def recorded(*given):
        value = plain(*given)
        if model.training:  # and not the loss of the validation side
            losses.append(value)
        return value

    model.loss.forward = recorded
    model.on_train_epoch_end = lambda: logged.append(trainer.callback_metrics["train/loss"].item())
    trainer.fit(model, datamodule=data_of(made, "hard"))
    for epoch, value in enumerate(logged):
        half = len(losses) // 2
        assert value == pytest.approx(torch.cat(losses[epoch * half : (epoch + 1) * half]).mean().item())


def test_only_watched_metrics_are_logged(small):
    made = prepare(small, QUERY, width=64)
    model = zero_shot(made)
    model.logged_metrics = {"val/mrr", "val/hit@2"}
    [logged] = quiet_trainer().validate(model, datamodule=data_of(made), verbose=False)
    assert set(logged) == {"val/mrr", "val/hit@2"}


def test_training_lowers_the_loss(small):
    made = prepare(small, QUERY)
    trainer = quiet_trainer(max_epochs=40)
    model = dcdt(made, schedule="constant")
    losses = []
    model.on_train_epoch_end = lambda: losses.append(trainer.callback_metrics["train/loss"].item())
    trainer.fit(model, datamodule=data_of(made, "random"))
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_falls_to_zero_by_step(small, schedule):
    made = prepare(small, QUERY, width=64)
    model, rates = dcdt(made, schedule=schedule), []
    model.on_train_batch_start = lambda *_: rates.append(model.optimizers().param_groups[0]["lr"])
    data = data_of(made, "hard")
    quiet_trainer(max_epochs=3).fit(model, datamodule=data)
    steps = 3 * math.ceil(len(made.split.pairs) / 16)
    if schedule == "constant":
        assert rates == [1e-3] * steps
    elif schedule == "linear":
        assert rates == pytest.approx([1e-3 * (1 - at / steps) for at in range(steps)])
    else:
        assert rates == pytest.approx([1e-3 * (1 + math.cos(math.pi * at / steps)) / 2 for at in range(steps)])
    assert model.optimizers().param_groups[0]["weight_decay"] == 0.01


def test_a_learned_temperature_is_trained_and_does_not_decay(small):
    made = prepare(small, QUERY, width=64)
    model = dcdt(made)
    model.loss = InfoNCELoss(InfoNCEConfig("infonce", "each", 0.05, learn_temperature=True))
    quiet_trainer(max_epochs=2).fit(model, datamodule=data_of(made, "hard"))
    assert abs(model.loss.temperature.item() - 0.05) > 1e-5
    towers, scalars = model.optimizers().param_groups
    assert (towers["weight_decay"], scalars["weight_decay"]) == (0.01, 0)
    assert [parameter is model.loss.log_temperature for parameter in scalars["params"]] == [True]


@pytest.mark.parametrize("kind", ["in_batch", "catalogue"])
@pytest.mark.parametrize("loss", slow_but(["infonce"], ["contrastive", "infonce"]))
def test_towers_train_on_columns_that_queries_share(small, kind, loss):
    made = prepare(small, QUERY)
    pool = training_pool(made.collection, made.split)
    if kind == "in_batch":
        sampler = InBatchSampler(InBatchSamplerConfig("in_batch", logq=True), pool, made.tables)
    else:
        sampler = CatalogueSampler(CatalogueSamplerConfig("catalogue"), pool, made.tables)
    data = RankingDataModule(made.collection, made.split, made.pairs, sampler, 16, 0, KS)
    model = dcdt(made)
    if loss == "infonce":
        model.loss = InfoNCELoss(InfoNCEConfig("infonce", "each", 0.1, False))
    trainer, losses = quiet_trainer(max_epochs=15), []
    model.on_train_epoch_end = lambda: losses.append(trainer.callback_metrics["train/loss"].item())
    trainer.fit(model, datamodule=data)
    assert losses[-1] < losses[0]


def test_a_dynamic_sampler_mines_with_the_towers_as_they_stand(small, monkeypatch):
    made = prepare(small, QUERY, width=64)
    pool = training_pool(made.collection, made.split)
    config = DynamicHardSamplerConfig("dynamic_hard", 4, 0.3, 200, warm_up=1, every=2)
    sampler = DynamicHardSampler(config, pool, made.tables)
    data = RankingDataModule(made.collection, made.split, made.pairs, sampler, 16, 0, KS)
    model, mined = dcdt(made), []
    plain = sampler.refresh

    def noted(score):
        assert not model.training
        plain(score)
        videos = model.encode_videos(made.tables.videos)
        scores = model.encode_queries(made.tables.queries[pool.queries]) @ videos[pool.candidates].T
        _, wanted = hardest_negatives(scores, pool.forbidden, sampler.hard.shape[1])
        mined.append((model.current_epoch, torch.equal(sampler.hard, pool.candidates[wanted])))

    monkeypatch.setattr(sampler, "refresh", noted)
    modes = []
    model.on_train_batch_start = lambda *_: modes.append(model.training)
    quiet_trainer(max_epochs=6).fit(model, datamodule=data)
    assert mined == [(1, True), (3, True), (5, True)]
    assert all(modes)
