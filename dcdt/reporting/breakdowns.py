"""The tables beside the comparison: subsets of the test queries, extra sides, training, failures and cost."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from dcdt.evaluation.statistics import spread
from dcdt.reporting.cells import Number, per_query, ranking_cell, units_by_query
from dcdt.reporting.table_types import (
    Cell,
    Row,
    Table,
    format_counts,
    format_ranges,
    format_span,
    mark_best,
    mean_number,
    metric_name,
)
from dcdt.reporting.variants import Variant
from dcdt.runs.reader import MOMENT_METRICS, Run

MIN_BREAKDOWN_QUERIES = 30
REPORTED_LOSS = {"single_tower": 0.0435, "dcdt": 0.0845}
CELL_NOTE = "Cells as in the comparison."


@dataclass(frozen=True)
class Parts:
    """One metric on parts of the test queries.

    Attributes:
        columns: headings of the parts that are large enough, by key.
        cells: cells by label of the variant and key.
        too_small: numbers of queries of the other parts, by key.
        variants: the variants that were measured, by label.
    """

    columns: dict[str, str] = field(default_factory=dict)
    cells: dict[str, dict[str, Number]] = field(default_factory=dict)
    too_small: dict[str, int] = field(default_factory=dict)
    variants: dict[str, Variant] = field(default_factory=dict)

    @property
    def note(self) -> str:
        """Name the parts without a figure; empty without any."""
        names = ", ".join(f"{key} ({n})" for key, n in self.too_small.items())
        return f"Too few queries for a figure (fewer than {MIN_BREAKDOWN_QUERIES}): {names}." if names else ""


def warmth_parts(variants: list[Variant], metric: str) -> tuple[Parts, str]:
    """Measure the warm, cold and mixed queries of the variants tested on every query; return a caption as well."""
    aligned, note = _mark_warmth_alike(variants)
    labels = {warmth for run in aligned[0].runs for warmth in run.sides["test"].warm}
    subsets: dict[str, dict[str, str]] = {key: {"warm": key} for key in ("warm", "cold", "mixed") if key in labels}
    caption = (
        "Warm: every positive of the query was a positive of a training query, so a model can win by remembering which "
        f"videos are popular answers. Cold: none was. Mixed: some.{note}"
    )
    return _parts(aligned, metric, subsets, f"{metric_name(metric)} "), caption


def kinds_table(variants: list[Variant], metric: str) -> Table:
    """Make the table by kind of query, of the variants tested on every query; without rows if queries have no kind."""
    scores = [run.sides["test"] for run in variants[0].runs]
    kinds = sorted({kind for side in scores for kind in side.kinds if kind})
    schools = variants[0].runs[0].config["split"].get("schools")
    title = f"{metric_name(metric)} by {'school' if schools else 'kind of query'}"
    parts = _parts(variants, metric, {kind: {"kind": kind} for kind in kinds})
    if not parts.columns:
        counts = [Row(key, {"n": str(size)}) for key, size in parts.too_small.items()]
        caption = f"No part has the {MIN_BREAKDOWN_QUERIES} queries that a figure needs."
        return Table("kinds", title, {"n": "n"}, counts, caption, stub="Part")
    worst = {"worst": "worst of these"} if schools else {}
    least = {label: min(cells.values(), key=lambda cell: cell.value) for label, cells in parts.cells.items()}
    rows = [Row(label, {**cells, **dict.fromkeys(worst, least[label])}) for label, cells in parts.cells.items()]
    rows = mark_best(rows, {*parts.columns, *worst}, set(parts.cells))
    return Table("kinds", title, parts.columns | worst, rows, CELL_NOTE, [parts.note] if parts.note else [])


def _parts(variants: list[Variant], metric: str, subsets: dict[str, dict[str, str]], prefix: str = "") -> Parts:
    """Measure subsets of the test queries, given as filters of `per_query`."""
    names = {key: per_query(variants[0].runs, metric, **filters).keys() for key, filters in subsets.items()}
    unit_of = units_by_query(variants[0].runs)
    large = [key for key in subsets if len(names[key]) >= MIN_BREAKDOWN_QUERIES]
    counts = {key: format_counts(len(names[key]), len({unit_of[name] for name in names[key]})) for key in large}
    cells = {
        variant.label: {
            key: number for key in large if (number := ranking_cell(variant.runs, metric, **subsets[key])) is not None
        }
        for variant in variants
    }
    too_small = {key: len(names[key]) for key in subsets if key not in large}
    columns = {key: f"{prefix}{key} ({counts[key]})" for key in large}
    return Parts(columns, cells, too_small, {variant.label: variant for variant in variants})


def _mark_warmth_alike(variants: list[Variant]) -> tuple[list[Variant], str]:
    """Mark each fold's queries by its largest training set; return the variants, and a note if sets differ.

    Which queries are warm depends on the training queries; a column of a learning curve must have the same ones.
    """
    marks: dict[int, tuple[int, dict[str, str]]] = {}
    runs = [run for variant in variants for run in variant.runs]
    for run in runs:
        size, side = int(run.provenance.get("queries", {}).get("train", 0)), run.sides["test"]
        if run.fold not in marks or size > marks[run.fold][0]:
            marks[run.fold] = size, dict(zip(side.ids, side.warm, strict=True))

    def marked(run: Run) -> Run:
        side = run.sides["test"]
        warm = [marks[run.fold][1].get(name, own_warmth) for name, own_warmth in zip(side.ids, side.warm, strict=True)]
        return replace(run, sides={**run.sides, "test": replace(side, warm=warm)})

    aligned = [replace(variant, runs=[marked(run) for run in variant.runs]) for variant in variants]
    same = all(marked(run).sides["test"].warm == run.sides["test"].warm for run in runs)
    return aligned, "" if same else " By the largest training set of each fold, the same queries in every row."


def side_tables(variants: list[Variant], ranked: list[str]) -> Iterable[Table]:
    """Make one small table an extra side: `test_all` and the language slices."""
    for side in sorted({name for variant in variants for run in variant.runs for name in run.sides} - {"test"}):
        rows = []
        for variant in variants:
            cells = {metric: ranking_cell(variant.runs, metric, side) for metric in ranked}
            rows.append(Row(variant.label, {metric: number for metric, number in cells.items() if number}))
        unit_of = units_by_query(variants[0].runs, side)
        counts = format_counts(len(unit_of), len(set(unit_of.values())))
        videos = sorted({int(run.provenance.get("candidates", {}).get(side, 0)) for run in variants[0].runs})
        description = "the test queries ranked among all videos, not only the held-out ones"
        if side.startswith("slice_"):
            description = f"queries in the language '{side.removeprefix('slice_')}', never trained on"
        yield Table(
            side,
            f"{side}: {description} ({counts}, {format_span(videos)} videos)",
            {metric: metric_name(metric) for metric in ranked},
            mark_best(rows, set(ranked), {variant.label for variant in variants}),
            CELL_NOTE,
        )


def moments_table(variants: list[Variant]) -> Table:
    """Make the table of how near the best passage of the right video is to the second that a query asks about."""
    rows = []
    for variant in variants:
        runs = [replace(run, sides={"moments": run.moments}) for run in variant.runs if run.moments is not None]
        errors = list(per_query(runs, "error", "moments").values())
        numbers = {name: ranking_cell(runs, name, "moments") for name in MOMENT_METRICS}
        cells: dict[str, Cell] = {name: number for name, number in numbers.items() if number}
        if errors:
            cells |= {"n": str(len(errors)), "error": Number(float(np.median(errors)), digits=0)}
            rows.append(Row(variant.label, cells))
    columns = {"n": "n", **{name: f"within {seconds} s" for name, seconds in MOMENT_METRICS.items()}}
    caption = (
        "Given the right video, the moment shown is the start of its best passage: the share of queries for which it "
        f"is so near to the second that they name, and the median distance in seconds. {CELL_NOTE}"
    )
    rows = mark_best(rows, set(MOMENT_METRICS), {row.name for row in rows})
    return Table("moments", "Moments", {**columns, "error": "Median error, s"}, rows, caption)


def training_table(variants: list[Variant], is_papers: bool) -> Table:
    """Make figure 3 of the paper as a table: final loss, and mean scores of positives and negatives.

    Args:
        variants: in the order of the rows.
        is_papers: whether the collection is the paper's, beside which its own figures stand.
    """
    rows, notes = [], []
    names = [variant.model for variant in variants]
    for variant in (variant for variant in variants if variant.runs):
        cells: dict[str, Cell] = {}
        losses = [
            run.history[-1]["train/loss"] for run in variant.runs if run.history and "train/loss" in run.history[-1]
        ]
        if losses:
            cells["loss"] = mean_number(losses, 4)
        if is_papers and losses and variant.model in REPORTED_LOSS and names.count(variant.model) == 1:
            cells["reported_loss"] = Number(REPORTED_LOSS[variant.model], digits=4)
        pairs = [run.pairs for run in variant.runs if run.pairs is not None and len(run.pairs.scores)]
        if pairs:
            cells["positives"] = mean_number(
                [float(run_pairs.scores[run_pairs.labels].mean()) for run_pairs in pairs], 3
            )
            cells["negatives"] = mean_number(
                [float(run_pairs.scores[~run_pairs.labels].mean()) for run_pairs in pairs], 3
            )
            limits = [run.metrics["val/pair_threshold"] for run in variant.runs if "val/pair_threshold" in run.metrics]
            if limits:
                cells["threshold"] = mean_number(limits, 3)
        if is_papers and pairs and variant.model == "dcdt":
            scores = np.concatenate([run_pairs.scores for run_pairs in pairs])
            inside = float(((scores >= 0.45) & (scores <= 0.51)).mean())
            notes.append(
                f"{variant.label}: {inside:.0%} of the scores of test pairs lie between 0.45 and 0.51, where the paper "
                f"shows most of DCDT's, and {float((scores > 0.63).mean()):.0%} above 0.63, where it shows few."
            )
        rows.append(Row(variant.label, cells))
    columns = {
        "loss": "Final training loss",
        "reported_loss": "Final training loss (reported)",
        "positives": "Mean score of positives",
        "negatives": "Mean score of negatives",
        "threshold": "Threshold",
    }
    used = {key for row in rows for key in row.cells}
    columns = {key: heading for key, heading in columns.items() if key in used}
    caption = (
        "Mean over runs ± standard deviation over runs (folds and seeds). Scores are those of the test pairs, each "
        "model on its own scale; losses compare only where loss and margin are the same."
    )
    title = f"Loss and scores{' (figure 3 in numbers)' if is_papers else ''}"
    return Table("training", title, columns, rows if used else [], caption, notes)


def failure_table(variants: list[Variant], refused: list[Run]) -> Table:
    """Make the table of jobs without a result, grouped, and of those that failed before another attempt finished.

    Args:
        variants: with the runs that are missing, and those that were retried.
        refused: jobs whose configuration was refused; they are known by their folders alone.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for variant in variants:
        for run in (*variant.missing, *variant.retried):
            status = run.status if run in variant.missing else f"{run.status}, then finished"
            groups.setdefault((variant.label, status, run.error), []).append(run)
    rows = []
    for (label, status, error), jobs in groups.items():
        cells: dict[str, Cell] = {
            "status": status,
            "jobs": str(len({(run.fold, run.seed) for run in jobs})),
            "folds": format_ranges(sorted({run.fold for run in jobs})),
            "seeds": format_ranges(sorted({run.seed for run in jobs})),
            "reason": error,
        }
        rows.append(Row(label, cells))
    for run in refused:
        rows.append(Row(run.folder.name, {"status": run.status, "jobs": "1", "reason": run.error}))
    columns = {"status": "Status", "jobs": "Jobs", "folds": "Folds", "seeds": "Seeds", "reason": "Reason"}
    return Table("failures", "Jobs without a result", columns, rows)


