"""The callbacks in a real training."""

import csv

import pytest
import torch
from support import prepare, quiet_trainer

from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.losses.config import ContrastiveConfig
from dcdt.losses.contrastive import ContrastiveLoss
from dcdt.models.config import DCDTConfig, OptimizerConfig
from dcdt.models.dual_tower import DualTower
from dcdt.samplers.config import RandomSamplerConfig
from dcdt.samplers.pool import training_pool
from dcdt.samplers.random import RandomSampler
from dcdt.training.callbacks.best import BestWeights
from dcdt.training.callbacks.collapse import CollapseAlarm
from dcdt.training.callbacks.history import History, write_history


@pytest.fixture(scope="module")
def made(small):
    return prepare(small, SplitConfig("query", 0, 10, "all"))


def fit(made, *callbacks, epochs=6, **options):
    sampler = RandomSampler(RandomSamplerConfig("random", 4), training_pool(made.collection, made.split), made.tables)
    data = RankingDataModule(made.collection, made.split, made.pairs, sampler, 16, 0, (1, 5))
    torch.manual_seed(0)
    config = DCDTConfig("dcdt", ["title", "text"], 16, 0.2, "none", "concat")
    loss = ContrastiveLoss(ContrastiveConfig("contrastive", 1.0, squared=False))
    model = DualTower(config, made.tables, loss, OptimizerConfig(0.03, 0.01, "constant"))
    trainer = quiet_trainer(max_epochs=epochs, callbacks=list(callbacks), **options)
    trainer.fit(model, datamodule=data)
    return model, trainer, data


def test_history_has_a_row_an_epoch(made):
    history, losses = History(), []
    model, _, _ = fit(made, history)
    assert [row["epoch"] for row in history.rows] == list(range(6))
    assert set(history.rows[0]) == {
        "epoch",
        "train/loss",
        "val/loss",
        *(f"val/{name}" for name in model._metrics.names),
    }
    losses = [row["train/loss"] for row in history.rows]
    assert len(set(losses)) == 6
    assert losses[-1] < losses[0]


def test_history_has_no_validation_where_there_was_none(made):
    history = History()
    fit(made, history, epochs=5, check_val_every_n_epoch=2)
    for name in ("val/mrr", "val/loss"):
        assert [name in row for row in history.rows] == [False, True, False, True, False]


def test_the_model_that_stays_is_the_one_that_validated_best(made):
    history, best = History(), BestWeights("val/mrr")
    model, trainer, data = fit(made, history, best, epochs=8)
    values = [row["val/mrr"] for row in history.rows]
    assert values[-1] < max(values), "choose another seed: the last epoch is the best"
    assert best.epoch == values.index(max(values))
    assert best.value == max(values)
    [logged] = trainer.validate(model, datamodule=data, verbose=False)
    assert logged["val/mrr"] == pytest.approx(max(values))


def test_history_is_written_as_csv(tmp_path):
    rows = [{"epoch": 0, "train/loss": 0.5}, {"epoch": 1, "train/loss": 0.25, "val/mrr": 0.125}]
    write_history(tmp_path / "deep" / "history.csv", rows)
    with (tmp_path / "deep" / "history.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["epoch", "train/loss", "val/mrr"], ["0", "0.5", ""], ["1", "0.25", "0.125"]]
    write_history(tmp_path / "none.csv", [])
    assert not (tmp_path / "none.csv").exists()


def test_a_planted_collapse_is_reported_while_training(made):
    class Collapse(CollapseAlarm):
        def on_validation_start(self, trainer, module):
            torch.nn.init.zeros_(module.fusion.weight)
            torch.nn.init.constant_(module.field_towers[1].linear.bias, -100)
            module._vectors = None

    with pytest.warns(UserWarning) as caught:
        fit(made, Collapse(0.99), epochs=3)
    messages = [str(warning.message) for warning in caught if "epoch 0: the" in str(warning.message)]
    assert len(messages) == 2
    assert "collapsed" in messages[0]
    assert "the tower of 'text' outputs only zeros" in messages[1]
