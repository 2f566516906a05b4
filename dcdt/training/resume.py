"""Going on with a run that was cut off: which run, from which state, and whether that still fits."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from dcdt.config import Settings
from dcdt.data.beir import load_collection
from dcdt.embeddings.config import refuse_foreign_base_url
from dcdt.runs.folder import Status, read_config
from dcdt.runs.provenance import code_version, fingerprint
from dcdt.utils.errors import UserError

log = logging.getLogger("dcdt")
STATES = "checkpoints/last*.ckpt"  # what a run in progress leaves, beside best.ckpt of one that is done


def stored_config(config: DictConfig, overrides: Sequence[str], folder: Path, sweeping: bool) -> DictConfig:
    """The configuration of the run that `resume=RUN` names, or the one given where nothing is to be resumed.

    Args:
        config: as composed from the command line.
        overrides: of the command line.
        folder: where Hydra writes; that of RUN, unless another one is given.
        sweeping: whether this is a job of a sweep.

    Raises:
        UserError: RUN is no run, or something else is asked for beside it.
    """
    named = config.get("resume")
    if named is None:
        return config
    if sweeping:
        raise UserError(
            "resume=RUN goes on with one run. A sweep that is given again resumes its own jobs: leave -m out."
        )
    others = [text for text in overrides if not text.startswith(("resume=", "plugins="))]
    if others or folder.resolve() != Path(named).resolve():
        raise UserError(
            f"resume={named} takes the configuration and the folder of that run as they are.\n"
            f"Leave out {', '.join(others) or 'hydra.run.dir'}, or start a new run."
        )
    if not (folder / "config.yaml").is_file() or not (folder / "status.json").is_file():
        raise UserError(f"resume={named}: this folder holds no run (no config.yaml and status.json).")
    return read_config(folder / "config.yaml")


def goes_on(status: Status, config: DictConfig, settings: Settings, named: bool, sweeping: bool) -> bool:
    """Whether this job goes on from the state an earlier attempt left in its folder; what does not fit is removed.

    Args:
        status: of the folder.
        config: of the job.
        settings: the same, checked.
        named: the user named the folder (`resume=RUN`), so what does not fit is said.
        sweeping: whether this is a job of a sweep, which resumes what is the same job and begins the rest anew.

    Raises:
        UserError: the folder belongs to another run, or the data of the named one have changed.
    """
    if not named:
        status.refuse_existing(sweeping)
    if named:
        refuse_foreign_base_url(settings.embedder)
        if status.key is None:
            raise UserError(f"{status.path} is corrupt: it does not say which run this is. Start a new run.")
    collection, code = load_collection(settings.data.path).fingerprint, code_version()["code"]
    same = status.key == fingerprint(config, collection, code)
    found = any(status.folder.glob(STATES))
    if named and not same:
        if status.collection != collection:
            raise UserError(
                f"resume={status.folder}: the collection {settings.data.path} has changed since this run began.\n"
                "Start a new run."
            )
        log.warning("the code has changed since this run began: it may not end as it would have")
    elif not same:
        discard(status.folder)
        return False
    if found or named:
        state = "from its last state" if found else "from the start: it was cut off before its first state was written"
        log.warning("resuming %s %s", status.folder.name, state)
    return found or named


def state_path(folder: Path, trial: int, trials: int) -> Path:
    """Where the state of a trial is kept while its run is in progress."""
    return folder / "checkpoints" / ("last.ckpt" if trials == 1 else f"last_{trial}.ckpt")


def discard(folder: Path) -> None:
    """Remove the states of a run that is done, or that begins anew."""
    for path in folder.glob(STATES):
        path.unlink(missing_ok=True)


def copy_states(folder: Path, other: Path) -> None:
    """Give another process, which writes to a folder of its own, the states to go on from."""
    (other / "checkpoints").mkdir(parents=True, exist_ok=True)
    for path in folder.glob(STATES):
        shutil.copy(path, other / "checkpoints" / path.name)
