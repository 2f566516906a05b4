"""Store the weights of the best validation, and put them back into the model when training ends."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn


class BestWeights(L.Callback):
    """Copies the weights in memory at every better validation and puts them back when training ends.

    Writing a file at each improvement costs more than the training of a small collection; the copy costs nothing.

    A validation before the fit counts as epoch -1: where no epoch is better, the untrained model stays.

    Args:
        metric: whose value at the best validation is returned, such as `val/mrr`.
        monitor: that the best validation has the highest of, of `val/loss` the lowest; None: `metric`.

    Attributes:
        value: of the metric at the best validation.
        score: of the monitor at the best validation, negative for a loss.
        epoch: of the best validation.
        outside_epoch: counted for a validation outside of `fit`.
        weights: of the best validation.
        final_weights: with which training ended.
    """

    def __init__(self, metric: str, monitor: str | None = None) -> None:
        self.metric, self.monitor = metric, monitor or metric
        self.value = self.score = float("-inf")
        self.epoch = -1
        self.outside_epoch = -1
        self.weights: dict[str, Any] = {}
        self.final_weights: dict[str, Any] = {}

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Take a copy where this validation is the best so far; the first of equals stays."""
        if trainer.sanity_checking or self.monitor not in trainer.callback_metrics:
            return
        score = float(trainer.callback_metrics[self.monitor]) * (-1 if self.monitor == "val/loss" else 1)
        if score > self.score:
            is_fitting = trainer.state.fn == TrainerFn.FITTING
            self.score, self.value = score, float(trainer.callback_metrics[self.metric])
            self.epoch = trainer.current_epoch if is_fitting else self.outside_epoch
            self.weights = _copy_weights(module)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Put the best weights back into the model."""
        if self.weights:
            self.final_weights = _copy_weights(module)
            module.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, value, epoch and weights, for a run that resumes."""
        return {"score": self.score, "value": self.value, "epoch": self.epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it from a state."""
        self.value, self.epoch, self.weights = (state_dict[name] for name in ("value", "epoch", "weights"))
        self.score = state_dict.get("score", self.value)  # which older states lack


def _copy_weights(module: L.LightningModule) -> dict[str, Any]:
    """A copy of the weights; what is no tensor (the words of a part that matches words) does not change in training."""
    return {
        name: weight.detach().clone() if torch.is_tensor(weight) else weight
        for name, weight in module.state_dict().items()
    }
