"""Figures of a report: as PNG files on white, and as SVG with the colours of the page."""

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from dcdt.reporting.cells import Number
from dcdt.reporting.comparisons import MARGIN, Comparison
from dcdt.reporting.table_types import metric_name
from dcdt.reporting.tables import Report
from dcdt.reporting.variants import Variant

INK, RULE, MUTED = "#22262c", "#d4d8de", "#7d8590"
SERIES = ("#2a6ab0", "#c4641a", "#2b8558", "#8a4fa3", "#b5383e", "#12808a", "#7a5c2f", "#55606d")
COLOURS = {INK: "--ink", RULE: "--rule", MUTED: "--muted"} | {hue: f"--hue-{i}" for i, hue in enumerate(SERIES)}
STYLE: Any = {  # matplotlib types the keys one by one
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 12,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": RULE,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
}
Z_EDGES = np.linspace(-4, 4, 41)
Floats = NDArray[np.float64]


def make_figures(report: Report) -> dict[str, Figure]:
    """Make the figures of a report that have data: loss, scores, differences, learning."""
    with mpl.rc_context(STYLE):
        figures = {
            "loss": _loss_figure(report.variants),
            "scores": _score_figure([variant for variant in report.variants if standardised_scores(variant)]),
            "differences": _difference_figure(report),
            "learning": _learning_figure(report),
        }
    return {name: figure for name, figure in figures.items() if figure is not None}


def score_panels(report: Report) -> dict[str, Figure]:
    """Make the panels of the scores figure one by one, so that a page can arrange them."""
    panels = {}
    with mpl.rc_context(STYLE):
        for variant in (candidate for candidate in report.variants if standardised_scores(candidate)):
            panels[variant.label] = figure = _figure(4.6, 3.0)
            _score_panel(figure.subplots(), variant)
    return panels


