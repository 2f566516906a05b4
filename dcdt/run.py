"""Train and test one configuration: `python -m dcdt.run [group=option ...] [key=value ...] [-m]`."""

import logging
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dcdt.cli import prepare_hydra
from dcdt.config import config_folder, parse, read_overrides
from dcdt.config.renames import normalise
from dcdt.runs.folder import Status
from dcdt.runs.sweep import ENDED, STARTED, summarise, without_unread
from dcdt.training import distributed, rank, resume
from dcdt.training.devices import claim_gpus
from dcdt.training.experiment import run
from dcdt.training.loggers import choose_logger
from dcdt.training.loggers.base import RunLogger
from dcdt.utils.errors import MissingField, NotApplicable, format_error, is_user_error
from dcdt.utils.redaction import redact

log = logging.getLogger("dcdt")
JOBS: dict[Path, float] = {}  # primary metric of each job of the sweep that this process has run, NaN where it has none


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")
def job(config: DictConfig) -> float:
    """One job of Hydra; returns the primary metric, so that sweepers can search."""
    rank.adopt_srun()
    place = HydraConfig.get()
    folder, sweeping = Path(place.runtime.output_dir), place.mode == RunMode.MULTIRUN
    choices, resumed = None, config.get("resume") is not None
    named = resumed or any(text.startswith("hydra.run.dir=") for text in place.overrides.hydra)
    if sweeping and folder in JOBS:  # the same job again: its model does not read what differs
        return JOBS[folder]
    status, logger, ending, reason = Status(folder), RunLogger(), "failed", "interrupted"
    value = float("nan")
    lacking = (NotApplicable, MissingField) if sweeping else ()
    try:
        config = resume.stored_config(normalise(config), place.overrides.task, folder, sweeping)
        if sweeping:
            config = without_unread(config)
            choices = read_overrides(place.overrides.task, config.get("model"), config.get("trials"))
        status = Status(distributed.own_folder(folder, named, sweeping))
        status.claim(wait=sweeping)
        logger = choose_logger(config, folder, choices) if not rank.rank() else logger
        if (sweeping or resumed) and (done := Status(folder).finished_metric(config)) is not None:
            log.warning("done already: %s", folder.name)
            ending, value = "done already", done
            return value
        settings = parse(config)
        settings.callbacks.progress &= not sweeping  # one line for the whole of it
        if place.runtime.choices.get("hydra/launcher") == "processes":
            claim_gpus(settings.trainer)
        resuming = resumed if rank.rank() else resume.goes_on(status, config, settings, resumed, sweeping)
        if distributed.needed(settings):
            logger = RunLogger()  # one of the processes has it
            metrics = distributed.run_processes(settings, config, status, choices, resuming)
        else:
            metrics = run(settings, config, status, logger, resuming)
        ending, value = "finished", metrics[settings.primary_metric]
        return value
    except lacking as error:
        ending, reason = "not_applicable", str(error).splitlines()[0]
        status.not_applicable(config, reason)
        log.warning("not applicable: %s", reason)
    except Exception as error:
        known = isinstance(error, NotApplicable) or is_user_error(error)
        reason = format_error(error) if known else f"{type(error).__name__}: {error}"
        if not sweeping and known:
            status.withdraw(error)
            print(f"error: {format_error(error)}", file=sys.stderr)  # noqa: T201 - the command's own message
            raise SystemExit(2) from None
        status.fail(config, error)
        if not sweeping:
            raise
        log.error("failed: %s: %s", folder.name, redact(format_error(error) if known else traceback.format_exc()))
    finally:
        logger.close(ending, reason)
        status.release()
        JOBS[folder] = value
    return value


def main() -> None:
    """The command."""
    prepare_hydra()
    for record in (STARTED, ENDED, JOBS):
        record.clear()
    code = 0
    try:
        job()  # an interruption ends the command here
    except SystemExit as end:
        if end.code != 1 or not STARTED or ENDED or not isinstance(end.__context__, Exception):
            raise
        code = 1  # Hydra's code where the launcher failed: a worker was killed, say
        summarise(STARTED[0])
    for sweep in ENDED:
        if sweep.report:
            from dcdt.report import report_sweep

            report_sweep(sweep.folder, sweep.on_wandb)
        code = code or int(bool(sweep.failed))
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    main()
