"""End a training whose numbers are no longer finite."""

import lightning as L
import torch

from dcdt.models.recommender import Recommender
from dcdt.utils.errors import Diverged


class DivergenceCheck(L.Callback):
    """Checks the loss and the weights at the end of each epoch, validated or not."""

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, module: Recommender) -> None:  # type: ignore[override]
        """Raise where the loss or a weight is infinite or NaN.

        Raises:
            Diverged: it names the epoch and the learning rate.
        """
        weights = [weight.isfinite().all() for weight in module.parameters()]
        loss = trainer.callback_metrics.get("train/loss", torch.tensor(0.0)).to(weights[0].device)
        if not torch.stack([*weights, loss.isfinite()]).all():  # the device is waited for once
            assert module.optimizer_config is not None
            reason = f"{'a weight' if loss.isfinite() else 'the loss'} is not finite"
            raise Diverged.in_epoch(trainer.current_epoch, reason, module.optimizer_config.lr)
