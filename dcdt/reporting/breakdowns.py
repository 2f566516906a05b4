"""The tables beside the comparison: parts of the test queries, extra sides, training, failures and cost."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from dcdt.evaluation.statistics import spread
from dcdt.reporting.cells import Number, per_query, ranking_cell
from dcdt.reporting.table_types import Cell, Row, Table, format_ranges, format_span, mark_best, mean_number, metric_name
from dcdt.reporting.variants import Variant
from dcdt.runs.reader import Run

MIN_BREAKDOWN_QUERIES = 30
REPORTED_LOSS = {"single_tower": 0.0435, "dcdt": 0.0845}
CELL_NOTE = "Cells as in the comparison."


def breakdown_tables(variants: list[Variant], metric: str) -> Iterable[Table]:
    """Breakdown by query kind and by warmth, of the variants tested on every query."""
    scores = [run.sides["test"] for run in variants[0].runs]
    kinds = sorted({kind for side in scores for kind in side.kinds if kind})
    name = metric_name(metric)
    warm = (
        "Warm: every positive of the query was a positive of a training query, so a model can win by remembering which "
        "videos get asked for. Cold: none was. Mixed: some."
    )
    yield _breakdown("kinds", f"{name} by kind of query", variants, metric, {kind: {"kind": kind} for kind in kinds})
    alike, note = _mark_warmth_alike(variants)
    seen = {word for run in alike[0].runs for word in run.sides["test"].warm}
    parts: dict[str, dict[str, str]] = {key: {"warm": key} for key in ("warm", "cold", "mixed") if key in seen}
    yield _breakdown("warmth", f"{name} by warmth", alike, metric, parts, warm + note)


def _mark_warmth_alike(variants: list[Variant]) -> tuple[list[Variant], str]:
    """The variants with each fold's queries marked by its largest training set, and a note where sets differ.

    Which queries are warm depends on the training queries; a column of a learning curve must hold the same ones.
    """
    marks: dict[int, tuple[int, dict[str, str]]] = {}
    runs = [run for one in variants for run in one.runs]
    for run in runs:
        size, side = int(run.provenance.get("queries", {}).get("train", 0)), run.sides["test"]
        if run.fold not in marks or size > marks[run.fold][0]:
            marks[run.fold] = size, dict(zip(side.ids, side.warm, strict=True))

    def marked(run: Run) -> Run:
        side = run.sides["test"]
        warm = [marks[run.fold][1].get(name, own) for name, own in zip(side.ids, side.warm, strict=True)]
        return replace(run, sides={**run.sides, "test": replace(side, warm=warm)})

    alike = [replace(one, runs=[marked(run) for run in one.runs]) for one in variants]
    same = all(marked(run).sides["test"].warm == run.sides["test"].warm for run in runs)
    return alike, "" if same else " By the largest training set of each fold, the same queries in every row."


def _breakdown(
    name: str, title: str, variants: list[Variant], metric: str, parts: dict[str, dict[str, str]], caption: str = ""
) -> Table:
    sizes = {part: len(per_query(variants[0].runs, metric, **chosen)) for part, chosen in parts.items()}
    kept = [part for part in parts if sizes[part] >= MIN_BREAKDOWN_QUERIES]
    if not kept:
        counts = [Row(part, {"n": str(size)}) for part, size in sizes.items()]
        caption = f"{caption} No part has the {MIN_BREAKDOWN_QUERIES} queries that a figure needs.".strip()
        return Table(name, title, {"n": "n"}, counts, caption, stub="Part")
    few = [f"{part} ({sizes[part]})" for part in parts if part not in kept]
    rows = []
    for one in variants:
        found = {part: ranking_cell(one.runs, metric, **parts[part]) for part in kept}
        rows.append(Row(one.label, {part: number for part, number in found.items() if number}))
    return Table(
        name,
        title,
        {part: f"{part} (n = {sizes[part]})" for part in kept},
        mark_best(rows, set(kept), {one.label for one in variants}),
        f"{caption} {CELL_NOTE}".strip(),
        [f"Too few queries for a figure (fewer than {MIN_BREAKDOWN_QUERIES}): {', '.join(few)}."] if few else [],
    )


def side_tables(variants: list[Variant], ranked: list[str]) -> Iterable[Table]:
    """One small table an extra side: `test_all` and the language slices."""
    for side in sorted({name for one in variants for run in one.runs for name in run.sides} - {"test"}):
        rows = []
        for one in variants:
            found = {metric: ranking_cell(one.runs, metric, side) for metric in ranked}
            rows.append(Row(one.label, {metric: number for metric, number in found.items() if number}))
        n = len(per_query(variants[0].runs, ranked[0], side))
        videos = sorted({int(run.provenance.get("candidates", {}).get(side, 0)) for run in variants[0].runs})
        what = "the test queries ranked among all videos, not only the held-out ones"
        if side.startswith("slice_"):
            what = f"queries in the language '{side.removeprefix('slice_')}', never trained on"
        yield Table(
            side,
            f"{side}: {what} (n = {n}, {format_span(videos)} videos)",
            {metric: metric_name(metric) for metric in ranked},
            mark_best(rows, set(ranked), {one.label for one in variants}),
            CELL_NOTE,
        )


def training_table(variants: list[Variant]) -> Table:
    """Figure 3 of the paper in numbers: final loss, and where the scores of positives and negatives lie."""
    rows, notes = [], []
    names = [one.model for one in variants]
    for one in (one for one in variants if one.runs):
        cells: dict[str, Cell] = {}
        losses = [run.history[-1]["train/loss"] for run in one.runs if run.history and "train/loss" in run.history[-1]]
        if losses:
            cells["loss"] = mean_number(losses, 4)
        if losses and one.model in REPORTED_LOSS and names.count(one.model) == 1:
            cells["reported_loss"] = Number(REPORTED_LOSS[one.model], digits=4)
        pairs = [run.pairs for run in one.runs if run.pairs is not None and len(run.pairs.scores)]
        if pairs:
            cells["positives"] = mean_number([float(part.scores[part.labels].mean()) for part in pairs], 3)
            cells["negatives"] = mean_number([float(part.scores[~part.labels].mean()) for part in pairs], 3)
            limits = [run.metrics["val/pair_threshold"] for run in one.runs if "val/pair_threshold" in run.metrics]
            if limits:
                cells["threshold"] = mean_number(limits, 3)
        if pairs and one.model == "dcdt":
            scores = np.concatenate([part.scores for part in pairs])
            inside = float(((scores >= 0.45) & (scores <= 0.51)).mean())
            notes.append(
                f"{one.label}: {inside:.0%} of the scores of test pairs lie between 0.45 and 0.51, where the paper "
                f"shows most of DCDT's, and {float((scores > 0.63).mean()):.0%} above 0.63, where it shows few."
            )
        rows.append(Row(one.label, cells))
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
    return Table("training", "Loss and scores (figure 3 in numbers)", columns, rows if used else [], caption, notes)


def failure_table(variants: list[Variant]) -> Table:
    """Every job without a result, alike ones together; and those that broke before another attempt finished."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for one in variants:
        for run in (*one.missing, *one.retried):
            status = run.status if run in one.missing else f"{run.status}, then finished"
            groups.setdefault((one.label, status, run.error), []).append(run)
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
    columns = {"status": "Status", "jobs": "Jobs", "folds": "Folds", "seeds": "Seeds", "reason": "Reason"}
    return Table("failures", "Jobs without a result", columns, rows)


def cost_table(variants: list[Variant]) -> Table:
    """Parameters, training time, time a query, and whether video vectors can be precomputed."""
    rows = []
    for one in (one for one in variants if one.runs):
        facts = [run.cost for run in one.runs]
        cells: dict[str, Cell] = {}
        for key, digits in (("parameters", 0), ("training_seconds", 1), ("epochs", 1), ("ms_per_query", 2)):
            values = [float(fact[key]) for fact in facts if isinstance(fact.get(key), int | float)]
            if values:
                cells[key] = replace(
                    mean_number(values, digits), spread=float("nan") if digits == 0 else spread(values)
                )
        cells["decoupled"] = "yes" if all(fact.get("decoupled") for fact in facts) else "no"
        rows.append(Row(one.label, cells))
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
