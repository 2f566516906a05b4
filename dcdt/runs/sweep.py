"""Sweeps: the names of their jobs, their progress, and a summary at the end."""

import contextlib
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from dcdt.config import depends_on, job_name, register_resolvers
from dcdt.config.renames import rename_overrides
from dcdt.runs.folder import FolderInUse, run_folders
from dcdt.runs.sweep_progress import SweepProgress
from dcdt.utils.errors import UserError, exit_on_user_error
from dcdt.utils.files import read_json, redact_file, write_json
from dcdt.utils.shell import shell_command
from dcdt.utils.signals import Interrupted
from dcdt.utils.text import printable

register_resolvers()  # a worker of a launcher unpickles the callback below before it reads the configuration

log = logging.getLogger("dcdt")
OVERRIDES_FILE = "sweep.json"  # of a sweep's folder
Compose = Callable[[list[str]], DictConfig]


@dataclass(frozen=True)
class Sweep:
    """A sweep that has ended.

    Attributes:
        folder: of its jobs.
        finished, failed: names of the jobs' folders.
        report: whether the command reports it now (`sweep.report`).
        on_wandb: whether its runs are on W&B.
        is_search: whether a sweeper chose its jobs by the results of others.
    """

    folder: Path
    finished: list[str]
    failed: list[str]
    report: bool
    on_wandb: bool
    is_search: bool = False


STARTED: list[DictConfig] = []  # the configuration of the last sweep of this process
ENDED: list[Sweep] = []  # the last sweep of this process, which Hydra does not return to the command


