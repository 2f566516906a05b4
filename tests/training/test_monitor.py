"""What stops a training and whose weights stay, in real trainings of `fit.train`."""

import lightning as L
import pytest
from hydra import compose
from support import prepare

from dcdt.config import parse
from dcdt.config.registry import SAMPLERS, look_up
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.samplers.pool import training_pool
from dcdt.training import build, fit
from dcdt.training.loggers.base import RunLogger
from dcdt.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("hydra")
FIXED = ("data.path=/x", "trainer=cpu", "logger=none", "callbacks.progress=false", "ks=[1,5]", "model.width=8")
EPOCHS, PATIENCE = 40, 3


@pytest.fixture(scope="module")
def made(small):
    return prepare(small, SplitConfig("query", 0, 10, "all"), width=24)


def settings_of(*overrides):
    few = (
        f"trainer.max_epochs={EPOCHS}",
        f"callbacks.patience={PATIENCE}",
        "optimizer.lr=0.01",
        "optimizer.schedule=constant",
    )
    return parse(compose("config", overrides=[*FIXED, *few, *overrides]))


def trained(made, folder, *overrides):
    settings = settings_of(*overrides)
    pool = training_pool(made.collection, made.split)
    sampler = look_up(SAMPLERS, settings.sampler.name)(settings.sampler, pool, made.tables)
    data = RankingDataModule(made.collection, made.split, made.pairs, sampler, 16, settings.seed, settings.ks)
    return fit.train(settings, made.tables, data, RunLogger(), folder / "last.ckpt")


def stop(values):
    """The epoch after which the best of values, the higher the better, is older than the patience allows."""
    best, waited = float("-inf"), 0
    for epoch, value in enumerate(values):
        waited = 0 if value > best else waited + 1
        best = max(best, value)
        if waited == PATIENCE:
            return epoch
    return EPOCHS - 1


@pytest.mark.parametrize(
    ("monitor", "name", "sign"),
    [("null", "val/mrr", 1), ("val/loss", "val/loss", -1), ("val/recall@1", "val/recall@1", 1), ("none", None, 1)],
)
def test_training_stops_where_the_monitor_says(made, tmp_path, monitor, name, sign):
    done = trained(made, tmp_path, f"callbacks.monitor={monitor}")
    values = [sign * row[name] for row in done.history] if name else [0.0] * EPOCHS
    assert len(done.history) == (stop(values) + 1 if name else EPOCHS)
    assert name is None or len(done.history) < EPOCHS
    ranked = [row["val/mrr"] for row in done.history]
    assert (done.epoch, done.value) == (ranked.index(max(ranked)), max(ranked))  # the weights of the primary metric


def test_the_weights_of_the_monitor_stay_where_it_is_named_for_both(made, tmp_path):
    done = trained(made, tmp_path, "callbacks.monitor=val/loss", "callbacks.checkpoint_by=monitor")
    losses, ranked = ([row[name] for row in done.history] for name in ("val/loss", "val/mrr"))
    assert done.epoch == losses.index(min(losses))
    assert done.epoch != ranked.index(max(ranked)), "choose another seed: both are the same epoch"
    assert done.value == ranked[done.epoch]


class Cut(L.Callback):
    """Cuts a training off as an epoch begins."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 4:
            raise RuntimeError("cut off")


def test_a_resumed_training_stops_where_an_uninterrupted_one_does(made, tmp_path, monkeypatch):
    overrides = ("callbacks.monitor=val/loss", "callbacks.checkpoint_by=monitor", "callbacks.checkpoint_seconds=0")
    whole = trained(made, tmp_path / "whole", *overrides)
    assert len(whole.history) > 5
    make = build.make_trainer
    with monkeypatch.context() as patched:
        patched.setattr(build, "make_trainer", lambda settings, callbacks: make(settings, [*callbacks, Cut()]))
        with pytest.raises(RuntimeError, match="cut off"):
            trained(made, tmp_path / "cut", *overrides)
    assert (tmp_path / "cut" / "last.ckpt").is_file()
    resumed = trained(made, tmp_path / "cut", *overrides)
    assert resumed.history == whole.history
    assert (resumed.epoch, resumed.value) == (whole.epoch, whole.value)


def test_a_model_without_the_loss_is_refused_and_one_without_training_reads_no_monitor(made):
    joint = ("model=two_stage_joint", "callbacks.monitor=val/loss", "model.depth=5")
    with pytest.raises(
        UserError, match=r"which model=two_stage_joint does not compute\.\nChoose a metric of validation"
    ):
        build.make_model(settings_of(*joint), made.tables)
    fixed = [one for one in FIXED if "width" not in one]
    build.make_model(parse(compose("config", [*fixed, "model=zero_shot", "callbacks.monitor=val/loss"])), made.tables)
