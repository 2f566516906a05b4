"""A finished run back as its model: configuration and weights are data, checked before anything is built from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcdt.config import Settings, parse
from dcdt.config.registry import LOSSES, MODELS, look_up
from dcdt.data.beir import load_collection
from dcdt.data.tables import Tables
from dcdt.data.types import Collection
from dcdt.embeddings.config import refuse_foreign_base_url
from dcdt.embeddings.tables import load_tables
from dcdt.models.recommender import Recommender
from dcdt.runs.folder import read_config, refuse_interpolations, require_finished
from dcdt.utils.errors import UserError
from dcdt.utils.files import read_json
from dcdt.utils.text import one_line

CHECKPOINT = Path("checkpoints") / "best.ckpt"


@dataclass(frozen=True)
class Restored:
    """A run's model with the weights of its best validation, its settings, collection and vectors."""

    settings: Settings
    collection: Collection
    tables: Tables
    model: Recommender


def restore(run: Path) -> Restored:
    """Rebuild the model of a finished run.

    Raises:
        UserError: the run did not finish, its checkpoint or configuration is missing or corrupt, or its collection is
            not the one it was trained on.
    """
    settings = run_settings(run)
    state = read_state(run)
    collection = load_collection(settings.data.path)
    trained_on = read_json(run / "provenance.json").get("collection_fingerprint")
    if collection.fingerprint != trained_on:
        raise UserError(
            f"the collection {settings.data.path} is not the one {run} was trained on: its fingerprint is "
            f"{collection.fingerprint}, the run's {trained_on}.\n"
            "Put the old files back or train again; to change what is recommended, use python -m dcdt.index RUN add."
        )
    tables = load_tables(collection, settings.fields, settings.embedder, settings.data.cache, False)
    loss = look_up(LOSSES, settings.loss.name)(settings.loss)
    model: Recommender = look_up(MODELS, settings.model.name)(settings.model, tables, loss, settings.optimizer)
    try:
        model.load_state_dict(state)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = one_line(error, 200)
        raise UserError(f"{run / CHECKPOINT} does not fit the run's model: {reason}") from error
    if not all(part.isfinite().all() for part in model.parameters()):
        raise UserError(f"{run / CHECKPOINT} holds weights that are not finite. Train it again: python -m dcdt.run.")
    return Restored(settings, collection, tables, model.eval())


def run_settings(run: Path) -> Settings:
    """The settings of a finished run; of several trials those that were chosen.

    Raises:
        UserError: it did not finish, or its configuration is missing or not one of ours.
    """
    require_finished(run)
    config = read_config(run / "config.yaml")
    chosen, path = read_json(run / "tuning.json").get("chosen"), run / "tuning.json"
    if path.is_file():
        if not isinstance(chosen, dict):
            raise UserError(f"{path} is corrupt: it does not say which trial was chosen.")
        refuse_interpolations(chosen, path)
        config.update({key: chosen[key] for key in ("model", "loss", "optimizer") if key in chosen})
    settings = parse(config)
    refuse_foreign_base_url(settings.embedder)
    return settings


def read_state(run: Path) -> dict[str, Any]:
    """The state of a run's checkpoint, tensors and plain values alone.

    Raises:
        UserError: it is missing, corrupt, or holds anything else.
    """
    path = run / CHECKPOINT
    if not path.is_file():
        raise UserError(f"{run} has no saved state ({CHECKPOINT}). Train it again: python -m dcdt.run.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:  # torch, zip and pickle each have their own kinds
        reason = one_line(error, 120)
        raise UserError(f"{path} is corrupt or holds more than tensors and plain values ({reason}).") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no state_dict.")
    return state
