"""Run one configuration, from its collection to the files of its folder."""

from collections.abc import Callable

from omegaconf import DictConfig

from dcdt.config import Settings
from dcdt.data.beir import load_collection
from dcdt.data.splits import make_split
from dcdt.runs.folder import RunFolder
from dcdt.training.loggers.base import RunLogger
from dcdt.utils.files import write_json


def run(
    settings: Settings,
    config: DictConfig,
    folder: RunFolder,
    logger: RunLogger,
    resuming: bool = False,
    prepare: Callable[..., None] | None = None,
) -> dict[str, float]:
    """Train (where there is something to train), test once from the best weights, write the run's folder.

    Args:
        settings: the checked configuration.
        config: the same as composed, written to config.yaml and to the logger.
        folder: of the run.
        logger: started here, closed by the caller.
        resuming: whether the run resumes from the state in its folder.
        prepare: called with model and data in place of the model's own `prepare`.

    Returns:
        The metrics of the run, `side/name` to value.

    Raises:
        UserError: a mistake that the user can correct.
        NotApplicable: the collection lacks what the model needs.
    """
    collection = load_collection(settings.data.path, settings.data.own_video)
    collection.check_fields(settings.fields)
    split = make_split(collection, settings.split)

    # torch and lightning take seconds to import: only after the configuration and the texts have been checked
    from dcdt.reporting.run_figures import run_figures
    from dcdt.runs.provenance import provenance
    from dcdt.runs.results import summarise, summarise_lists, write_moments, write_results
    from dcdt.training import build, fit, summary, tuner
    from dcdt.training.outcome import Outcome

    build.prepare(settings)
    tables = build.load_tables(settings, collection)
    data = build.make_datamodule(settings, collection, split, tables)
    folder.start(config, provenance(collection, split, build.space(settings), tables.digest), resuming)
    logger.start(summary.simulated_parts(collection, split, settings), resuming)

    several = settings.trials > 1
    trial_logger = RunLogger() if several else logger  # of several trials the best alone is logged, at their end
    best, chosen, trials = tuner.search(
        settings,
        config,
        lambda trial, number: fit.train(
            trial, tables, data, trial_logger, folder.state_file(number, settings.trials), prepare
        ),
    )
    if several:
        logger.curves(best.history)
    fit.save(best, chosen, trials, folder)

    reference = build.reference_results(tables, best.trainer, data)
    results, seconds = fit.test(best, data)
    metrics: dict[str, float] = summarise(results) | summarise_lists(results, data) | best.model.statistics()
    metrics |= {f"zero_shot/{name}": value for name, value in summarise(reference).items()}
    notes = write_results(folder, results, metrics, data)
    write_moments(folder, best.model, data)
    write_json(folder.files.cost, fit.cost(best, seconds))

    figures = run_figures(best.history, results["test"].pairs, settings.option, metrics["zero_shot/val/mrr"])
    logger.finish(Outcome(chosen, best.model, best.epoch, best.history, data, results, metrics, figures, folder))
    folder.finish()
    if settings.callbacks.progress:
        summary.print_summary(settings, data, best, reference, folder.path, notes)
    return metrics
