"""End a training whose numbers are no longer finite."""

import math

import lightning as L
import torch

from dcdt.errors import Diverged
from dcdt.models.recommender import Recommender


class DivergenceCheck(L.Callback):
    """Looks at the loss and the weights at the end of each epoch, also of one that is not validated."""

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, module: Recommender) -> None:  # type: ignore[override]
        """Raise where the loss or a weight is infinite or NaN.

        Raises:
            Diverged: it names the epoch and the learning rate.
        """
        loss = float(trainer.callback_metrics.get("train/loss", 0.0))
        finite = bool(torch.stack([weight.isfinite().all() for weight in module.parameters()]).all())
        if not math.isfinite(loss) or not finite:
            reason = f"{'a weight' if math.isfinite(loss) else 'the loss'} is not finite"
            assert module.optimizer_config is not None
            raise Diverged.at(trainer.current_epoch, reason, module.optimizer_config.lr)
