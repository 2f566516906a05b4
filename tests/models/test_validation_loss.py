"""`val/loss`: the loss of a run on the stored pairs of its validation side, against loops over the pairs."""

import math

import pytest
import torch
from support import make_collection, prepare, quiet_trainer

from baselines.config import SingleTowerConfig
from baselines.single_tower import SingleTower
from dcdt.data import gather
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule, SideTensors
from dcdt.losses.config import ContrastiveConfig, InfoNCEConfig, MarginMSEConfig
from dcdt.losses.contrastive import ContrastiveLoss
from dcdt.losses.infonce import InfoNCELoss
from dcdt.losses.margin_mse import MarginMSELoss
from dcdt.models import pairs as pair_models
from dcdt.models.config import DCDTConfig, OptimizerConfig
from dcdt.models.dual_tower import DualTower
from dcdt.samplers.config import RandomSamplerConfig
from dcdt.samplers.pool import training_pool
from dcdt.samplers.random import RandomSampler

QUERY = SplitConfig("query", 0, 10, "all")
LOSSES = {
    "contrastive": ContrastiveLoss(ContrastiveConfig("contrastive", 1.0, squared=False)),
    "infonce": InfoNCELoss(InfoNCEConfig("infonce", "each", 0.1, learn_temperature=False)),
    "margin_mse": MarginMSELoss(MarginMSEConfig("margin_mse", None)),
}


@pytest.fixture(scope="module")
def made(small):
    return prepare(small, QUERY, width=24)


def dcdt(made, loss="contrastive", lr=1e-3):
    torch.manual_seed(0)
    config = DCDTConfig("dcdt", made.tables.fields, 8, 0.5, "none", "concat")
    return DualTower(config, made.tables, LOSSES[loss], OptimizerConfig(lr, 0.0, "constant"))


def data_of(made):
    sampler = RandomSampler(RandomSamplerConfig("random", 4), training_pool(made.collection, made.split), made.tables)
    return RankingDataModule(made.collection, made.split, made.pairs, sampler, 16, 0, (1, 5))


def validated(made, model):
    [metrics] = quiet_trainer().validate(model, datamodule=data_of(made), verbose=False)
    return metrics["val/loss"]


def groups(made):
    """Query, positive and negatives of the stored pairs: a positive, then the four that were drawn for it."""
    pairs, found = made.pairs["val"], []
    for query, video, label in zip(pairs.query.tolist(), pairs.video.tolist(), pairs.label.tolist(), strict=True):
        if label:
            found.append((query, video, []))
        else:
            found[-1][2].append(video)
    assert len(found) > 5 and {len(negatives) for _, _, negatives in found} == {4}
    assert all(made.pairs["val"].label[::5])
    return found


def cosines(model, query, videos):
    """Of one query with some videos, each pair by itself."""
    with torch.no_grad():
        left = model.encode_queries(model.tables.queries[query][None])[0]
        return [float(left @ model.encode_videos(model.tables.videos[:, video][:, None])[0]) for video in videos]


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_loss_of_the_stored_pairs_by_loops(made, name):
    model, total, n = dcdt(made, name).eval(), 0.0, 0
    for query, positive, negatives in groups(made):
        first, *others = cosines(model, query, [positive, *negatives])
        if name == "contrastive":
            distance = [math.sqrt(max(2 - 2 * cosine, 0)) for cosine in (first, *others)]
            total, n = total + distance[0] + sum(max(1 - d, 0) ** 2 for d in distance[1:]), n + 5
        elif name == "infonce":
            powers = [math.exp(cosine / 0.1) for cosine in (first, *others)]
            total, n = total - math.log(powers[0] / sum(powers)), n + 1
        else:
            frozen = made.tables.frozen @ torch.nn.functional.normalize(made.tables.queries[query], dim=-1)
            leads = [
                (first - other) - float(frozen[positive] - frozen[v])
                for other, v in zip(others, negatives, strict=True)
            ]
            total, n = total + sum(lead**2 for lead in leads) / 4, n + 1
    assert validated(made, model.train()) == pytest.approx(total / n, rel=1e-4)


def test_a_joint_scorer_has_it_too(made):
    config = SingleTowerConfig("single_tower", made.tables.fields, 8, 0.5)
    model = SingleTower(config, made.tables, LOSSES["contrastive"], OptimizerConfig(1e-3, 0.0, "constant")).eval()
    total, found = 0.0, groups(made)
    for query, positive, negatives in found:
        vectors = made.tables.queries[query][None], made.tables.videos[:, [positive, *negatives]]
        with torch.no_grad():
            distance = model.match(*vectors, None)[0].tolist()
        total += distance[0] + sum(max(1 - d, 0) ** 2 for d in distance[1:])
    assert validated(made, model) == pytest.approx(total / (5 * len(found)), rel=1e-4)