class SweepSummary(Callback):
    """Shows the progress of a sweep and counts its jobs by status; Hydra calls it in the parent process."""

    progress: SweepProgress | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Launchers send the callback to their workers; the progress stays in the parent."""
        return {}

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401 - Hydra's signature
        """Refuse what `check_single_run` refuses; Hydra would show a traceback."""
        with exit_on_user_error():
            check_single_run(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401 - Hydra's signature
        """Write sweep.json, from which a job knows the overrides that all jobs share, and start the progress."""
        STARTED[:] = [config]
        folder, sweeper = Path(config.hydra.sweep.dir), config.hydra.sweeper
        if sweeper.get("params"):  # of an experiment, whose keys may have the names of before
            with flag_override(sweeper, ["struct", "readonly"], False):
                sweeper.params = {key: sweeper.params[old] for old in sweeper.params for key in rename_overrides([old])}
        params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        overrides = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
        common = [one for one in overrides if not one.is_sweep_override()]
        texts = [f"{one.get_key_element()}={one.get_value_element_as_str()}" for one in common]  # as a job gets them
        with exit_on_user_error():
            write_json(folder / OVERRIDES_FILE, {"common": texts, "asked": [str(one.input_line) for one in overrides]})
        jobs = _jobs(overrides, lambda job: GlobalHydra.instance().config_loader().load_sweep_config(config, job))
        names = list(dict.fromkeys(jobs)) if jobs is not None else None
        if jobs and names and len(names) < len(jobs):
            log.warning("%d of %d jobs are the same as another and run once", len(jobs) - len(names), len(jobs))
        total = len(names) if names is not None else sweeper.get("n_trials")
        self.progress = SweepProgress(folder, names, total, Console(stderr=True))

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401 - Hydra's signature
        """Redact what Hydra itself wrote of the sweep, before a job starts that may be refused for it."""
        redact_file(Path(config.hydra.sweep.dir) / "multirun.yaml")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401 - Hydra's signature
        """Print how the jobs ended."""
        if self.progress is not None:
            self.progress.stop()
        summarise(config)


def check_single_run(config: DictConfig) -> None:
    """Make the folder of a run; raise UserError for a sweep without -m, OSError where the folder cannot be written."""
    try:
        folder = Path(config.hydra.run.dir)
    except OmegaConfBaseException:  # reported where the configuration is checked
        return
    if folder == Path():  # of a command that has no folder of its own
        return
    if config.hydra.sweeper.get("params"):
        given = [text for text in sys.argv[1:] if not text.startswith("hydra.run.dir=")]
        command = shell_command("run", "-m", *given)
        name = config.hydra.runtime.choices.get("experiment")
        raise UserError(f"experiment={name} is a sweep of several runs. Give -m:\n{command}")
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()


def summarise(config: DictConfig) -> None:
    """Print how the jobs ended, by their status.json, since a job may have run in another process."""
    folder = Path(config.hydra.sweep.dir)
    recorded = {job.path.name: job.read_status() for job in run_folders(folder)}
    statuses = {name: str(values.get("status", "unreadable")) for name, values in recorded.items()}
    finished = [name for name, status in statuses.items() if status == "finished"]
    failed = [name for name, status in statuses.items() if status not in ("finished", "not_applicable")]
    counts = Counter(statuses.values())
    log.warning("sweep: %s", ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
    for name in failed:
        log.warning("  %s: %s", name, printable(str(recorded[name].get("error", "did not finish"))))
    report = bool(OmegaConf.select(config, "sweep.report", default=True))
    if not finished:
        log.warning("no report: no job has finished")
    elif not report:
        log.warning("tables: %s", shell_command("report", folder))
    on_wandb = OmegaConf.select(config, "logger.name") == "wandb"
    choices = OmegaConf.select(config, "hydra.runtime.choices") or {}
    is_search = choices.get("hydra/sweeper", "basic") != "basic"
    ENDED[:] = [Sweep(folder, finished, failed, report and bool(finished), on_wandb, is_search)]


def mark_interrupted(config: DictConfig, error: Interrupted) -> None:
    """Mark the jobs that workers of this sweep were running, and say how it continues."""
    error.advice = "finished jobs are kept, and the same command continues the sweep."
    for job in run_folders(Path(config.hydra.sweep.dir)):
        if job.read_status().get("status") == "running":
            with contextlib.suppress(FolderInUse):  # by a worker that has not ended
                job.lock(wait=False)
                job.started = True
                job.withdraw(error)
                job.unlock()


def own_choices(overrides: Sequence[str], folder: Path) -> list[str]:
    """The choices of a job without those that the sweep in `folder` gives all its jobs."""
    common = read_json(folder / OVERRIDES_FILE).get("common", [])
    return [text for text in overrides if text not in common]


def _jobs(overrides: list[Override], compose: Compose | None = None) -> list[str] | None:
    """Folders of the jobs of a sweep over all combinations; None where a sweeper chooses as it goes.

    Args:
        overrides: of the command line and of the experiment.
        compose: makes the configuration of a job, from which its model is known.
    """
    sweeps = [override for override in overrides if override.is_sweep_override()]
    listed = (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP, ValueType.RANGE_SWEEP)
    if not all(override.value_type in listed for override in sweeps):
        return None
    [jobs] = BasicSweeper.split_arguments(overrides, None)
    composed: dict[str, DictConfig | None] = {}
    names = []
    for job in jobs:
        key = str([text for text in job if text.lstrip("+~").startswith(("model", "experiment", "trials"))])
        if key not in composed:
            depends = job_name(job, {"name": "zero_shot"}) != job_name(job)  # else every model reads all choices
            composed[key] = _composed(job, compose) if depends else None
        config = composed[key]
        names.append(job_name(job, config.get("model"), config.get("trials")) if config else job_name(job))
    return names


def _composed(job: list[str], compose: Compose | None) -> DictConfig | None:
    """The configuration of a job; None where Hydra will refuse it, or nothing can compose it."""
    try:
        return compose(job) if compose is not None else None
    except (HydraException, OmegaConfBaseException):
        return None


def without_unread(config: DictConfig) -> DictConfig:
    """The configuration of a job with all training queries, where its model does not read their number.

    The validation queries change with them, so a job that several sizes share must not be of whichever came first.
    """
    split, keys = config.get("split"), depends_on(config.get("model"), config.get("trials"))
    if "train_queries" in keys or not isinstance(split, DictConfig) or "train_queries" not in split:
        return config
    config = config.copy()
    config.split.train_queries = None
    return config
