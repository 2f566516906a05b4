"""The family of paired tests of a report: differences between models, Holm-corrected, with a verdict each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dcdt.evaluation.statistics import (
    bootstrap_interval,
    holm,
    nadeau_bengio_interval,
    non_inferior,
    paired_sign_flip,
)
from dcdt.reporting.cells import NAN, Number, per_query
from dcdt.reporting.variants import Variant

ALPHA, MARGIN = 0.05, 0.02


@dataclass(frozen=True)
class Comparison:
    """A paired test of the family: `model` minus `reference` on the n queries both were tested on."""

    model: str
    reference: str
    n: int
    difference: Number
    p: float
    adjusted: float
    corrected: Number  # mean over folds with its Nadeau-Bengio interval; NaN for fewer than two folds
    verdict: str


def compare(pairs: Sequence[tuple[Variant, Variant]], metric: str) -> list[Comparison]:
    """Compute the paired sign-flip tests of one family, Holm-corrected, in the order of the pairs.

    Args:
        pairs: (model, reference); they are compared on common folds, and left out without one.
        metric: the primary metric.
    """
    pairs_with_gaps = []
    for model, reference in pairs:
        shared = set(model.folds) & set(reference.folds)
        sides = ([run for run in variant.runs if run.fold in shared] for variant in (model, reference))
        ours, theirs = (per_query(runs, metric) if runs else {} for runs in sides)
        common = sorted(ours.keys() & theirs.keys())
        if common:
            pairs_with_gaps.append((model, reference, np.array([ours[name] - theirs[name] for name in common])))
    raw = {str(i): paired_sign_flip(gaps) for i, (_, _, gaps) in enumerate(pairs_with_gaps)}
    adjusted = holm(raw)
    comparisons = []
    for i, (model, reference, gaps) in enumerate(pairs_with_gaps):
        low, high = bootstrap_interval(gaps)
        difference = Number(float(gaps.mean()), low, high, signed=True)
        p = adjusted[str(i)]
        corrected = across_training_sets(model, reference, metric)
        verdict = make_verdict(difference, p)
        comparisons.append(
            Comparison(model.label, reference.label, len(gaps), difference, raw[str(i)], p, corrected, verdict)
        )
    return comparisons


def make_verdict(difference: Number, p: float) -> str:
    """Classify a difference.

    >>> make_verdict(Number(0.1, 0.05, 0.15), 0.01), make_verdict(Number(0.0, -0.01, 0.01), 1.0)
    ('better', 'non-inferior')
    """
    if p < ALPHA:
        return "better" if difference.value > 0 else "worse"
    return "non-inferior" if non_inferior(difference.low, MARGIN) else "no difference shown"


def across_training_sets(model: Variant, reference: Variant, metric: str) -> Number:
    """Compute the mean difference over common folds with its Nadeau-Bengio interval; NaN for fewer than two."""
    gaps, ratios = [], []
    for fold in sorted(set(model.folds) & set(reference.folds)):
        sides = [[run for run in variant.runs if run.fold == fold] for variant in (model, reference)]
        ours, theirs = (per_query(runs, metric) for runs in sides)
        common = sorted(ours.keys() & theirs.keys())
        counts = sides[0][0].provenance.get("queries", {})
        if common and counts.get("train"):
            gaps.append(float(np.mean([ours[name] - theirs[name] for name in common])))
            ratios.append(counts["test"] / counts["train"])
    if len(gaps) < 2:
        return Number(NAN, signed=True)
    return Number(float(np.mean(gaps)), *nadeau_bengio_interval(gaps, float(np.mean(ratios))), signed=True)
