"""Checkpoints: states and weights written as tensors and plain values, and finished runs restored from them.

Every file loads with `weights_only=True`; configuration and weights are data, checked before anything is built of them.
"""

import contextlib
import io
import re
import traceback
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dcdt.config import Settings, parse, vector_fields
from dcdt.data.beir import load_collection
from dcdt.data.tables import Tables
from dcdt.data.types import Collection
from dcdt.embeddings.config import refuse_foreign_base_url
from dcdt.embeddings.tables import load_tables
from dcdt.models import hyperparameters
from dcdt.models.recommender import Recommender
from dcdt.runs.folder import RunFolder
from dcdt.training.build import add_inputs
from dcdt.training.callbacks.last import LastState
from dcdt.utils.errors import UserError
from dcdt.utils.files import atomic_write, read_json
from dcdt.utils.text import one_line
from dcdt.utils.yaml import refuse_interpolations

_LOADING = re.compile("_?(on_)?(load|restore|resume|set_random_state)")  # functions that take up a state


@dataclass(frozen=True)
class Restored:
    """A run's model with the weights of its best validation, its settings, collection and vectors."""

    settings: Settings
    collection: Collection
    tables: Tables
    model: Recommender
    federated: bool = False  # fitted from the sums of several schools: it cannot leave a query out


def restore(run: Path) -> Restored:
    """Rebuild the model of a finished run.

    Raises:
        UserError: the run did not finish, its checkpoint or configuration is missing or corrupt, or its collection is
            not the one it was trained on.
    """
    folder = RunFolder(run)
    settings = run_settings(run)
    weights = read_weights(folder)
    federated = folder.files.federation.is_file()
    collection = load_collection(settings.data.path, settings.data.own_video, needs_queries=False)
    if collection.fingerprint != folder.collection_fingerprint:
        raise UserError(
            f"the collection {settings.data.path} is not the one {run} was trained on: its fingerprint is "
            f"{collection.fingerprint}, the run's {folder.collection_fingerprint}.\n"
            "Put the old files back or train again; to change what is recommended, use python -m dcdt.index RUN add."
        )
    tables = load_tables(collection, vector_fields(settings.model), settings.embedder, settings.data.cache, False)
    add_inputs(tables, settings, collection, progress=False)
    model: Recommender = hyperparameters.build(settings.model, settings.loss, settings.optimizer, tables)
    path = folder.files.checkpoint
    try:
        model.load_state_dict(weights)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = one_line(error, 200)
        raise UserError(f"{path} does not fit the run's model: {reason}") from error
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise UserError(f"{path} holds weights that are not finite. Train it again: python -m dcdt.run.")
    return Restored(settings, collection, tables, model.eval(), federated)


def run_settings(run: Path) -> Settings:
    """The settings of a finished run; of several trials those of the best.

    Raises:
        UserError: it did not finish, or its configuration is missing or not one of ours.
    """
    folder = RunFolder(run)
    folder.require_finished()
    config = folder.read_config()
    path = folder.files.tuning
    if path.is_file():
        chosen = read_json(path).get("chosen")
        if not isinstance(chosen, dict):
            raise UserError(f"{path} is corrupt: it does not say which trial was chosen.")
        refuse_interpolations(chosen, path)
        config.update({key: chosen[key] for key in ("model", "loss", "optimizer") if key in chosen})
    settings = parse(config)
    refuse_foreign_base_url(settings.embedder)
    return settings


def read_weights(folder: RunFolder) -> dict[str, Any]:
    """The state_dict of a run's best checkpoint, tensors and plain values alone.

    Raises:
        UserError: it is missing, corrupt, or holds anything else.
    """
    path = folder.files.checkpoint
    if not path.is_file():
        name = path.relative_to(folder.path)
        raise UserError(f"{folder.path} has no saved state ({name}). Train it again: python -m dcdt.run.")
    try:
        weights = _load_checked(path)["state_dict"]
    except Exception as error:  # torch, zip and pickle each have their own kinds
        reason = one_line(error, 120)
        raise UserError(f"{path} is corrupt or holds more than tensors and plain values ({reason}).") from error
    if not isinstance(weights, dict):
        raise UserError(f"{path} holds no state_dict.")
    return weights


def read_state(path: Path) -> dict[str, Any]:
    """The state that an unfinished training has left, tensors and plain values alone; empty where there is none.

    Raises:
        UserError: it is corrupt, or holds anything else.
    """
    if not path.is_file():
        return {}
    with state_errors(path):
        state = _load_checked(path)
        if not isinstance(state, dict):
            raise TypeError("no dictionary")
        return state


def _load_checked(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """Load tensors and plain values, after the checksums of the file, which torch writes and does not compare."""
    content = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(content) as file:
        if (changed := file.testzip()) is not None:
            raise ValueError(f"the checksum of {changed} is wrong")
    content.seek(0)
    return torch.load(content, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def state_errors(path: Path, last: LastState | None = None) -> Iterator[None]:
    """Convert errors of loading a state to UserError, with the file's name.

    Args:
        path: of the state.
        last: the callback that loads it. Errors outside of the loading, such as of a device, and those since it has
            started training have another cause and pass.

    Raises:
        UserError: the file is corrupt, of another model, or holds more than tensors and plain values.
    """
    try:
        yield
    except Exception as error:  # torch, zip, pickle and Lightning each have their own kinds
        frames = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        is_foreign = last is not None and (last.has_started or not any(map(_LOADING.match, frames)))
        if isinstance(error, OSError | UserError) or is_foreign:
            raise
        reason = one_line(error, 120)
        raise UserError(
            f"{path} is corrupt, of another model, or holds more than tensors and plain values ({reason}).\n"
            "Delete it, then give the same command again: training begins anew."
        ) from error


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write a state atomically. torch hides why a file cannot be written, so it writes to memory first."""
    content = io.BytesIO()
    torch.save(state, content)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def cpu_weights(model: Recommender) -> dict[str, Any]:
    """The state_dict of a model with its tensors on the CPU."""
    return {name: value.cpu() if torch.is_tensor(value) else value for name, value in model.state_dict().items()}
