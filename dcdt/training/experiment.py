"""Train and test one configuration."""

import time

from omegaconf import DictConfig

from dcdt.config import Settings
from dcdt.data.beir import load_collection
from dcdt.data.splits import make_split
from dcdt.runs.folder import Status
from dcdt.training import resume
from dcdt.training.loggers.base import RunLogger


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
    collection = load_collection(settings.data.path)
    collection.check_fields(settings.fields)
    split = make_split(collection, settings.split)

    # torch and lightning take seconds to import: only after the configuration and the texts are found good
    from dcdt.reporting.run_figures import run_figures
    from dcdt.runs.provenance import provenance
    from dcdt.runs.results import summarise, write_results
    from dcdt.training import build
    from dcdt.training.outcome import Outcome
    from dcdt.training.tuner import search

    folder = status.folder
    build.prepare(settings)
    tables = build.load_tables(settings, collection)
    data = build.make_datamodule(settings, collection, split, tables)
    status.start(config, provenance(collection, split, build.space(settings).folder), resuming)
    logger.start(build.simulated_parts(collection, split, settings), resuming)
    looking_on = logger if settings.trials == 1 else RunLogger()  # while trials are compared, none is shown
    trained, chosen, trials = search(
        settings,
        config,
        lambda trial, at: build.train(trial, tables, data, looking_on, resume.state_path(folder, at, settings.trials)),
    )
    if settings.trials > 1:
        logger.curves(trained.history)
    build.save(trained, chosen, trials, folder)
    reference = build.reference_results(tables, trained.trainer, data)
    started = time.perf_counter()
    trained.trainer.test(trained.model, datamodule=data, verbose=False)
    results, seconds = trained.model.results, time.perf_counter() - started
    trained.model.to(tables.device)  # Lightning has moved it to the CPU, away from its vectors

    metrics: dict[str, float] = summarise(results) | trained.model.facts()
    metrics |= {f"zero_shot/{name}": value for name, value in summarise(reference).items()}
    notes = write_results(folder, results, metrics, data)
    status.cost(build.cost(trained, seconds))
    figures = run_figures(trained.history, results["test"].pairs, settings.option, metrics["zero_shot/val/mrr"])
    logger.finish(
        Outcome(chosen, trained.model, trained.epoch, trained.history, data, results, metrics, figures, folder)
    )
    status.finish()
    resume.discard(folder)
    if settings.callbacks.progress:
        build.print_summary(settings, collection, split, trained, reference, folder, notes)
    return metrics
