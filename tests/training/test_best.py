from types import SimpleNamespace

import torch
from lightning.pytorch.trainer.states import TrainerFn
from support import quiet_trainer
from torch import nn

from dcdt.training.callbacks.best import BestWeights


def play(values, sanity=False, before=None):
    """Validations with these values; the only weight of the model is the number of the epoch.

    `before` is the value of a validation ahead of the fit, with the weight -1.
    """
    model, best = nn.Linear(1, 1, bias=False), BestWeights("val/mrr")
    if before is not None:
        nn.init.constant_(model.weight, -1)
        trainer = SimpleNamespace(
            sanity_checking=False,
            callback_metrics={"val/mrr": torch.tensor(before)},
            current_epoch=0,
            state=SimpleNamespace(fn=TrainerFn.VALIDATING),
        )
        best.on_validation_end(trainer, model)
    for epoch, value in enumerate(values):
        nn.init.constant_(model.weight, epoch)
        metrics = {} if value is None else {"val/mrr": torch.tensor(value)}
        state = SimpleNamespace(fn=TrainerFn.FITTING)
        trainer = SimpleNamespace(sanity_checking=sanity, callback_metrics=metrics, current_epoch=epoch, state=state)
        best.on_validation_end(trainer, model)
    best.on_fit_end(quiet_trainer(), model)
    return best, model.weight.item()


def test_the_best_weights_are_put_back():
    best, weight = play([0.1, 0.4, 0.3])
    assert (best.epoch, round(best.value, 6), weight) == (1, 0.4, 1)


def test_the_first_of_equals_stays():
    best, weight = play([0.1, 0.4, 0.4, 0.4])
    assert (best.epoch, weight) == (1, 1)


def test_validations_that_are_not_numbers_do_not_count():
    best, weight = play([float("nan"), 0.2, float("nan")])
    assert (best.epoch, weight) == (1, 1)


def test_without_any_validation_the_last_weights_stay():
    for best, weight in (play([None, None]), play([0.3, 0.2], sanity=True)):
        assert (best.epoch, weight) == (-1, 1)


def test_a_monitor_decides_and_the_metric_is_that_of_its_epoch():
    """A loss is the better the lower it is."""
    rows = [(0.1, 0.5), (0.4, 0.9), (0.3, 0.2), (0.2, 0.2), (0.9, float("nan"))]
    for monitor, expected in ((None, (4, 0.9)), ("val/mrr", (4, 0.9)), ("val/loss", (2, 0.3))):
        model, best = nn.Linear(1, 1, bias=False), BestWeights("val/mrr", monitor)
        for epoch, (mrr, loss) in enumerate(rows):
            nn.init.constant_(model.weight, epoch)
            metrics = {"val/mrr": torch.tensor(mrr), "val/loss": torch.tensor(loss)}
            state = SimpleNamespace(fn=TrainerFn.FITTING)
            best.on_validation_end(
                SimpleNamespace(sanity_checking=False, callback_metrics=metrics, current_epoch=epoch, state=state),
                model,
            )
        resumed = BestWeights("val/mrr", monitor)
        resumed.load_state_dict(best.state_dict())
        for one in (best, resumed):
            one.on_fit_end(quiet_trainer(), model)
            assert (one.epoch, round(one.value, 6), model.weight.item()) == (*expected, expected[0])
        assert resumed.score == best.score
        nn.init.constant_(model.weight, 9)
        metrics = {"val/mrr": torch.tensor(0.5), "val/loss": torch.tensor(0.3)}  # worse than either
        resumed.on_validation_end(
            SimpleNamespace(sanity_checking=False, callback_metrics=metrics, current_epoch=9, state=state), model
        )
        assert resumed.epoch == expected[0]


def test_the_untrained_model_stays_where_no_epoch_is_better():
    for before, kept in ((0.5, -1), (0.4, -1), (0.3, 1)):  # the first of equals stays
        best, weight = play([0.1, 0.4, 0.2], before=before)
        assert (best.epoch, weight) == (kept, kept)
