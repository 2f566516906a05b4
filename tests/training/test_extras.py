"""What goes on to Lightning's Trainer and its callbacks, and what is refused."""

from copy import deepcopy

import pytest
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, Timer
from support import make_collection, slow_but
from test_lightning import parts

from dcdt.training import build, fit
from dcdt.training.loggers.base import RunLogger
from dcdt.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("collection") / "small")


def trained(folder, tmp_path, *changes):
    settings, tables, data = parts(folder, tmp_path, *changes)
    result = fit.train(settings, tables, data, RunLogger(), tmp_path / "last.ckpt")
    return result, fit.test(result, data)[0]


EXTRAS = [
    "{gradient_clip_val: 0.1}",
    "{accumulate_grad_batches: 4}",
    "{fast_dev_run: true}",
    "{overfit_batches: 1}",
    "{profiler: simple}",
    "{max_steps: 3}",
    "{limit_train_batches: 2, detect_anomaly: true}",
]


@pytest.mark.parametrize("extra", slow_but(EXTRAS[2:3], EXTRAS))
def test_an_argument_of_lightnings_trainer_is_passed_on_and_every_query_is_tested(folder, tmp_path, extra, caplog):
    result, sides = trained(folder, tmp_path, f"trainer.extra={extra}")
    plain, plain_sides = trained(folder, tmp_path)
    weights = [torch.cat([weight.flatten() for weight in one.model.parameters()]) for one in (plain, result)]
    assert torch.equal(*weights) == ("profiler" in extra)
    assert {name: len(side.queries) for name, side in sides.items()} == {
        name: len(side.queries) for name, side in plain_sides.items()
    }


def test_callbacks_of_lightning_are_made_by_name(folder, tmp_path):
    settings, *_ = parts(folder, tmp_path, "callbacks.extra=[{name: Timer, duration: '00:01:00:00'}]")
    trainer = build.make_trainer(settings, fit.make_callbacks(settings.callbacks.extra))
    assert any(isinstance(one, Timer) for one in trainer.callbacks)


def test_averaged_weights_are_validated_and_may_be_the_best(folder, tmp_path, monkeypatch):
    averaged = []
    ended = StochasticWeightAveraging.on_train_end
    monkeypatch.setattr(
        StochasticWeightAveraging,
        "on_train_end",
        lambda self, trainer, module: (ended(self, trainer, module), averaged.append(deepcopy(module.state_dict())))[0],
    )
    extra = "callbacks.extra=[{name: StochasticWeightAveraging, swa_lrs: 0.01, swa_epoch_start: 1}]"
    result, sides = trained(folder, tmp_path, "trainer.max_epochs=6", extra)
    best = next(one for one in result.trainer.callbacks if isinstance(one, fit.BestWeights))
    assert averaged and all(torch.equal(value, averaged[0][name]) for name, value in best.final_weights.items())
    assert result.value == pytest.approx(float(sides["val"].metrics["mrr"].mean()))
    assert result.value >= max(row["val/mrr"] for row in result.history)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("trainer.extra={max_epochs: 3}", "trainer.extra holds max_epochs, which a run sets itself.\nLeave it out"),
        ("trainer.extra={callbacks: [x]}", "trainer.extra holds callbacks, which a run sets itself"),
        ("trainer.extra={nonsense: 3}", "trainer.extra holds nonsense, which is no argument of Lightning's Trainer"),
        ("callbacks.extra=[{name: ModelCheckpoint}]", "callbacks.extra names 'ModelCheckpoint'; choose a class of"),
        ("callbacks.extra=[{name: os.system}]", "callbacks.extra names 'os.system'; choose a class of"),
        ("callbacks.extra=[{swa_lrs: 1}]", "callbacks.extra names None; choose a class of"),
        (
            "callbacks.extra=[{name: StochasticWeightAveraging, x: 1}]",
            "StochasticWeightAveraging refuses its arguments",
        ),
    ],
)
def test_what_cannot_be_passed_on_is_refused_before_anything_is_embedded(folder, tmp_path, change, reason):
    with pytest.raises(UserError) as caught:
        parts(folder, tmp_path, change)
    assert reason in str(caught.value) and len(str(caught.value).splitlines()) <= 2


def test_a_value_that_lightning_refuses_is_named(folder, tmp_path):
    with pytest.raises(UserError, match=r"trainer.extra is .*'gradient_clip_algorithm': 'x'.*: Lightning refuses it"):
        trained(folder, tmp_path, "trainer.extra={gradient_clip_algorithm: x}")
