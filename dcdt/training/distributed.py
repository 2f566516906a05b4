"""One job on several devices: a process each, started for this job alone, so that sweeps and launchers need not know.

Lightning's own way of starting processes runs the command again, which under `-m` would be the whole sweep. Here the
process of the job stays out of training: it starts the others with the checked configuration, waits, and reads what
the first of them has written. Processes that torchrun or srun started (several machines) are taken as they are.
"""

import atexit
import json
import os
import shutil
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
from dcdt.runs.folder import Status
from dcdt.training import resume
from dcdt.training.devices import device_count, world_size
from dcdt.training.loggers import choose_logger
from dcdt.training.loggers.base import RunLogger
from dcdt.training.rank import rank
from dcdt.utils.errors import Diverged, MissingField, NotApplicable, UserError
from dcdt.utils.files import read_json, write_json
from dcdt.utils.redaction import redact_output

KINDS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (UserError, MissingField, Diverged, NotApplicable)}
GRACE = 20  # seconds that the others have to end by themselves when one has failed


def needed(settings: Settings) -> bool:
    """Whether a job asks for processes that are not there yet."""
    return settings.trainer.strategy == "ddp" and rank() is None and world_size(settings.trainer) > 1


def own_folder(folder: Path, named: bool, sweeping: bool) -> Path:
    """Where this process writes: the first one to the run's folder, the others to one that nobody keeps.

    Args:
        folder: of the run.
        named: whether it is the same for all processes, since the user named it.
        sweeping: whether this is a job of a sweep.

    Raises:
        UserError: a sweep was started several times, or processes that would not agree on a folder.
    """
    if rank() is None:
        return folder
    if sweeping or not named:
        raise UserError(
            "torchrun and srun start the processes of one run: leave -m out and name their folder, "
            "hydra.run.dir=FOLDER."
        )
    if rank() == 0:
        return folder
    place = Path(tempfile.mkdtemp(prefix="dcdt_"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    resume.copy_states(folder, place)
    return place


def run_processes(
    settings: Settings, config: DictConfig, status: Status, overrides: Sequence[str] | None, resuming: bool
) -> dict[str, float]:
    """Run one job in as many processes as it asks for, on this machine.

    Args:
        settings: the checked configuration.
        config: the same as composed.
        status: of the run's folder.
        overrides: the choices of this job of a sweep; None for a single run.
        resuming: whether it goes on from the state in its folder.

    Returns:
        The metrics of the run.

    Raises:
        UserError: something the user can mend.
        NotApplicable: the collection lacks what the model needs.
        RuntimeError: a process failed otherwise; its traceback is on stderr.
    """
    if settings.trainer.num_nodes > 1:
        raise UserError(
            f"trainer.num_nodes is {settings.trainer.num_nodes}: start the processes of several machines with srun, or "
            "with torchrun on each of them (docs/scaling.md)."
        )
    n = device_count(settings.trainer)
    with tempfile.TemporaryDirectory() as place:
        spec = {
            "config": OmegaConf.to_container(config, resolve=True),
            "folder": str(status.folder),
            "overrides": None if overrides is None else list(overrides),
            "resuming": resuming,
            "command": sys.argv[1:],
            "errors": place,
        }
        failed = start([sys.executable, "-m", "dcdt.training.distributed"], n, json.dumps(spec) + "\n")
        status.begun = status.path.is_file()  # by one of the processes
        if failed is None:
            return read_json(status.folder / "metrics.json")
        told = read_json(Path(place) / f"{failed}.json")
    text = str(told.get("text") or "it was killed, or ended without a word")
    if told.get("kind") in KINDS:
        raise KINDS[told["kind"]](text)
    raise RuntimeError(f"process {failed} of {n} failed: {text}")


def start(command: Sequence[str], n: int, text: str = "") -> int | None:
    """Start n processes that find each other, and wait for them; the first that fails ends all.

    Args:
        command: of each.
        n: how many.
        text: for the standard input of each, which stays open as long as this process lives.

    Returns:
        None where all ended well, else the number of the first that did not.
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
        for at in range(n):
            own = {**common, "RANK": str(at), "LOCAL_RANK": str(at)}
            running[at] = subprocess.Popen(  # nosec B603 # this command again
                command, env=own, stdin=subprocess.PIPE, text=True
            )
        for process in running.values():
            assert process.stdin is not None
            process.stdin.write(text)
            process.stdin.flush()
        return _wait(running)
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def _wait(running: dict[int, "subprocess.Popen[str]"]) -> int | None:
    """The first process that failed, once the others have had time to end; None where none did."""
    failed, deadline = None, float("inf")
    while any(process.poll() is None for process in running.values()) and time.monotonic() < deadline:
        bad = [at for at, process in running.items() if process.poll()]
        if bad and failed is None:
            failed, deadline = bad[0], time.monotonic() + GRACE
        time.sleep(0.05)
    return failed if failed is not None else next((at for at, process in running.items() if process.poll()), None)


def main() -> None:
    """One of the processes: read what to do, do it, and say in a file what went wrong."""
    spec: dict[str, Any] = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    redact_output()
    register_resolvers()
    from dcdt.training.experiment import run

    number, config, resuming = rank(), DictConfig(spec["config"]), spec["resuming"]
    assert number is not None
    sys.argv[1:] = spec["command"]  # of the job, which provenance.json names
    folder = own_folder(Path(spec["folder"]), named=True, sweeping=False)
    logger, ending, reason = RunLogger(), "failed", "interrupted"
    try:
        settings = parse(config)
        if number == 0:
            logger = choose_logger(config, folder, spec["overrides"])
        settings.callbacks.progress &= number == 0 and spec["overrides"] is None  # a sweep shows one line only
        run(settings, config, Status(folder), logger, resuming)
        ending = "finished"
    except Exception as error:
        lacking = (NotApplicable,) if spec["overrides"] is None else (NotApplicable, MissingField)
        ending = "not_applicable" if isinstance(error, lacking) else "failed"
        kind, text = type(error).__name__, str(error)
        reason = text if kind in KINDS else f"{kind}: {text}"
        write_json(
            Path(spec["errors"]) / f"{number}.json",
            {"kind": kind, "text": reason},
        )
        if kind not in KINDS:
            traceback.print_exc()
        raise SystemExit(1) from None
    finally:
        logger.close(ending, reason)


def _end_with_parent() -> None:
    """End where the process that started this one is gone, whatever became of it."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
