"""Figures of one run: loss curve, the distribution of scores, the videos in two dimensions, near duplicates."""

from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

BLUE, ORANGE, GREY, TEAL = "#3b6fb6", "#d9822b", "#666666", "#12a5b5"
TOPICS = ("#2a6ab0", "#c4641a", "#2b8558", "#b5383e", "#8a4fa3", "#12a5b5", "#a08a1c", "#e07ab0", "#5b3a1e", "#7ac143")
OTHER = "#b8bcc2"  # of the topic `other`
MARKERS = "os^Dv"  # topics beyond the tenth repeat the colours with another marker


def run_figures(
    history: list[dict[str, float]], pairs: Tensor | None, name: str, zero_shot: float | None = None
) -> dict[str, Any]:
    """Make figures by name: `loss` if the model was trained, `scores` if the split has a pair file.

    Args:
        history: loss and validation per epoch.
        pairs: (m, 2) of score and label.
        name: of the model.
        zero_shot: its validation MRR.
    """
    figures: dict[str, Any] = {}
    if history:
        figures["loss"] = loss_curve(history, name, zero_shot)
    if pairs is not None and len(pairs):
        figures["scores"] = score_distribution(pairs.numpy(), name)
    return figures


def loss_curve(history: list[dict[str, float]], name: str, zero_shot: float | None = None) -> Figure:
    """Draw the losses and validation MRR per epoch, with zero_shot's MRR as a horizontal line."""
    figure, axes = _axes()
    epochs, marker = [row["epoch"] + 1 for row in history], "o" if len(history) == 1 else None
    axes.plot(epochs, [row["train/loss"] for row in history], color=BLUE, marker=marker, label="training loss")
    losses = [(row["epoch"] + 1, row["val/loss"]) for row in history if "val/loss" in row]
    if losses:
        axes.plot(*zip(*losses, strict=True), "-.", color=TEAL, marker=marker, linewidth=1.2, label="validation loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch", title=f"{name}: loss and validation MRR")
    axes.set_ylabel("loss" if losses else "training loss", color=BLUE)
    axes.set_ylim(bottom=0)
    validated = [row for row in history if "val/mrr" in row]
    if validated:
        right = axes.twinx()
        right.plot(
            [row["epoch"] + 1 for row in validated], [row["val/mrr"] for row in validated], color=ORANGE, marker=marker
        )
        right.set_ylabel("validation MRR", color=ORANGE)
        right.set_ylim(0, 1)
        right.spines["top"].set_visible(False)
        if zero_shot is not None:
            right.axhline(zero_shot, color=GREY, linestyle="--", linewidth=1.2, label="validation MRR of zero_shot")
    if losses or zero_shot is not None:
        figure.legend(frameon=False, fontsize="small", loc="outside lower right", ncols=3)
    return figure


def score_distribution(pairs: np.ndarray, name: str) -> Figure:
    """Draw histograms of the scores of positives and negatives; `pairs` is (m, 2) of score and label."""
    figure, axes = _axes()
    positive = pairs[:, 1] > 0.5
    bins = np.histogram_bin_edges(pairs[:, 0], bins=30).tolist()
    for mask, label, colour in ((~positive, "negatives", GREY), (positive, "positives", BLUE)):
        weights = np.full(int(mask.sum()), 1 / max(1, mask.sum()))
        axes.hist(pairs[mask, 0], bins, weights=weights, alpha=0.6, color=colour, label=f"{label} ({mask.sum()})")
    axes.set(xlabel="score", ylabel="share of pairs", title=f"{name}: scores of the test pairs")
    _legend_above(axes, 2)
    return figure


def projection(vectors: Tensor, topics: list[str], name: str) -> Figure:
    """Draw the videos (N, W) on their two principal components, coloured by topic."""
    figure, axes = _axes()
    centred = vectors.double() - vectors.double().mean(0)
    if len(vectors) > 2 and vectors.shape[1] > 1:
        with torch.random.fork_rng(devices=[]):  # a randomised method, seeded
            torch.manual_seed(0)
            _, spread, axis = torch.svd_lowrank(centred, q=min(6, *centred.shape), niter=4)
        spread, axis = spread[:2], axis[:, :2]
        flat, explained = (centred @ axis).numpy(), spread.square() / centred.square().sum().clamp(min=1e-12)
    else:
        flat, explained = np.zeros((len(vectors), 2)), torch.zeros(2)
    names = sorted(set(topics), key=lambda topic: (topic == "other", topic))
    for i, topic in enumerate(names):
        is_topic = [topic == other for other in topics]
        colour = OTHER if topic == "other" and len(names) > 1 else TOPICS[i % len(TOPICS)]
        marker, label = MARKERS[i // len(TOPICS) % len(MARKERS)], f"{escape_mathtext(topic[:30])} ({sum(is_topic)})"
        axes.scatter(flat[is_topic, 0], flat[is_topic, 1], s=18, color=colour, marker=marker, linewidths=0, label=label)
    labels = [f"component {i + 1} ({float(share):.0%})" for i, share in enumerate(explained)]
    axes.set(xlabel=labels[0], ylabel=labels[1], title=f"{name}: the videos")
    columns = 3 if max(map(len, names)) <= 18 else 2
    figure.set_figheight(4.0 + 0.18 * -(-len(names) // columns))
    figure.legend(frameon=False, fontsize="small", loc="outside lower left", ncols=columns, handletextpad=0.2)
    return figure


def confusion_map(share: np.ndarray, number: np.ndarray, titles: list[str], name: str) -> Figure | None:
    """Draw how often (M, M) the video of a column is ranked above that of the row, a positive, with query counts.

    Videos above which none is ranked have no row. None if there is no other.
    """
    above = np.nan_to_num(share) > 0
    rows, columns = np.flatnonzero((above & (number > 0)).any(1)), np.flatnonzero(above.any(0))
    if not len(columns):
        return None
    figure = Figure(figsize=(3.2 + 0.45 * len(columns), 2.4 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(np.ma.masked_invalid(share[np.ix_(rows, columns)]), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            if number[row, column]:
                text = f"{round(share[row, column] * number[row, column])}/{number[row, column]}"
                colour = "white" if share[row, column] > 0.5 else "black" if above[row, column] else OTHER
                axes.text(x, y, text, ha="center", va="center", fontsize=8, color=colour)
    labels = [escape_mathtext(title if len(title) <= 28 else f"{title[:27]}\u2026") for title in titles]
    axes.set_xticks(range(len(columns)), [labels[column] for column in columns], rotation=90, fontsize=8)
    axes.set_yticks(range(len(rows)), [labels[row] for row in rows], fontsize=8)
    axes.tick_params(length=0)
    figure.suptitle(
        f"{name}: near duplicates. How many test queries of a row,\nits answer, rank the column above it", fontsize=9
    )
    return figure


def escape_mathtext(text: str) -> str:
    r"""Escape a text for matplotlib, which would take "From $5 to $\frac" for a formula.

    >>> print(escape_mathtext("a $5 b $6"))
    a \$5 b \$6
    """
    return text.replace("$", r"\$")


def _legend_above(axes: Any, columns: int) -> None:  # noqa: ANN401 - matplotlib's Axes, untyped here
    """Add a legend in one line above the bars."""
    axes.set_ylim(0, 1.14 * axes.get_ylim()[1])
    axes.legend(frameon=False, fontsize="small", loc="upper left", ncols=columns, borderaxespad=0.2)


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes
