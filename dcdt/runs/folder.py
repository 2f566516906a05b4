"""The status of a run on disk: running, finished, failed or not applicable, with its configuration and cost."""

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcdt.config.renames import normalise
from dcdt.data.beir import load_collection
from dcdt.runs.provenance import code_version, fingerprint
from dcdt.utils.errors import UserError
from dcdt.utils.files import read_json, write_json, write_text
from dcdt.utils.yaml import read_yaml

log = logging.getLogger("dcdt")


class Taken(UserError):
    """Another process is at work in this folder."""


class Status:
    """Writes status.json, config.yaml, provenance.json and cost.json of a run's folder.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "status.json"
        self.begun = False
        self._lock: int | None = None
        self._written: list[Path] = []  # before there is a status.json, without which a folder is no run

    def claim(self, wait: bool) -> None:
        """Keep other processes out of the folder until `release`, or until this process ends in whatever way.

        The lock is on the folder itself, so that nothing of it is left behind.

        Args:
            wait: for another process that is at it, as a job of a sweep does, which then finds its work done.

        Raises:
            UserError: another process is at it.
        """
        self._lock = lock(self.folder, wait)

    def release(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def key(self) -> str | None:
        """What decides the result of the attempt that is there: configuration, data and code; None without one."""
        return read_json(self.path).get("key")

    @property
    def collection(self) -> str | None:
        """The fingerprint of the data of the attempt that is there."""
        return read_json(self.folder / "provenance.json").get("collection_fingerprint")

    def refuse_existing(self, sweeping: bool) -> None:
        """A folder that already holds something belongs to another run.

        Raises:
            UserError: the folder is not empty (a job of a sweep takes the place of its own earlier attempt).
        """
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return
        if sweeping and self.path.exists():
            return
        raise UserError(
            f"the output folder {self.folder} exists and is not empty.\n"
            "Remove it, or name another one: hydra.run.dir=FOLDER"
        )

    def finished_metric(self, config: DictConfig) -> float | None:
        """The primary metric of a job that is done: same configuration, data and code; else None.

        The configuration need not be checked: what the model does not read of it may be anything.
        """
        known = read_json(self.path)
        if known.get("status") != "finished":
            return None
        try:
            collection = load_collection(str(config.data.path)).fingerprint
            key, metric = fingerprint(config, collection, code_version()["code"]), str(config.primary_metric)
        except (OmegaConfBaseException, KeyError, TypeError):  # said where the configuration is checked
            return None
        found = read_json(self.folder / "metrics.json")
        if known.get("key") != key or metric not in found:  # where no result is left of it, it is done again
            return None
        return float(found[metric] if found[metric] is not None else "nan")

    def start(self, config: DictConfig, provenance: dict[str, Any], resuming: bool = False) -> None:
        """Note that the run has begun (or goes on), with what and from what."""
        self._written = [] if resuming else [self.folder / "config.yaml", self.folder / "provenance.json"]
        self._write_config(config)
        before = read_json(self.folder / "provenance.json") if resuming else {}
        if before:
            begun = before.get("begun") or {name: before.get(name) for name in ("commit", "dirty", "code", "command")}
            provenance = {**provenance, "begun": begun}
        write_json(self.folder / "provenance.json", provenance)
        key = fingerprint(config, provenance["collection_fingerprint"], provenance["code"])
        self._write({"status": "running", "started": _now(), "key": key})
        self.begun = True

    def finish(self) -> None:
        """Note that every file of the run is there."""
        self._write({"status": "finished", "finished": _now()})

    def fail(self, config: DictConfig, error: BaseException) -> None:
        """Note why the run broke, as far as that can be written; its message only, no traceback."""
        with contextlib.suppress(OSError):
            self._write_config(config)
            self._write({"status": "failed", "error": f"{type(error).__name__}: {error}", "finished": _now()})

    def not_applicable(self, config: DictConfig, reason: str) -> None:
        """Note what the collection lacks for this model."""
        self._write_config(config)
        self._write({"status": "not_applicable", "error": reason, "finished": _now()})

    def withdraw(self, error: BaseException) -> None:
        """Leave nothing behind of a run that never began; of one that did, why it stopped, if that can be written."""
        with contextlib.suppress(OSError):
            if self.begun:
                self._write({"status": "failed", "error": f"{type(error).__name__}: {error}", "finished": _now()})
                return
            for path in self._written:
                path.unlink(missing_ok=True)
            if self.folder.is_dir() and not any(self.folder.iterdir()) and not isinstance(error, Taken):
                self.folder.rmdir()

    def cost(self, facts: dict[str, float]) -> None:
        """Write cost.json, which is never the same twice and so stands apart from the metrics."""
        write_json(self.folder / "cost.json", facts)

    def _write_config(self, config: DictConfig) -> None:
        try:
            text = OmegaConf.to_yaml(config, resolve=True)
        except OmegaConfBaseException:  # which is what is wrong with it
            text = OmegaConf.to_yaml(config)
        write_text(self.folder / "config.yaml", text)

    def _write(self, facts: dict[str, Any]) -> None:
        known = read_json(self.path)
        kept = {key: known[key] for key in ("started", "key") if key in known and "started" not in facts}
        write_json(self.path, {**kept, **facts})


def lock(folder: Path, wait: bool) -> int | None:
    """Lock a folder that is there; the file descriptor to close, or None where the system knows no locks.

    Raises:
        Taken: another process has it, and is not waited for.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # no folder, no lock; what follows says so
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            os.close(handle)
            raise Taken(
                f"another process is writing the run {folder}.\n"
                "Wait until it has ended, or name another folder: hydra.run.dir=FOLDER"
            ) from None
        log.warning("another process is at %s; waiting for it", folder.name)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        pass
    return handle


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def read_config(path: Path) -> DictConfig:
    """The configuration that a run has left, which holds plain values.

    One that names something to look up, such as a variable of the environment, was not written by a run; it is refused
    before anything is looked up.

    Raises:
        UserError: it is missing, not YAML, or would be resolved.
    """
    try:
        found = read_yaml(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: this folder holds no run.") from error
    return DictConfig(normalise(refuse_interpolations(found, path)))


def refuse_interpolations(value: Any, path: Path) -> Any:  # noqa: ANN401 - plain values
    """The value, where no text in it would be resolved as an interpolation.

    Raises:
        UserError: one would.
    """
    if isinstance(value, str) and "${" in value:
        raise UserError(f"{path} holds {value[:80]!r}, which would be looked up here; a run's files hold plain values.")
    if isinstance(value, dict | list):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            refuse_interpolations(part, path)
    return value


def require_finished(run: Path) -> None:
    """Refuse a folder that is no finished run.

    Raises:
        UserError: says what it is instead.
    """
    status = read_json(run / "status.json")
    if not status:
        raise UserError(f"{run} is not a run: it has no status.json. Give the folder that python -m dcdt.run printed.")
    if status.get("status") != "finished":
        reason = f": {status['error']}" if status.get("error") else ""
        raise UserError(f"{run} is {status.get('status')}{reason}. Give the folder of a finished run.")
