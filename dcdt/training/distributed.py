"""Run one job in several processes, one a device.

Lightning's own launcher runs the command again, which under `-m` would be the whole sweep. Here the process of the job
does not train: it starts the others with the checked configuration, waits, and reads the metrics that the first of
them has written. Processes that torchrun or srun started (several machines) train as they are.
"""

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dcdt.config import Settings, parse, register_resolvers
from dcdt.runs.folder import RunFolder
from dcdt.training.devices import device_count, world_size
from dcdt.training.loggers import choose_logger
from dcdt.training.loggers.base import RunLogger
from dcdt.training.rank import global_rank
from dcdt.utils.errors import Diverged, MissingField, NotApplicable, UserError
from dcdt.utils.files import read_json, write_json
from dcdt.utils.redaction import redact_output
from dcdt.utils.signals import DEFAULTS, Interrupted, interruptible

# Errors that a process reports to its parent by name.
ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (UserError, MissingField, Diverged, NotApplicable)
}
TEMPORARY: list[Path] = []  # folders of this process, which hold copies of the states that it resumes from
EXIT_SECONDS = 20  # that the other processes have to end by themselves when one has failed


def needs_processes(settings: Settings) -> bool:
    """Whether a job has to start processes of its own."""
    return settings.trainer.strategy == "ddp" and global_rank() is None and world_size(settings.trainer) > 1


def process_folder(folder: RunFolder, named: bool, sweeping: bool) -> RunFolder:
    """The folder that this process writes: the run's for the first process, a temporary one for the others.

    Args:
        folder: of the run.
        named: whether the user named it, so that it is the same for all processes.
        sweeping: whether this is a job of a sweep.

    Raises:
        UserError: a sweep was started several times, or processes that would not agree on a folder.
    """
    if global_rank() is None:
        return folder
    if sweeping or not named:
        raise UserError(
            "torchrun and srun start the processes of one run: leave -m out and name their folder, "
            "hydra.run.dir=FOLDER."
        )
    if global_rank() == 0:
        return folder
    temporary = RunFolder(Path(tempfile.mkdtemp(prefix="dcdt_")))
    TEMPORARY.append(temporary.path)
    atexit.register(_remove_temporary)
    folder.copy_states(temporary)
    return temporary


def run_processes(
    settings: Settings, config: DictConfig, folder: RunFolder, overrides: Sequence[str] | None, resuming: bool
) -> dict[str, float]:
    """Run one job in as many processes as it has devices, on this machine.

    Args:
        settings: the checked configuration.
        config: the same as composed.
        folder: of the run.
        overrides: the choices of this job of a sweep; None for a single run.
        resuming: whether it resumes from the state in its folder.

    Returns:
        The metrics of the run.

    Raises:
        UserError: a mistake that the user can correct.
        NotApplicable: the collection lacks what the model needs.
        RuntimeError: a process failed otherwise; its traceback is on stderr.
    """
    if settings.trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes is {settings.trainer.num_nodes}: start the processes of several machines with srun, or "
            "with torchrun on each of them (docs/scaling.md)."
        )
    n = device_count(settings.trainer)
    with tempfile.TemporaryDirectory() as errors:
        spec = {
            "config": OmegaConf.to_container(config, resolve=True),
            "folder": str(folder.path),
            "overrides": None if overrides is None else list(overrides),
            "resuming": resuming,
            "command": sys.argv[1:],
            "errors": errors,
        }
        try:
            failed = start([sys.executable, "-m", "dcdt.training.distributed"], n, json.dumps(spec) + "\n")
        finally:
            folder.started = folder.files.status.is_file()  # written by one of the processes
        if failed is None:
            return read_json(folder.files.metrics)
        error = read_json(Path(errors) / f"{failed}.json")
    text = str(error.get("text") or "it was killed, or ended without a message")
    if error.get("kind") in ERRORS:
        raise ERRORS[error["kind"]](text)
    raise RuntimeError(f"process {failed} of {n} failed: {text}")


def start(command: Sequence[str], n: int, text: str = "") -> int | None:
    """Start n processes that find each other, and wait for them; where one fails, all are ended.

    Args:
        command: of each.
        n: how many.
        text: for the standard input of each, which stays open as long as this process lives.

    Returns:
        The rank of the first process that failed; None where none did.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **os.environ,
        "WORLD_SIZE": str(n),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "NODE_RANK": "0",
    }
    running: dict[int, subprocess.Popen[str]] = {}
    try:
        for rank in range(n):
            own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            running[rank] = subprocess.Popen(  # nosec B603 # this Python
                command, env=own, stdin=subprocess.PIPE, text=True
            )
        for process in running.values():
            assert process.stdin is not None
            process.stdin.write(text)
            process.stdin.flush()
        return _wait(running)
    except Interrupted:
        for process in running.values():
            process.terminate()  # so that it closes its logger
        _wait(running, time.monotonic() + EXIT_SECONDS)
        raise
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def _wait(running: dict[int, "subprocess.Popen[str]"], deadline: float = float("inf")) -> int | None:
    """The rank of the first process that failed, once the others have had time to end; None where none did."""
    failed = None
    while any(process.poll() is None for process in running.values()) and time.monotonic() < deadline:
        errors = [rank for rank, process in running.items() if process.poll()]
        if errors and failed is None:
            failed, deadline = errors[0], min(deadline, time.monotonic() + EXIT_SECONDS)
        time.sleep(0.05)
    return failed if failed is not None else next((rank for rank, process in running.items() if process.poll()), None)


@interruptible()
def main() -> None:
    """Run one of the processes: read the job from standard input, and write its error to a file."""
    spec: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    redact_output()
    register_resolvers()
    from dcdt.training.experiment import run

    rank, config, sweeping = global_rank(), DictConfig(spec["config"]), spec["overrides"] is not None
    assert rank is not None
    sys.argv[1:] = spec["command"]  # of the job, which provenance.json names
    folder = process_folder(RunFolder(Path(spec["folder"])), named=True, sweeping=False)
    logger, status, reason = RunLogger(), "failed", "interrupted"
    try:
        settings = parse(config)
        if rank == 0:
            logger = choose_logger(config, folder, spec["overrides"])
        settings.callbacks.progress &= rank == 0 and not sweeping  # a sweep shows one line only
        run(settings, config, folder, logger, spec["resuming"])
        status = "finished"
    except Interrupted as error:
        for number in DEFAULTS:  # while the logger is closed
            signal.signal(number, signal.SIG_IGN)
        status, reason = "interrupted", str(error)
        raise
    except Exception as error:
        if isinstance(error, NotApplicable) or (sweeping and isinstance(error, MissingField)):
            status = "not_applicable"
        kind, text = type(error).__name__, str(error)
        reason = text if kind in ERRORS else f"{kind}: {text}"
        write_json(Path(spec["errors"]) / f"{rank}.json", {"kind": kind, "text": reason})
        if kind not in ERRORS:
            traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        logger.close(status, reason)


def _end_with_parent() -> None:
    """End this process when its parent ends, for whatever reason."""
    sys.stdin.read()
    _remove_temporary()
    os._exit(1)


def _remove_temporary() -> None:
    for path in TEMPORARY:
        shutil.rmtree(path, ignore_errors=True)


if __name__ == "__main__":
    main()
