"""Loggers of a run: none, or Weights & Biases."""

import importlib
from collections.abc import Sequence
from contextlib import suppress

from omegaconf import DictConfig, OmegaConf

from dcdt.runs.folder import RunFolder
from dcdt.training.loggers.base import RunLogger
from dcdt.utils.redaction import unredacted


def choose_logger(config: DictConfig, folder: RunFolder, overrides: Sequence[str] | None) -> RunLogger:
    """The logger of a job.

    Args:
        config: as composed.
        folder: of the run.
        overrides: the choices of this job of a sweep; None for a single run.
    """
    if OmegaConf.select(config, "logger.name") != "wandb":
        return RunLogger()
    _import_wandb()
    from dcdt.training.loggers.wandb import WandbRun  # wandb takes a second to import

    return WandbRun(config, folder, overrides)


def _import_wandb() -> None:
    """Import all that `wandb.init` would import, ahead of torch and lightning.

    The models in `wandb.sdk.launch` search every module loaded for their documentation: with torch among them the same
    import takes several times as long. It also hooks what is printed, for the console of a run.
    """
    with unredacted(), suppress(ImportError):  # a part that another version may lack
        importlib.import_module("wandb.sdk.launch")
