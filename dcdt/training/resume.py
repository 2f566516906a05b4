"""Decide whether a job resumes a run that was interrupted, and refuse what does not fit."""

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from dcdt.config import Settings
from dcdt.data.beir import load_collection
from dcdt.embeddings.config import refuse_foreign_base_url
from dcdt.runs.folder import RunFolder
from dcdt.runs.provenance import code_version, fingerprint
from dcdt.training.rank import global_rank
from dcdt.utils.errors import UserError
from dcdt.utils.files import refuse_outside_links

log = logging.getLogger("dcdt")


def resumed_config(folder: RunFolder, resume: str, overrides: Sequence[str], sweeping: bool) -> DictConfig:
    """Read the configuration of the run that `resume=RUN` names.

    Args:
        folder: where Hydra writes; that of RUN, unless another one is given.
        resume: RUN.
        overrides: of the command line.
        sweeping: whether this is a job of a sweep.

    Raises:
        UserError: RUN is no run, or the command line changes something beside it.
    """
    if sweeping:
        raise UserError(
            "resume=RUN goes on with one run. A sweep that is given again resumes its own jobs: leave -m out."
        )
    others = [text for text in overrides if not text.startswith(("resume=", "plugins="))]
    if others or folder.path.resolve() != Path(resume).resolve():
        raise UserError(
            f"resume={resume} takes the configuration and the folder of that run as they are.\n"
            f"Leave out {', '.join(others) or 'hydra.run.dir'}, or start a new run."
        )
    if not folder.files.config.is_file() or not folder.files.status.is_file():
        raise UserError(f"resume={resume}: this folder holds no run (no config.yaml and status.json).")
    return folder.read_config()


def should_resume(folder: RunFolder, config: DictConfig, settings: Settings, named: bool, sweeping: bool) -> bool:
    """Whether a job resumes from the state of an earlier attempt; the states of another job are deleted.

    Args:
        folder: of the run.
        config: of the job.
        settings: the same, checked.
        named: whether the user named the run (`resume=RUN`), which must then fit.
        sweeping: whether this is a job of a sweep, which resumes an attempt at the same job and begins others anew.

    Raises:
        UserError: the folder belongs to another run, or the data of the named one have changed.
    """
    if global_rank():  # the first process decides; the folder of this one holds copies
        return named
    if named:
        refuse_outside_links(folder.path, folder.path)
        refuse_foreign_base_url(settings.embedder)
        if folder.fingerprint is None:
            raise UserError(f"{folder.files.status} is corrupt: it does not say which run this is. Start a new run.")
    else:
        folder.require_empty(sweeping)
    collection = load_collection(settings.data.path, settings.data.own_video).fingerprint
    is_same = folder.fingerprint == fingerprint(config, collection, code_version()["code"])
    if named and not is_same:
        if folder.collection_fingerprint != collection:
            raise UserError(
                f"resume={folder.path}: the collection {settings.data.path} has changed since this run began.\n"
                "Start a new run."
            )
        log.warning("the code has changed since this run began: it may not end as it would have")
    elif not is_same:
        folder.delete_states()
        return False
    has_state = bool(folder.states())
    if has_state or named:
        state = "from its last state" if has_state else "from the start: it has written no state yet"
        log.warning("resuming %s %s", folder.path.name, state)
    return has_state or named
