"""The units of inference of a report: read from its runs, described in its captions."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dcdt.data.beir import load_collection
from dcdt.data.types import Collection
from dcdt.data.units import query_units
from dcdt.evaluation.ties import tie_positions
from dcdt.evaluation.units import design_effect
from dcdt.reporting.cells import per_query, units_by_query
from dcdt.reporting.comparisons import Comparison
from dcdt.reporting.table_types import metric_name
from dcdt.reporting.variants import Variant
from dcdt.runs.reader import Run, SideScores
from dcdt.utils.errors import UserError

NO_UNITS = (
    "not known (runs of version 0.1 name none, and their collection is not unchanged at its path), so that each query "
    "is one and intervals may be too narrow"
)


def fill_units(runs: list[Run]) -> tuple[list[Run], str]:
    """Fill in the units of runs of version 0.1, which name none, from the other runs or from their collection.

    Returns:
        The runs, and a note where units are not known: each query is then a unit of its own.
    """
    lacking = [run for run in runs if any(not side.units for side in run.sides.values())]
    if not lacking:
        return runs, ""
    known: dict[str, str] = {}
    for run in runs:
        for side in run.sides.values():
            known.update(zip(side.ids, side.units, strict=bool(side.units)))
    if any(name not in known for run in lacking for side in run.sides.values() for name in side.ids):
        collection, _ = load_unchanged_collection(lacking[0])
        if collection is None:
            return runs, NO_UNITS
        known |= dict(
            zip(collection.queries.ids, query_units(collection, tie_positions(collection.videos.ids)), strict=True)
        )

    def filled(side: SideScores) -> SideScores:
        return replace(side, units=[known.get(name, name) for name in side.ids])

    return [replace(run, sides={name: filled(side) for name, side in run.sides.items()}) for run in runs], ""


def load_unchanged_collection(run: Run) -> tuple[Collection | None, str]:
    """Load the collection of a run if it is unchanged at its path; else return why not."""
    path = Path(str(run.config["data"]["path"]))
    try:
        collection = load_collection(path, run.config["data"].get("own_video", "same_text"))
    except (UserError, OSError):
        return None, f"no collection can be read at {path}."
    if collection.fingerprint != run.provenance.get("collection_fingerprint"):
        return None, f"the collection at {path} has changed since the runs."
    return collection, ""


def describe_units(variant: Variant, metric: str, note: str) -> str:
    """Describe the units of a variant's test queries, and the design effect of its metric."""
    units = units_by_query(variant.runs)
    sizes = Counter(units.values())
    if note:
        return note
    if len(sizes) == len(units):
        return f"{len(sizes)}, each query one of its own"
    values = per_query(variant.runs, metric)
    effect = design_effect(list(values.values()), [units[name] for name in values])
    return (
        f"{len(sizes)} (queries that share their best positive), the largest of {max(sizes.values())} queries; design "
        f"effect {effect:.2f} (the variance of the {metric_name(metric)} of {variant.label} by units over that by "
        "queries)"
    )


def describe_detectable(comparisons: Sequence[Comparison], reference: str, metric: str) -> str:
    """Describe the smallest difference that the tests against a reference would find; empty without any."""
    values = [one.detectable for one in comparisons if one.reference == reference]
    values = [value for value in values if np.isfinite(value)]
    if not values:
        return ""
    return (
        f"{np.median(values):.3f} in {metric_name(metric)} (the median of the tests against {reference}; "
        f"{min(values):.3f} to {max(values):.3f}), with a probability of 0.8 by one test at 5 %, uncorrected"
    )
