"""Write the state of a training to disk, from which it resumes as if it had never stopped."""

import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor

from dcdt.utils.files import atomic_write


class LastState(L.Callback):
    """Writes weights, optimizer, schedule, sampler, callbacks and random states, at intervals by the clock.

    A file an epoch would cost more than the training of a small collection, so the clock decides. The file is
    written atomically and holds plain values and tensors alone: it loads with `weights_only=True`. It must be the last
    callback, so that the others have ended their epoch.

    Args:
        path: of the file.
        seconds: of training between two states; 0: one an epoch; None: none.

    Attributes:
        earlier_seconds: of training before this process.
        has_started: whether training has started, so that a loaded state has been restored.
    """

    def __init__(self, path: Path, seconds: float | None) -> None:
        self.path, self.seconds = path, seconds
        self.earlier_seconds, self.has_started = 0.0, False
        self._random: list[dict[str, Tensor]] = []
        self._started = self._written = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Restore the random states where a state was loaded."""
        if len(self._random) == trainer.world_size:
            set_random_state(self._random[trainer.global_rank])
        self.has_started = True

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write the state where it is due, unless training ends here."""
        now = time.monotonic()
        due = self.seconds is not None and now - self._written >= self.seconds
        if trainer.world_size > 1:
            due = trainer.strategy.broadcast(due)  # the clocks of processes differ
        if not due or trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs:
            return
        self._random = [random_state()]
        if trainer.world_size > 1:
            own = {name: value.to(module.device) for name, value in self._random[0].items()}
            gathered = cast(dict[str, Tensor], module.all_gather(own))
            gathered = {name: value.cpu() for name, value in gathered.items()}  # (processes, ...) each
            self._random = [
                {name: value[rank] for name, value in gathered.items()} for rank in range(trainer.world_size)
            ]
        if trainer.is_global_zero:
            with atomic_write(self.path) as temporary:
                trainer.save_checkpoint(temporary, weights_only=False)
        else:
            trainer.save_checkpoint(self.path, weights_only=False)  # a collective call; rank 0 writes
        self._written = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Random states and seconds of training so far."""
        return {"random": self._random, "seconds": self.earlier_seconds + time.monotonic() - self._started}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it from a state."""
        self._random, self.earlier_seconds = state_dict["random"], state_dict["seconds"]


def random_state() -> dict[str, Tensor]:
    """The random states of Python, numpy and torch (CPU and the current GPU), as tensors."""
    version, numbers, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002 - the global one
    state = {
        "python": torch.tensor([version, *numbers]),
        "python_gauss": torch.tensor([float("nan") if gauss is None else gauss], dtype=torch.float64),
        "numpy": torch.tensor([*legacy["state"]["key"].tolist(), legacy["state"]["pos"], legacy["has_gauss"]]),
        "numpy_gauss": torch.tensor([legacy["gauss"]], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Restore what `random_state` returned."""
    version, *numbers = state["python"].tolist()
    gauss = state["python_gauss"].item()
    random.setstate((version, tuple(numbers), None if gauss != gauss else gauss))
    *key, position, has_gauss = state["numpy"].tolist()
    inner = {"key": np.array(key, dtype=np.uint32), "pos": position}
    drawn = {"has_gauss": has_gauss, "gauss": state["numpy_gauss"].item()}
    np.random.set_state({"bit_generator": "MT19937", "state": inner, **drawn})  # noqa: NPY002 - the global one
    torch.set_rng_state(state["torch"].clone())  # it ignores the offset of a view
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].clone())
