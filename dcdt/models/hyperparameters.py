"""Models with plain hyperparameters, so that checkpoints hold no pickled objects."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dcdt.config import validate
from dcdt.config.registry import GROUPS, LOSSES, MODELS, look_up
from dcdt.data.tables import Tables
from dcdt.models.config import OptimizerConfig
from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

SAVED = ("model", "loss", "optimizer")


def build(model: Any, loss: Any, optimizer: OptimizerConfig, tables: Tables) -> Any:  # noqa: ANN401
    """Build a recommender; its `hparams` hold the three configurations as plain values."""
    make = look_up(MODELS, model.name)
    if make.trained_by_epochs:
        module = make(model, tables, look_up(LOSSES, loss.name)(loss), optimizer)
    else:
        module = make(model, tables)
    values = zip(SAVED, map(asdict, (model, loss, optimizer)), strict=True)
    module.save_hyperparameters(dict(values), logger=False)
    return module


def build_from(hparams: object, tables: Tables) -> Any:  # noqa: ANN401 - a recommender of any class
    """Build a recommender from the hyperparameters of a checkpoint; its weights are those of a new model.

    Raises:
        UserError: a configuration is missing, unknown or out of range.
    """
    if not isinstance(hparams, Mapping) or not all(isinstance(hparams.get(group), Mapping) for group in SAVED):
        raise UserError(
            "the checkpoint holds no hyperparameters of a model, loss and optimizer (hyper_parameters).\n"
            "Restore the run instead: dcdt.training.checkpoint.restore(RUN)."
        )
    configs: dict[str, Any] = {}
    for group in SAVED:
        name = str(hparams[group].get("name"))
        if name not in GROUPS[group]:
            raise UserError(f"the checkpoint's {group} is '{one_line(name)}'; known are {', '.join(GROUPS[group])}.")
        configs[group] = validate(GROUPS[group][name].schema, dict(hparams[group]), group)
    return build(**configs, tables=tables)
