"""Train and test one configuration: `python -m dcdt.run [group=option ...] [key=value ...] [-m]`."""

import logging
import sys
import time
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from dcdt import distributed, resume
from dcdt.callbacks.logger import RunLogger, choose_logger
from dcdt.cli import prepare_hydra
from dcdt.config import Settings, config_folder, parse, read_overrides
from dcdt.devices import claim_gpus
from dcdt.errors import MissingField, NotApplicable, in_words, mendable
from dcdt.redact import redacted
from dcdt.status import Status
from dcdt.sweep import ENDED, STARTED, summarise, without_unread

log = logging.getLogger("dcdt")
JOBS: dict[Path, float] = {}  # primary metric of each job of the sweep that this process has run, NaN where it has none


def run(
    settings: Settings, config: DictConfig, status: Status, logger: RunLogger, resuming: bool = False
) -> dict[str, float]:
    """Train (where there is something to train), test once from the best weights, write the run's folder.

    Args:
        settings: the checked configuration.
        config: the same as composed, written to config.yaml and to the logger.
        status: of the run's folder.
        logger: opened here, closed by the caller.
        resuming: whether the run goes on from the state in its folder.

    Returns:
        The metrics of the run, `side/name` to value.

    Raises:
        UserError: something the user can mend.
        NotApplicable: the collection lacks what the model needs.
    """
    from dcdt.data.collection import load_collection
    from dcdt.data.splits import make_split

    collection = load_collection(settings.data.path)
    collection.check_fields(settings.fields)
    split = make_split(collection, settings.split)

    # torch and lightning take seconds to import: only after the configuration and the texts are found good
    from dcdt import setup
    from dcdt.figures import run_figures
    from dcdt.outcome import Outcome
    from dcdt.provenance import provenance
    from dcdt.results import summarise, write_results
    from dcdt.tuning import search

    folder = status.folder
    setup.prepare(settings)
    tables = setup.load_tables(settings, collection)
    data = setup.make_datamodule(settings, collection, split, tables)
    status.start(config, provenance(collection, split, setup.space(settings).folder), resuming)
    logger.start(setup.simulated_parts(collection, split, settings), resuming)
    looking_on = logger if settings.trials == 1 else RunLogger()  # while trials are compared, none is shown
    trained, chosen, trials = search(
        settings,
        config,
        lambda trial, at: setup.train(trial, tables, data, looking_on, resume.state_path(folder, at, settings.trials)),
    )
    if settings.trials > 1:
        logger.curves(trained.history)
    setup.save(trained, chosen, trials, folder)
    reference = setup.reference_results(tables, trained.trainer, data)
    started = time.perf_counter()
    trained.trainer.test(trained.model, datamodule=data, verbose=False)
    results, seconds = trained.model.results, time.perf_counter() - started
    trained.model.to(tables.device)  # Lightning has moved it to the CPU, away from its vectors

    metrics: dict[str, float] = summarise(results) | trained.model.facts()
    metrics |= {f"zero_shot/{name}": value for name, value in summarise(reference).items()}
    notes = write_results(folder, results, metrics, data)
    status.cost(setup.cost(trained, seconds))
    figures = run_figures(trained.history, results["test"].pairs, settings.option, metrics["zero_shot/val/mrr"])
    logger.finish(
        Outcome(chosen, trained.model, trained.epoch, trained.history, data, results, metrics, figures, folder)
    )
    status.finish()
    resume.discard(folder)
    if settings.callbacks.progress:
        setup.print_summary(settings, collection, split, trained, reference, folder, notes)
    return metrics


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")
def job(config: DictConfig) -> float:
    """One job of Hydra; returns the primary metric, so that sweepers can search."""
    distributed.adopt_srun()
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
        config = resume.stored_config(config, place.overrides.task, folder, sweeping)
        if sweeping:
            config = without_unread(config)
            choices = read_overrides(place.overrides.task, config.get("model"), config.get("trials"))
        status = Status(distributed.own_folder(folder, named, sweeping))
        status.claim(wait=sweeping)
        logger = choose_logger(config, folder, choices) if not distributed.rank() else logger
        if (sweeping or resumed) and (done := Status(folder).finished_metric(config)) is not None:
            log.warning("done already: %s", folder.name)
            ending, value = "done already", done
            return value
        settings = parse(config)
        settings.callbacks.progress &= not sweeping  # one line for the whole of it
        if place.runtime.choices.get("hydra/launcher") == "processes":
            claim_gpus(settings.trainer)
        resuming = resumed if distributed.rank() else resume.goes_on(status, config, settings, resumed, sweeping)
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
        known = isinstance(error, NotApplicable) or mendable(error)
        reason = in_words(error) if known else f"{type(error).__name__}: {error}"
        if not sweeping and known:
            status.withdraw(error)
            print(f"error: {in_words(error)}", file=sys.stderr)  # noqa: T201 - the command's own message
            raise SystemExit(2) from None
        status.fail(config, error)
        if not sweeping:
            raise
        log.error("failed: %s: %s", folder.name, redacted(in_words(error) if known else traceback.format_exc()))
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
