"""The family of paired tests of a report: differences between models, Holm-corrected, with a verdict each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dcdt.evaluation.statistics import holm, nadeau_bengio_interval, non_inferior, paired_sign_flip
from dcdt.evaluation.units import design_effect, detectable_difference
from dcdt.reporting.cells import NAN, Number, mean_with_interval, per_query, units_by_query
from dcdt.reporting.variants import Variant
from dcdt.runs.reader import Run

ALPHA, MARGIN = 0.05, 0.02


@dataclass(frozen=True)
class Comparison:
    """A paired test of the family: `model` minus `reference` on the n queries both were tested on.

    `p`, `adjusted` and `verdict` are by units; `adjusted_by_query` and `verdict_by_query` have queries as units.
    """

    model: str
    reference: str
    n: int
    difference: Number
    p: float
    adjusted: float
    corrected: Number  # mean over folds with its Nadeau-Bengio interval; NaN for fewer than two folds
    verdict: str
    n_units: int
    design_effect: float  # the variance of the difference by units over that by queries
    detectable: float  # the smallest difference that one test at 5 % finds with a probability of 0.8
    adjusted_by_query: float
    verdict_by_query: str


def compare(pairs: Sequence[tuple[Variant, Variant]], metric: str) -> list[Comparison]:
    """Compute the paired sign-flip tests of one family, Holm-corrected, in the order of the pairs.

    Args:
        pairs: (model, reference); they are compared on common folds, and left out without one.
        metric: the primary metric.
    """
    compared = []
    for model, reference in pairs:
        gaps, units = paired_gaps(model, reference, metric)
        if len(gaps):
            compared.append((model, reference, gaps, units))
    raw = {str(i): paired_sign_flip(gaps, units=units) for i, (_, _, gaps, units) in enumerate(compared)}
    by_query = {
        str(i): raw[str(i)] if len(set(units)) == len(units) else paired_sign_flip(gaps)
        for i, (_, _, gaps, units) in enumerate(compared)
    }
    adjusted, adjusted_by_query = holm(raw), holm(by_query)
    comparisons = []
    for i, (model, reference, gaps, units) in enumerate(compared):
        difference = mean_with_interval(gaps, units, signed=True)
        p, p_by_query = adjusted[str(i)], adjusted_by_query[str(i)]
        low, high = difference.by_query
        comparisons.append(
            Comparison(
                model.label,
                reference.label,
                len(gaps),
                difference,
                raw[str(i)],
                p,
                across_training_sets(model, reference, metric),
                make_verdict(difference, p),
                len(set(units)),
                design_effect(gaps, units),
                detectable_difference(gaps, units),
                p_by_query,
                make_verdict(replace(difference, low=low, high=high), p_by_query),
            )
        )
    return comparisons


def paired_gaps(
    model: Variant, reference: Variant, metric: str, warm: str = ""
) -> tuple[NDArray[np.float64], list[str]]:
    """Compute the differences of two variants on the queries that both were tested on, in common folds.

    Args:
        model: the minuend.
        reference: what is subtracted.
        metric: such as `mrr`.
        warm: only rows where the query was warm, cold or mixed.

    Returns:
        (n,) differences by query, and the names of their units; both empty without a common query.
    """
    shared = set(model.folds) & set(reference.folds)
    runs, others = ([run for run in variant.runs if run.fold in shared] for variant in (model, reference))
    gaps, unit_of = _gaps(runs, others, metric, warm), units_by_query(model.runs)
    return np.array([*gaps.values()]), [unit_of[name] for name in gaps]


def _gaps(runs: Sequence[Run], others: Sequence[Run], metric: str, warm: str = "") -> dict[str, float]:
    """Compute the difference of each query that both sets of runs tested, by id in order; empty without one."""
    ours, theirs = (per_query(side, metric, warm=warm) if side else {} for side in (runs, others))
    return {name: ours[name] - theirs[name] for name in sorted(ours.keys() & theirs.keys())}


def difference_cell(model: Variant, reference: Variant, metric: str, warm: str) -> Number | None:
    """Compute the mean difference on warm, cold or mixed queries with its interval by units; None without a query."""
    gaps, units = paired_gaps(model, reference, metric, warm)
    return mean_with_interval(gaps, units, signed=True) if len(gaps) else None


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
        runs, others = ([run for run in variant.runs if run.fold == fold] for variant in (model, reference))
        gap_of, counts = _gaps(runs, others, metric), runs[0].provenance.get("queries", {})
        if gap_of and counts.get("train"):
            gaps.append(float(np.mean([*gap_of.values()])))
            ratios.append(counts["test"] / counts["train"])
    if len(gaps) < 2:
        return Number(NAN, signed=True)
    return Number(float(np.mean(gaps)), *nadeau_bengio_interval(gaps, float(np.mean(ratios))), signed=True)
