"""What can each collection detect, and would overlapping positives change the intervals?

    python benchmarks/studies/detectable.py FOLDER [FOLDER ...] [--metric ndcg@10]

Each FOLDER is a sweep over folds with model=zero_shot and others (outputs/sweeps/NAME). A row a sweep: queries, units,
the largest unit, the design effect of zero_shot's mean and the median one of the differences to zero_shot, the smallest
difference to it that one test at 5 % finds with a probability of 0.8, and the standard errors of the differences over
those with queries as units: by units, and by the Jaccard overlap of two queries' positives as the weight of their
covariance, for which the collection is read.
"""

import argparse
from collections import Counter
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from dcdt.data.types import positives_by_query
from dcdt.evaluation.units import Floats, design_effect, standard_error
from dcdt.reporting.cells import per_query, units_by_query
from dcdt.reporting.tables import Report, make_report
from dcdt.reporting.units import load_unchanged_collection
from dcdt.runs.reader import read_runs


def jaccard_error(values: Floats, positives: list[list[int]]) -> float:
    """Compute the standard error of a mean whose values covary by the Jaccard overlap of their sets of positives.

    Args:
        values: (n,) one value a query.
        positives: video rows of each query, at least one.
    """
    lengths = [len(set(rows)) for rows in positives]
    columns = np.concatenate([sorted(set(rows)) for rows in positives])
    belongs = csr_matrix((np.ones(len(columns)), columns, np.cumsum([0, *lengths])))  # (n, N)
    shared = (belongs @ belongs.T).toarray()
    overlap = shared / (np.add.outer(lengths, lengths) - shared)  # (n, n), 1 on the diagonal
    n, rest = len(values), values - values.mean()
    return float(np.sqrt(max(0.0, rest @ overlap @ rest) / (n * (n - 1))))


def row(report: Report) -> str:
    """Format the row of one sweep.

    Raises:
        UserError: no zero_shot run, or a collection that is not unchanged at its path.
    """
    reference = report.reference
    assert reference is not None, "a run of model=zero_shot is needed"
    collection, reason = load_unchanged_collection(reference.runs[0])
    assert collection is not None, reason
    theirs, unit_of = per_query(reference.runs, report.metric), units_by_query(reference.runs)
    names = list(theirs)
    units, sizes = [unit_of[name] for name in names], Counter(unit_of[name] for name in names)
    positives = positives_by_query(collection.positives, len(collection.queries))
    rows = [positives[collection.queries.row_of[name]] for name in names]
    by_unit, by_overlap, effects = [], [], []
    for variant in report.variants:
        ours = per_query(variant.runs, report.metric) if variant.runs else {}
        if variant is reference or ours.keys() != theirs.keys():
            continue
        gaps = np.array([ours[name] - theirs[name] for name in names])
        by_unit.append(standard_error(gaps, units) / standard_error(gaps))
        by_overlap.append(jaccard_error(gaps, rows) / standard_error(gaps))
        effects.append(design_effect(gaps, units))
    found = [one.detectable for one in report.comparisons if one.reference == reference.label]
    cells = [
        str(report.metadata["collection"]),
        f"{len(names):,}",
        f"{len(sizes):,} ({max(sizes.values())})",
        f"{design_effect(list(theirs.values()), units):.2f}",
        f"{np.median(effects):.2f}",
        f"{np.median(found):.3f} ({min(found):.3f} to {max(found):.3f})",
        f"{np.median(by_unit):.2f}",
        f"{np.median(by_overlap):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description="The smallest difference that each collection can detect.")
    parser.add_argument("folders", type=Path, nargs="+", help="sweeps over folds, with model=zero_shot")
    parser.add_argument("--metric", help="such as ndcg@10 (default: the primary metric)")
    given = parser.parse_args()
    print(
        "| collection | queries | units (largest) | design effect | of a difference | found | by units | by overlap |"
    )
    print(f"|{'---|' * 8}")
    for folder in given.folders:
        print(row(make_report(read_runs([folder]), given.metric)), flush=True)


if __name__ == "__main__":
    main()
