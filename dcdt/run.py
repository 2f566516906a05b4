"""Run one job of Hydra, or a sweep: `python -m dcdt.run [group=option ...] [key=value ...] [-m]`."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hydra
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcdt.cli import command, prepare_hydra, prepare_overrides
from dcdt.config import config_folder, parse, relevant_overrides
from dcdt.config.renames import normalise
from dcdt.runs.folder import RunFolder
from dcdt.runs.search import describe_search
from dcdt.runs.sweep import ENDED, STARTED, check_single_run, mark_interrupted, summarise, without_unread
from dcdt.training import distributed, experiment
from dcdt.training.devices import claim_gpus
from dcdt.training.loggers import choose_logger
from dcdt.training.loggers.base import RunLogger
from dcdt.training.rank import adopt_srun, global_rank
from dcdt.training.resume import resumed_config, should_resume
from dcdt.utils.errors import MissingField, NotApplicable, UserError, format_error, is_user_error
from dcdt.utils.redaction import redact
from dcdt.utils.shell import override, shell_command
from dcdt.utils.signals import Interrupted, interruptible
from dcdt.utils.text import printable

log = logging.getLogger("dcdt")
METRICS: dict[Path, float] = {}  # primary metric of each job of the sweep that this process has run, NaN without one


@dataclass
class Job:
    """One job of Hydra, and how it ended.

    Attributes:
        config: as composed; of a resumed run, as stored.
        folder: that this process writes.
        overrides: of the command line.
        sweeping: whether it is a job of a sweep.
        folder_named: whether the user named the folder (`hydra.run.dir=` or `resume=`).
        launcher: of Hydra.
        resume: the run to resume, or None.
        logger: that receives the run.
        status: finished, failed, interrupted or not_applicable.
        reason: why it failed.
        metric: the primary metric.
        accepted: whether the configuration has been checked; one that is refused is not stored.
    """

    config: DictConfig
    folder: RunFolder
    overrides: list[str]
    sweeping: bool
    folder_named: bool
    launcher: str | None
    resume: str | None
    logger: RunLogger = field(default_factory=RunLogger)
    status: str = "failed"
    reason: str = "interrupted"
    metric: float = float("nan")
    accepted: bool = False

    @classmethod
    def from_hydra(cls, config: DictConfig, hydra_config: HydraConf | DictConfig, folder: str) -> "Job":
        """The job that Hydra has composed."""
        resume = config.get("resume")
        return cls(
            config=config,
            folder=RunFolder(Path(folder)),
            overrides=list(hydra_config.overrides.task),
            sweeping=hydra_config.mode == RunMode.MULTIRUN,
            folder_named=resume is not None
            or any(text.startswith("hydra.run.dir=") for text in hydra_config.overrides.hydra),
            launcher=hydra_config.runtime.choices.get("hydra/launcher"),
            resume=resume,
        )

    @property
    def choices(self) -> list[str] | None:
        """The overrides of a job of a sweep that its model reads; None for a single run."""
        if not self.sweeping:
            return None
        return relevant_overrides(self.overrides, self.config.get("model"), self.config.get("trials"))


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")
def run_job(config: DictConfig) -> float:
    """Run one job of Hydra; returns its primary metric, so that sweepers can search."""
    adopt_srun()
    os.chdir(HydraConfig.get().runtime.cwd)  # relative paths start where the user stands, whatever hydra.job.chdir says
    job = Job.from_hydra(config, HydraConfig.get(), HydraConfig.get().runtime.output_dir)
    path = job.folder.path
    if not job.sweeping or path not in METRICS:  # else the same job again: its model does not read what differs
        try:
            with interruptible(), record_end(job):  # in a worker of a launcher, too
                job.metric = train_and_test(job)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201 - the command's own message
            raise SystemExit(2) from None
        METRICS[path] = job.metric
    return METRICS[path]


def train(*overrides: str) -> Path:
    """Run one job from the overrides of the command; return its folder, or raise UserError or KeyboardInterrupt."""
    before, sys.argv = sys.argv, ["dcdt.run", *overrides]  # which provenance and error messages quote
    try:
        prepare_overrides()
        with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = hydra.compose("config", overrides=sys.argv[1:], return_hydra_config=True)
        check_single_run(config)
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        job = Job.from_hydra(own, config.hydra, config.hydra.run.dir)
        with interruptible(), record_end(job):
            train_and_test(job)
        return job.folder.path
    except (HydraException, OmegaConfBaseException, OSError) as error:
        raise UserError(format_error(error)) from error
    except Interrupted as error:
        if error.number != signal.SIGINT:
            raise
        raise KeyboardInterrupt(f"{error}; {error.first_advice}") from error
    finally:
        sys.argv = before


def train_and_test(job: Job) -> float:
    """Do the work of a job, unless it was done before; returns the primary metric.

    Raises:
        UserError: a mistake that the user can correct.
        NotApplicable: the collection lacks what the model needs.
    """
    run_folder, job.config = job.folder, normalise(job.config)
    if job.resume is not None:
        job.config = resumed_config(run_folder, job.resume, job.overrides, job.sweeping)
    if job.sweeping:
        job.config = without_unread(job.config)
    job.folder = distributed.process_folder(run_folder, job.folder_named, job.sweeping)
    job.folder.lock(wait=job.sweeping)
    if job.sweeping or job.resume is not None:
        done = run_folder.finished_metric(job.config)
        if done is not None:
            log.warning("done already: %s", run_folder.path.name)
            return done
    settings = parse(job.config)
    job.accepted = True
    if not global_rank():
        job.logger = choose_logger(job.config, run_folder, job.choices)
    settings.callbacks.progress &= not job.sweeping  # a sweep has one line for all its jobs
    if job.launcher == "processes":
        claim_gpus(settings.trainer)
    resuming = should_resume(job.folder, job.config, settings, job.resume is not None, job.sweeping)
    if distributed.needs_processes(settings):
        job.logger = RunLogger()  # the first of the processes has the logger
        metrics = distributed.run_processes(settings, job.config, job.folder, job.choices, resuming)
    else:
        metrics = experiment.run(settings, job.config, job.folder, job.logger, resuming)
    return metrics[settings.primary_metric]


@contextmanager
def record_end(job: Job) -> Iterator[None]:
    """Record how a job ends in its folder and logger; a failed job of a sweep does not end the sweep.

    Raises:
        UserError: a single run failed by a mistake that the user can correct.
    """
    try:
        yield
        job.status = "finished"
    except Interrupted as error:
        job.status, job.reason = "interrupted", str(error)
        job.folder.withdraw(error)
        go_on = f"continue it: {shell_command('run', override('resume', job.folder.path))}"
        error.advice = f"the run is kept; {go_on}" if job.folder.started else "nothing is written yet."
        raise
    except Exception as error:
        if job.sweeping and isinstance(error, NotApplicable | MissingField):
            job.status, job.reason = "not_applicable", str(error).splitlines()[0]
            job.folder.mark_not_applicable(job.config, job.reason)
            log.warning("not applicable: %s", job.reason)
            return
        is_user_mistake = isinstance(error, NotApplicable) or is_user_error(error)
        job.reason = format_error(error) if is_user_mistake else f"{type(error).__name__}: {error}"
        if not job.sweeping and is_user_mistake:
            job.folder.withdraw(error)
            if isinstance(error, UserError):
                raise
            raise UserError(job.reason) from error
        job.folder.fail(job.config if job.accepted else None, error)
        if not job.sweeping:
            raise
        details = job.reason if is_user_mistake else traceback.format_exc()
        log.error("failed: %s: %s", job.folder.path.name, printable(redact(details)))
    finally:
        job.logger.close(job.status, job.reason)
        job.folder.unlock()


@command
def main() -> None:
    """The command."""
    prepare_hydra()
    for record in (STARTED, ENDED, METRICS):
        record.clear()
    code = 0
    try:
        run_job()  # an interruption ends the command here
    except SystemExit as end:
        if isinstance(end, Interrupted) and STARTED:
            mark_interrupted(STARTED[0], end)
        if end.code != 1 or not STARTED or ENDED or not isinstance(end.__context__, Exception):
            raise
        code = 1  # Hydra's code where the launcher failed: a worker was killed, say
        summarise(STARTED[0])
    for sweep in ENDED:
        if sweep.report:
            from dcdt.report import report_sweep

            report_sweep(sweep.folder, sweep.on_wandb)
        if sweep.is_search:
            print(printable("\n".join(describe_search(sweep.folder))))  # noqa: T201 - the command's own message
        code = code or int(bool(sweep.failed))
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