def cost_table(variants: list[Variant]) -> Table:
    """Make the table of parameters, training time, time a query, and whether video vectors can be precomputed."""
    rows = []
    for variant in (variant for variant in variants if variant.runs):
        costs = [run.cost for run in variant.runs]
        cells: dict[str, Cell] = {}
        for key, digits in (("parameters", 0), ("training_seconds", 1), ("epochs", 1), ("ms_per_query", 2)):
            values = [float(cost[key]) for cost in costs if isinstance(cost.get(key), int | float)]
            if values:
                cells[key] = replace(
                    mean_number(values, digits), spread=float("nan") if digits == 0 else spread(values)
                )
        cells["decoupled"] = "yes" if all(cost.get("decoupled") for cost in costs) else "no"
        rows.append(Row(variant.label, cells))
    columns = {
        "parameters": "Parameters",
        "training_seconds": "Training, s",
        "epochs": "Epochs",
        "ms_per_query": "ms per query",
        "decoupled": "Video vectors precomputed",
    }
    caption = (
        "Mean over runs ± standard deviation, on the machines of the runs; never the same twice, so kept apart from "
        "the quality tables. Training: the chosen trial alone. ms per query: full ranking with metrics, in batches."
    )
    return Table("cost", "Cost", columns, rows, caption)
