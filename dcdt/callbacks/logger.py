"""What a run tells a logger: opened, curves while it trains, closed on every path."""

import importlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from dcdt.redact import unguarded

if TYPE_CHECKING:
    from lightning import Callback

    from dcdt.callbacks.history import History
    from dcdt.outcome import Outcome


class RunLogger:
    """No logger beside the files of the run."""

    def start(self, simulated: list[str], resuming: bool) -> None:
        """Nothing to open."""

    def callbacks(self, history: "History") -> "list[Callback]":
        """Nothing looks on while the model trains."""
        return []

    def curves(self, history: list[dict[str, float]]) -> None:
        """Nowhere to send curves."""

    def finish(self, outcome: "Outcome") -> None:
        """Nothing to send."""

    def close(self, status: str, reason: str = "") -> None:
        """Nothing to close."""


def choose_logger(config: DictConfig, folder: Path, overrides: Sequence[str] | None) -> RunLogger:
    """The logger of a job; of a configuration that is not checked yet, since its mistakes are logged as well.

    Args:
        config: as composed.
        folder: the run's folder.
        overrides: the choices of this job of a sweep; None for a single run.
    """
    if OmegaConf.select(config, "logger.name") != "wandb":
        return RunLogger()
    _import_wandb()
    from dcdt.callbacks.wandb import WandbRun

    return WandbRun(config, folder, overrides)


def _import_wandb() -> None:
    """Import all that `wandb.init` would import, ahead of torch and lightning.

    The models in `wandb.sdk.launch` search every module loaded for their documentation: with torch among them the same
    import takes several times as long. It also hooks what is printed, for the console of a run.
    """
    with unguarded(), suppress(ImportError):  # a part that another version may lack
        importlib.import_module("wandb.sdk.launch")
