"""Figures of one run: loss curve, the distribution of scores, the videos in two dimensions, near duplicates."""

from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

BLUE, ORANGE, GREY = "#3b6fb6", "#d9822b", "#666666"


def run_figures(history: list[dict[str, float]], pairs: Tensor | None, name: str) -> dict[str, Any]:
    """Figures by name: `loss` where something was trained, `scores` where the split has a pair file."""
    figures: dict[str, Any] = {}
    if history:
        figures["loss"] = loss_curve(history, name)
    if pairs is not None and len(pairs):
        figures["scores"] = score_distribution(pairs.numpy(), name)
    return figures


def loss_curve(history: list[dict[str, float]], name: str) -> Figure:
    """Training loss and validation MRR per epoch."""
    figure, axes = _axes()
    epochs = [row["epoch"] + 1 for row in history]
    axes.plot(epochs, [row["train/loss"] for row in history], color=BLUE)
    axes.set(xlabel="epoch", title=f"{name}: training loss and validation MRR")
    axes.set_ylabel("training loss", color=BLUE)
    axes.set_ylim(bottom=0)
    validated = [row for row in history if "val/mrr" in row]
    if validated:
        right = axes.twinx()
        right.plot([row["epoch"] + 1 for row in validated], [row["val/mrr"] for row in validated], color=ORANGE)
        right.set_ylabel("validation MRR", color=ORANGE)
        right.set_ylim(0, 1)
        right.spines["top"].set_visible(False)
    return figure


def score_distribution(pairs: np.ndarray, name: str) -> Figure:
    """Share of positives and of negatives of the test pairs by score; `pairs` is (m, 2) of score and label."""
    figure, axes = _axes()
    positive = pairs[:, 1] > 0.5
    bins = np.histogram_bin_edges(pairs[:, 0], bins=30).tolist()
    for chosen, label, colour in ((~positive, "negatives", GREY), (positive, "positives", BLUE)):
        weights = np.full(int(chosen.sum()), 1 / max(1, chosen.sum()))
        axes.hist(pairs[chosen, 0], bins, weights=weights, alpha=0.6, color=colour, label=f"{label} ({chosen.sum()})")
    axes.set(xlabel="score", ylabel="share of pairs", title=f"{name}: scores of the test pairs")
    axes.legend(frameon=False)
    return figure


def projection(vectors: Tensor, topics: list[str], name: str) -> Figure:
    """The videos (N, W) on their two principal components, coloured by topic."""
    figure, axes = _axes()
    centred = vectors.double() - vectors.double().mean(0)
    if len(vectors) > 2 and vectors.shape[1] > 1:
        with torch.random.fork_rng(devices=[]):  # a randomised method; the same picture each time
            torch.manual_seed(0)
            _, spread, axis = torch.svd_lowrank(centred, q=min(6, *centred.shape), niter=4)
        spread, axis = spread[:2], axis[:, :2]
        flat, shown = (centred @ axis).numpy(), spread.square() / centred.square().sum().clamp(min=1e-12)
    else:
        flat, shown = np.zeros((len(vectors), 2)), torch.zeros(2)
    for at, topic in enumerate(sorted(set(topics))):
        here = [topic == other for other in topics]
        axes.scatter(
            flat[here, 0], flat[here, 1], s=18, color=f"C{at}", label=f"{as_written(topic[:30])} ({sum(here)})"
        )
    labels = [f"component {at + 1} ({float(part):.0%})" for at, part in enumerate(shown)]
    axes.set(xlabel=labels[0], ylabel=labels[1], title=f"{name}: the videos")
    axes.legend(frameon=False, fontsize="x-small")
    return figure


def confusion_map(share: np.ndarray, number: np.ndarray, titles: list[str], name: str) -> Figure:
    """How often (M, M) the video of a column stands above that of the row, which answers; with numbers of queries."""
    figure, axes = _axes()
    axes.grid(False)
    axes.imshow(np.ma.masked_invalid(share), cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(number), strict=True):
        text = f"{round(share[row, column] * number[row, column])}/{number[row, column]}"
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, text, ha="center", va="center", fontsize=5, color=colour)
    short = [as_written(title if len(title) <= 28 else f"{title[:27]}\u2026") for title in titles]
    axes.set_xticks(range(len(short)), short, rotation=90, fontsize=5)
    axes.set_yticks(range(len(short)), short, fontsize=5)
    axes.set_title(f"{name}: test queries that rank a column's video above the row's, their answer", fontsize=7)
    return figure


def as_written(text: str) -> str:
    r"""Text that matplotlib shows as it is; a title such as "From $5 to $\frac" would be taken for a formula.

    >>> print(as_written("a $5 b $6"))
    a \$5 b \$6
    """
    return text.replace("$", r"\$")


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes
