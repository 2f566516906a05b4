"""A run's folder: its files, its status, and the lock that decides which process writes it."""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcdt.config.renames import normalise
from dcdt.data.beir import load_collection
from dcdt.runs.provenance import code_version, fingerprint
from dcdt.utils.errors import UserError
from dcdt.utils.files import read_json, remove_abandoned, write_json, write_text
from dcdt.utils.lock import lock_path
from dcdt.utils.signals import Interrupted
from dcdt.utils.yaml import read_yaml, refuse_interpolations

log = logging.getLogger("dcdt")


class FolderInUse(UserError):
    """Another process is writing this folder."""


class RunFiles:
    """Paths of the files in a run's folder; few runs have all of them.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.status = folder / "status.json"  # running, finished, failed, interrupted or not_applicable, with the error
        self.config = folder / "config.yaml"  # the resolved configuration
        self.provenance = folder / "provenance.json"  # code, packages, data, split and command
        self.metrics = folder / "metrics.json"  # name to value
        self.per_query = folder / "per_query.parquet"  # one row a query and metric
        self.ranking = folder / "run.trec"  # the best videos of the test queries, as trec_eval reads them
        self.pairs = folder / "pairs.parquet"  # the pair protocol of the test side
        self.moments = folder / "moments.parquet"  # the second of a video that a query asks about, and the one shown
        self.scores = folder / "scores.parquet"  # of every test query and video
        self.cost = folder / "cost.json"  # parameters and times, never the same twice
        self.history = folder / "history.csv"  # loss and validation per epoch
        self.tuning = folder / "tuning.json"  # trials, and the settings of the best
        self.federation = folder / "federation.json"  # of dcdt.federate: schools, queries, privacy
        self.wandb = folder / "wandb.json"  # id of the run on W&B
        self.checkpoint = folder / "checkpoints" / "best.ckpt"  # weights of the best validation


class RunFolder:
    """Reads and writes what a run's folder says of the run, and locks it.

    Args:
        path: of the folder, which need not exist yet.

    Attributes:
        files: paths of its files.
        started: whether this process has written that the run began.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = RunFiles(path)
        self.started = False
        self._lock: int | None = None
        self._new_files: list[Path] = []  # written before status.json, without which a folder is no run

    def lock(self, wait: bool) -> None:
        """Keep other processes out until `unlock`, or until this process ends in whatever way.

        Args:
            wait: for another process that writes the folder, as a job of a sweep does, which then finds its work done.

        Raises:
            FolderInUse: another process is writing it.
        """
        try:
            waiting = "another process is at %s; waiting for it"
            self._lock = lock_path(self.path, (lambda: log.warning(waiting, self.path.name)) if wait else None)
        except BlockingIOError as error:
            raise FolderInUse(
                f"another process is writing the run {self.path}.\n"
                "Wait until it has ended, or name another folder: hydra.run.dir=FOLDER"
            ) from error
        for folder in (self.path, self.files.checkpoint.parent):
            remove_abandoned(folder)

    def unlock(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # What the folder says.

    def read_status(self) -> dict[str, Any]:
        """The content of status.json; empty where there is none that can be read."""
        return read_json(self.files.status)

    def read_config(self) -> DictConfig:
        """The resolved configuration, which holds plain values.

        One that names something to look up, such as a variable of the environment, was not written by a run; it is
        refused before anything is looked up.

        Raises:
            UserError: it is missing, not YAML, or would be resolved.
        """
        path = self.files.config
        try:
            values = read_yaml(path)
        except FileNotFoundError as error:
            raise UserError(f"{path} is missing: this folder holds no run.") from error
        refuse_interpolations(values, path)
        return DictConfig(normalise(values))

    @property
    def fingerprint(self) -> str | None:
        """Hash of what decides the result of the last attempt: configuration, data and code; None without one."""
        return self.read_status().get("key")

    @property
    def collection_fingerprint(self) -> str | None:
        """Hash of the data of the last attempt; None without one."""
        return read_json(self.files.provenance).get("collection_fingerprint")

    def require_empty(self, sweeping: bool) -> None:
        """Refuse a folder that holds something already.

        Args:
            sweeping: whether this is a job of a sweep, which replaces its own earlier attempt.

        Raises:
            UserError: the folder is not empty.
        """
        if not self.path.exists() or not any(self.path.iterdir()):
            return
        if sweeping and self.files.status.exists():
            return
        remove = "Remove that run, or name" if self.files.status.exists() else "Name"  # it may be the user's home
        raise UserError(
            f"the output folder {self.path} exists and is not empty.\n{remove} another one: hydra.run.dir=FOLDER"
        )

    def require_finished(self) -> None:
        """Refuse a folder that is no finished run.

        Raises:
            UserError: says what it is instead.
        """
        status = self.read_status()
        if not status:
            if self.files.status.exists():
                raise UserError(f"{self.files.status} is corrupt, so that nothing says whether this run has finished.")
            raise UserError(
                f"{self.path} is not a run: it has no status.json. Give the folder that python -m dcdt.run printed."
            )
        if status.get("status") != "finished":
            reason = f": {status['error']}" if status.get("error") else ""
            raise UserError(f"{self.path} is {status.get('status')}{reason}. Give the folder of a finished run.")

    def finished_metric(self, config: DictConfig) -> float | None:
        """The primary metric of a job that has finished with the same configuration, data and code; else None.

        The configuration need not be checked: what the model does not read of it may be anything.
        """
        status = self.read_status()
        if status.get("status") != "finished":
            return None
        try:
            collection = load_collection(str(config.data.path), config.data.get("own_video", "same_text")).fingerprint
            key, metric = fingerprint(config, collection, code_version()["code"]), str(config.primary_metric)
        except (OmegaConfBaseException, KeyError, TypeError):  # reported where the configuration is checked
            return None
        metrics = read_json(self.files.metrics)
        if status.get("key") != key or metric not in metrics:  # a job whose result is lost runs again
            return None
        return float(metrics[metric] if metrics[metric] is not None else "nan")

    # How the run goes.

    def start(self, config: DictConfig, provenance: dict[str, Any], resuming: bool = False) -> None:
        """Write that the run begins or is resumed, with its configuration and provenance."""
        self._new_files = [] if resuming else [self.files.config, self.files.provenance]
        self._write_config(config)
        before = read_json(self.files.provenance) if resuming else {}
        if before:
            begun = before.get("begun") or {name: before.get(name) for name in ("commit", "dirty", "code", "command")}
            provenance = {**provenance, "begun": begun}
        write_json(self.files.provenance, provenance)
        key = fingerprint(config, provenance["collection_fingerprint"], provenance["code"])
        self._write_status({"status": "running", "started": _now(), "key": key})
        self.started = True

    def finish(self) -> None:
        """Write that every file of the run is complete, and delete the states of its training."""
        self._write_status({"status": "finished", "finished": _now()})
        self.delete_states()

    def fail(self, config: DictConfig | None, error: BaseException) -> None:
        """Write why the run failed, as far as that can be written, and its configuration unless that was refused."""
        with contextlib.suppress(OSError):
            if config is not None:
                self._write_config(config)
            self._write_failure(error)

    def mark_not_applicable(self, config: DictConfig, reason: str) -> None:
        """Write what the collection lacks for this model."""
        self._write_config(config)
        self._write_status({"status": "not_applicable", "error": reason, "finished": _now()})

    def withdraw(self, error: BaseException) -> None:
        """Delete what a run that never began has written; of one that did, write why it ended, where possible."""
        with contextlib.suppress(OSError):
            if self.started:
                self._write_failure(error)
                return
            for path in self._new_files:
                path.unlink(missing_ok=True)
            if self.path.is_dir() and not any(self.path.iterdir()) and not isinstance(error, FolderInUse):
                self.path.rmdir()

    def _write_config(self, config: DictConfig) -> None:
        try:
            text = OmegaConf.to_yaml(config, resolve=True)
        except OmegaConfBaseException:  # the configuration itself is what is wrong
            text = OmegaConf.to_yaml(config)
        write_text(self.files.config, text)

    def _write_status(self, values: dict[str, Any]) -> None:
        before = self.read_status()
        lasting = {key: before[key] for key in ("started", "key") if key in before and "started" not in values}
        write_json(self.files.status, {**lasting, **values})

    def _write_failure(self, error: BaseException) -> None:
        status, reason = "failed", f"{type(error).__name__}: {error}"
        if isinstance(error, Interrupted):
            status, reason = "interrupted", str(error)
        self._write_status({"status": status, "error": reason, "finished": _now()})

    # States of a training in progress, from which it can be resumed.

    def state_file(self, trial: int, trials: int) -> Path:
        """Path of the state of a trial while it is trained."""
        return self.path / "checkpoints" / ("last.ckpt" if trials == 1 else f"last_{trial}.ckpt")

    def states(self) -> list[Path]:
        """Paths of all states that an unfinished training has left."""
        return list(self.path.glob("checkpoints/last*.ckpt"))

    def delete_states(self) -> None:
        """Delete the states of a run that has finished, or that begins anew."""
        for path in self.states():
            path.unlink(missing_ok=True)

    def copy_states(self, other: "RunFolder") -> None:
        """Copy the states to the folder of another process, which resumes from them as well."""
        (other.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        for path in self.states():
            shutil.copy(path, other.path / "checkpoints" / path.name)


def run_folders(sweep: Path) -> Iterator[RunFolder]:
    """The folders in a sweep's folder that have a status, by name."""
    return (RunFolder(path.parent) for path in sorted(sweep.glob("*/status.json")))


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
