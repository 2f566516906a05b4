"""Loggers of a run: none, or Weights & Biases."""

import importlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

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


def log_index(path: Path, files: Sequence[Path]) -> None:
    """Log a new index of a run on W&B, where the run logs artifacts (`logger.artifacts`).

    Args:
        path: of the run.
        files: of the index, which decide its content.
    """
    folder = RunFolder(path)
    if not folder.files.wandb.is_file() or not folder.read_config().logger.get("artifacts"):
        return
    _import_wandb()
    from dcdt.training.loggers import wandb_lineage  # wandb takes a second to import

    wandb_lineage.log_index(folder, files)


def _import_wandb() -> None:
    """Import all that `wandb.init` would import, ahead of torch and lightning.

    The models in `wandb.sdk.launch` search every module loaded for their documentation: with torch among them the same
    import takes several times as long. It also hooks what is printed, for the console of a run.
    """
    with unredacted(), suppress(ImportError):  # a part that another version may lack
        importlib.import_module("wandb.sdk.launch")