def png(figure: Figure) -> bytes:
    """Render a figure as PNG on white; the same bytes every time."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return data.getvalue()


def svg(figure: Figure, name: str, title: str, variables: Mapping[str, str] = COLOURS) -> str:
    """Render a figure as an SVG element: transparent, with unique ids and variables of the page for colours."""
    data = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(data, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = data.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.S)
    for colour, variable in variables.items():
        text = text.replace(colour, f"var({variable})")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def standardised_scores(variant: Variant) -> list[tuple[Floats, NDArray[np.bool_], float]]:
    """Standardise the test-pair scores of each run; return them with labels and threshold."""
    results = []
    for run in variant.runs:
        if run.pairs is not None and len(run.pairs.scores):
            mean, scale = float(run.pairs.scores.mean()), float(run.pairs.scores.std()) or 1.0
            threshold = (run.metrics.get("val/pair_threshold", float("nan")) - mean) / scale
            results.append(((run.pairs.scores - mean) / scale, run.pairs.labels, threshold))
    return results


def loss_curve(runs: Sequence[Sequence[float]]) -> tuple[Floats, Floats, Floats]:
    """Compute epochs from 1, mean loss and standard deviation over runs, until half of the runs have ended.

    Epochs in which no run has a loss (NaN) are left out.
    """
    lengths = np.array([len(values) for values in runs])
    last = int(np.sort(lengths)[::-1][(len(lengths) + 1) // 2 - 1])  # the epoch that half of the runs reached
    table = np.full((len(runs), last), np.nan)
    for row, values in zip(table, runs, strict=True):
        row[: len(values)] = values[:last]
    known = ~np.isnan(table).all(axis=0)
    epochs, table = np.arange(1, last + 1)[known].astype(np.float64), table[:, known]
    return epochs, np.nanmean(table, axis=0), np.nanstd(table, axis=0)


def _losses(variant: Variant, name: str) -> list[list[float]]:
    """Return a loss of each epoch of the runs that have it, NaN where an epoch was not validated."""
    rows = [[row.get(name, np.nan) for row in run.history if "train/loss" in row] for run in variant.runs]
    return [row for row in rows if not np.isnan(row).all()]


def _loss_figure(variants: list[Variant]) -> Figure | None:
    trained = [variant for variant in variants if _losses(variant, "train/loss")]
    if not trained:
        return None
    has_validation = any(_losses(variant, "val/loss") for variant in trained)
    inside = len(trained) < 4 and not has_validation  # else the legend is below the curves
    figure = _figure(5.4, 3.5 if inside else 3.5 + 0.22 * (len(trained) + has_validation))
    axes = figure.subplots()
    for i, variant in enumerate(trained):
        epochs, mean, deviation = loss_curve(_losses(variant, "train/loss"))
        colour, style = SERIES[i % len(SERIES)], ("-", "--", ":")[i // len(SERIES) % 3]
        marker = "o" if len(epochs) == 1 else None
        label = _wrap_label(variant.label, 30 if inside else 999)
        axes.plot(epochs, mean, style, color=colour, label=label, marker=marker)
        axes.fill_between(epochs, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
        if validated := _losses(variant, "val/loss"):
            axes.plot(*loss_curve(validated)[:2], "-.", color=colour, linewidth=1.2, marker=marker)
    if has_validation:
        axes.plot([], [], "-.", color=MUTED, linewidth=1.2, label="validation loss")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.set_xlim(left=1)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.6)
    if inside:
        axes.legend(frameon=False, fontsize=10)
    else:
        figure.legend(frameon=False, fontsize=10, loc="outside lower left")
    return figure


def _score_figure(variants: list[Variant]) -> Figure | None:
    if not variants:
        return None
    columns = min(2, len(variants))
    rows = -(-len(variants) // columns)
    figure = _figure(4.4 * columns, 2.7 * rows)
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False).ravel()
    for axes, variant in zip(panels, variants, strict=False):
        _score_panel(axes, variant)
    for axes in panels[len(variants) :]:
        axes.set_visible(False)
    return figure


def _score_panel(axes: Any, variant: Variant) -> None:  # noqa: ANN401 - matplotlib's Axes, untyped here
    results = standardised_scores(variant)
    scores, labels = (
        np.concatenate([result[0] for result in results]),
        np.concatenate([result[1] for result in results]),
    )
    for mask, label, colour in ((~labels, "negatives", MUTED), (labels, "positives", SERIES[0])):
        inside = np.clip(scores[mask], Z_EDGES[0], Z_EDGES[-1])
        share = np.histogram(inside, Z_EDGES)[0] / max(1, int(mask.sum()))
        axes.stairs(share, Z_EDGES, fill=True, alpha=0.35, color=colour)
        axes.stairs(share, Z_EDGES, color=colour, linewidth=1.4, label=label)
    threshold = float(np.mean([result[2] for result in results]))
    if np.isfinite(threshold):
        axes.axvline(threshold, ymax=0.84, color=INK, linestyle="--", linewidth=1.2, label="threshold")
    axes.set_title(_wrap_label(variant.label, 32), loc="left")
    axes.set(xlabel="score in standard deviations from its mean", ylabel="share of pairs")
    axes.set_xlim(Z_EDGES[0], Z_EDGES[-1])
    axes.set_ylim(0, 1.2 * axes.get_ylim()[1])  # room for the legend above the bars
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=3, borderaxespad=0.2, columnspacing=1.2)


def _difference_figure(report: Report) -> Figure | None:
    """Draw the difference of every model to zero_shot, or to the best without zero_shot."""
    against = (report.reference or report.best).label
    rows: list[Comparison] = [comparison for comparison in report.comparisons if comparison.reference == against]
    if not rows:
        return None
    figure = _figure(5.4, 1.1 + 0.5 * len(rows))
    axes = figure.subplots()
    positions = np.arange(len(rows))[::-1]
    values = np.array([comparison.difference.value for comparison in rows])
    low, high = (np.array([getattr(comparison.difference, end) for comparison in rows]) for end in ("low", "high"))
    axes.axvspan(-MARGIN, 0, color=MUTED, alpha=0.18, linewidth=0)
    axes.axvline(0, color=INK, linewidth=1)
    axes.errorbar(
        values, positions, xerr=[values - low, high - values], fmt="o", color=SERIES[0], capsize=4, linewidth=1.8
    )
    axes.set_yticks(positions, [_wrap_label(comparison.model) for comparison in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(f"difference in {metric_name(report.metric)}, 95 % interval")
    axes.grid(axis="x", alpha=0.6)
    return figure


def learning_curves(report: Report) -> dict[str, list[tuple[float, Number]]]:
    """Collect, for each model and number of training queries, their mean number and the difference to zero_shot."""
    against = report.reference.label if report.reference else ""
    gaps = {selected.model: selected.difference for selected in report.comparisons if selected.reference == against}
    curves: dict[str, list[tuple[float, Number]]] = {}
    for selected in (
        variant for variant in report.variants if "train_queries=" in variant.label and variant.label in gaps
    ):
        name = re.sub(r",? ?train_queries=[^,]+", "", selected.label)
        number = float(np.mean([run.provenance["queries"]["train"] for run in selected.runs]))
        curves.setdefault(name, []).append((number, gaps[selected.label]))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in sorted(curves.items())}


def _learning_figure(report: Report) -> Figure | None:
    curves = learning_curves(report)
    if not curves or not report.reference:
        return None
    figure = _figure(5.4, 3.7)
    axes = figure.subplots()
    axes.axhspan(-MARGIN, 0, color=MUTED, alpha=0.18, linewidth=0)
    axes.axhline(0, color=INK, linewidth=1)
    for i, (name, points) in enumerate(curves.items()):
        numbers = np.array([number for number, _ in points]) * (1 + 0.05 * i)  # side by side, not on top
        values, low, high = (np.array([getattr(gap, end) for _, gap in points]) for end in ("value", "low", "high"))
        colour, bars = SERIES[i % len(SERIES)], [values - low, high - values]
        axes.errorbar(numbers, values, yerr=bars, fmt="o-", capsize=3, color=colour, label=_wrap_label(name))
    axes.set_xscale("log", base=2)
    axes.margins(x=0.08)  # room for the label of a power of two at the edge
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    reference = _wrap_label(report.reference.label, 999)
    axes.set(xlabel="training queries", ylabel=f"{metric_name(report.metric)} minus that of {reference}")
    axes.grid(alpha=0.6)
    figure.legend(frameon=False, fontsize=9.5, loc="outside upper left", ncols=2)
    return figure


def _wrap_label(label: str, width: int = 30) -> str:
    """Wrap a label, with dollars escaped for matplotlib."""
    return textwrap.fill(label, width, break_long_words=False).replace("$", r"\$")


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
