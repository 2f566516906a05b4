"""Figures of a finished run."""

from typing import Any

import torch

from dcdt.evaluation.duplicates import closest_pairs, confusion
from dcdt.reporting.run_figures import confusion_map, projection
from dcdt.training.callbacks.samples import topics
from dcdt.training.outcome import Outcome
from dcdt.utils.precision import at_least_float32

N_DUPLICATES = 8  # pairs of near duplicates in the figure


def figures_of(outcome: Outcome) -> dict[str, Any]:
    """The run's own figures, the videos in two dimensions, and which near duplicates are confused."""
    figures, model, name = dict(outcome.figures), outcome.model, outcome.settings.option
    with torch.no_grad():
        if model.decoupled:
            figures["videos"] = projection(model.video_vectors().cpu(), topics(outcome.data.collection), name)
        scores = outcome.results["test"].scores
        if scores is not None:
            figures["duplicates"] = _duplicates(outcome, scores)
    return {name: figure for name, figure in figures.items() if figure is not None}


def _duplicates(outcome: Outcome, scores: torch.Tensor) -> Any:  # noqa: ANN401 - a figure
    """A figure of which near duplicates the model confuses; scores (n, N) of the test side."""
    side, collection = outcome.data.sides["test"], outcome.data.collection
    candidates = side.candidates.nonzero().squeeze(1)
    frozen = at_least_float32(outcome.model.tables.frozen).cpu()
    pairs = candidates[closest_pairs(frozen[candidates], N_DUPLICATES)]  # (P, 2)
    videos = torch.tensor(list(dict.fromkeys(pairs.flatten().tolist())))
    judged = side.judged.masked_fill(side.grades < collection.positive_grade, -1)
    positive = torch.zeros(len(judged), scores.shape[1] + 1, dtype=torch.bool)
    positive = positive.scatter_(1, judged % positive.shape[1], True)[:, :-1]
    fractions, counts = confusion(scores, positive, videos)
    titles = [collection.videos.titles[row] or collection.videos.ids[row] for row in videos.tolist()]
    return confusion_map(fractions.numpy(), counts.numpy(), titles, outcome.settings.option)