def test_its_pairs_are_the_same_each_epoch_and_dropout_is_off(made):
    """Nothing is learned, so that it may not move; the loss of training does, by its draws and its dropout."""
    history, model = [], dcdt(made, lr=1e-30)
    model.on_train_epoch_end = lambda: history.append(dict(trainer.callback_metrics))
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(model, datamodule=data_of(made))
    values = {name: [round(float(row[name]), 7) for row in history] for name in ("val/loss", "train/loss")}
    assert len(set(values["val/loss"])) == 1 and len(set(values["train/loss"])) == 3


def test_it_does_not_depend_on_how_many_pairs_are_read_at_once(made, monkeypatch):
    model, read = dcdt(made), []
    whole = validated(made, model)
    plain = model.objective
    model.objective = lambda *given: read.append(len(given[0])) or plain(*given)
    monkeypatch.setattr(pair_models, "MAX_VALIDATED_PAIRS", 3)
    assert validated(made, model) == pytest.approx(whole, rel=1e-5)
    assert len(read) > 2 and max(read) == 3


def test_memory_that_validation_fills_can_be_trained_with(made, monkeypatch):
    """What inference mode allocates no training may write to."""
    monkeypatch.setattr(gather, "MIN_BUFFER_NUMBERS", 0)
    model, data = dcdt(made), data_of(made)
    quiet_trainer().validate(model, datamodule=data, verbose=False)
    quiet_trainer(max_epochs=2).fit(model, datamodule=data)


def test_passages_are_read_as_in_ranking(tmp_path):
    folder = make_collection(tmp_path / "c", n_videos=24, n_queries=60, spoken=20)
    made = prepare(folder, QUERY, ("title", "text", "transcript"), width=24)
    model, total, found = dcdt(made), 0.0, groups(made)
    value = validated(made, model)
    with torch.no_grad():
        scores = model.eval().score_encoded(model.encode_queries(made.tables.queries))
    for query, positive, negatives in found:
        distance = (2 - 2 * scores[query, [positive, *negatives]]).clamp(min=0).sqrt().tolist()
        total += distance[0] + sum(max(1 - d, 0) ** 2 for d in distance[1:])
    assert value == pytest.approx(total / (5 * len(found)), rel=1e-4)


def side_of(pairs):
    rows = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3)
    return SideTensors("val", torch.tensor([7, 3]), *[torch.zeros(2, 0)] * 2, torch.ones(9), torch.zeros(2, 0), rows)


def test_negatives_stand_beside_the_positive_they_were_drawn_for():
    first = [(0, 5, 1), (0, 1, 0), (0, 2, 0), (0, 6, 1), (0, 3, 0), (0, 4, 0)]
    assert side_of([*first, (1, 0, 1), (1, 8, 0)]).pair_rows.tolist() == [[7, 5, 1, 2], [7, 6, 3, 4], [3, 0, 8, -1]]
    assert side_of([(1, 0, 1), (1, 8, 0), *first[:3]]).pair_rows.tolist() == [[7, 5, 1, 2], [3, 0, 8, -1]]
    assert side_of([]).pair_rows.tolist() == []
    side = side_of([])
    assert (
        SideTensors(*[getattr(side, name) for name in side.__dataclass_fields__ if name != "pairs"]).pair_rows is None
    )


def test_padding_does_not_count(made):
    """A query of a tiny collection may have fewer negatives than others."""
    model, data = dcdt(made).eval(), data_of(made)
    trainer = quiet_trainer()
    trainer.validate(model, datamodule=data, verbose=False)
    rows = data.sides["val"].pair_rows
    data.sides["val"].__dict__["pair_rows"] = torch.cat([rows[:2], torch.tensor([[*rows[2, :3].tolist(), -1, -1, -1]])])
    total = 0.0
    for query, *videos in [rows[0].tolist(), rows[1].tolist(), rows[2, :3].tolist()]:
        distance = [math.sqrt(2 - 2 * cosine) for cosine in cosines(model, query, videos)]
        total += distance[0] + sum(max(1 - d, 0) ** 2 for d in distance[1:])
    [metrics] = trainer.validate(model, datamodule=data, verbose=False)
    assert metrics["val/loss"] == pytest.approx(total / 12, rel=1e-4)
