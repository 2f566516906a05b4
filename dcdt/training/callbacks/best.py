"""Keep the best weights by validation and leave them in the model."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn


class BestWeights(L.Callback):
    """Copies the weights in memory at every better validation and puts them back when training ends.

    Writing a file at each improvement costs more than the training of a small collection; the copy costs nothing.

    A validation before the fit counts as epoch -1: where no epoch is better, the untrained model stays.

    Args:
        monitor: metric to maximise, such as `val/mrr`.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.value = float("-inf")
        self.epoch = -1
        self._weights: dict[str, Any] = {}

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Take a copy where this validation is the best so far; the first of equals stays."""
        if trainer.sanity_checking or self.monitor not in trainer.callback_metrics:
            return
        value = float(trainer.callback_metrics[self.monitor])
        if value > self.value:
            self.value, self.epoch = value, trainer.current_epoch if trainer.state.fn == TrainerFn.FITTING else -1
            self._weights = {  # what is no tensor (the words of a part that matches words) does not change in training
                name: weight.detach().clone() if torch.is_tensor(weight) else weight
                for name, weight in module.state_dict().items()
            }

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Put the best weights back into the model."""
        if self._weights:
            module.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know of the best so far."""
        return {"value": self.value, "epoch": self.epoch, "weights": self._weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it up again."""
        self.value, self.epoch, self._weights = (state_dict[name] for name in ("value", "epoch", "weights"))
