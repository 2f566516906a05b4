"""Units of inference: sets of queries that are not independent of one another.

Queries that share their best positive are one unit, since a model that represents this video well answers all of them:
the population is questions about further videos. The statistic is the sum of all values over the number of queries, so
a resample of units has a varying number of queries.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

MIN_UNITS_TO_FIND = 6  # of 5 units 2 in 32 sign patterns are the most extreme: p is at least 0.0625


def best_positives(query: Rows, position: Rows, grade: ArrayLike) -> tuple[Rows, Rows]:
    """Find the best positive of each query: the highest grade, ties by the lowest position in the order of ties.

    Args:
        query: (P,) query rows of P positives.
        position: (P,) positions of their videos in `tie_order`.
        grade: (P,) their grades.

    Returns:
        The distinct rows of queries, ascending, and the positions of their best positives.

    >>> rows, positions = best_positives(np.array([7, 7, 7, 2]), np.array([4, 3, 1, 0]), [2, 2, 1, 1])
    >>> rows.tolist(), positions.tolist()
    ([2, 7], [0, 3])
    """
    order = np.lexsort((position, -np.asarray(grade, dtype=np.float64), query))
    rows, first = np.unique(query[order], return_index=True)
    return rows, position[order][first]


def unit_totals(values: ArrayLike, units: Sequence[str] | None = None) -> tuple[Floats, Floats]:
    """Sum the values of each unit.

    Args:
        values: (n,) one value a query.
        units: the name of each query's unit; None: each query is a unit of its own.

    Returns:
        Sums and numbers of queries, (G,) each, by name of the unit.

    Raises:
        ValueError: no values, values that are not finite, or another number of names.

    >>> sums, sizes = unit_totals([1.0, 0.5, 0.25], ["b", "a", "b"])
    >>> sums.tolist(), sizes.tolist()
    ([0.5, 1.25], [1.0, 2.0])
    """
    numbers = finite_values(values)
    if units is None:
        return numbers, np.ones(len(numbers))
    if len(units) != len(numbers):
        raise ValueError(f"{len(units)} names of units for {len(numbers)} values: one a query is needed")
    rows = np.unique(np.asarray(units), return_inverse=True)[1]
    sums: Floats = np.bincount(rows, weights=numbers).astype(np.float64)
    return sums, np.bincount(rows).astype(np.float64)


def standard_error(values: ArrayLike, units: Sequence[str] | None = None) -> float:
    """Compute the jackknife standard error of the mean, one unit left out at a time; NaN for a single unit.

    With each query a unit of its own it is the standard deviation over the root of n. With larger units it is the
    cluster-robust CV3, the most reliable one for few units of unequal sizes (MacKinnon, Nielsen and Webb 2023).

    Raises:
        ValueError: as `unit_totals`.

    >>> round(standard_error([1.0, 2.0, 3.0]), 6), round(standard_error([1.0, 1.0, 2.0, 2.0], ["a", "a", "b", "b"]), 6)
    (0.57735, 0.5)
    """
    sums, sizes = unit_totals(values, units)
    if len(sums) == 1:
        return float("nan")
    return jackknife_error((sums.sum() - sums) / (sizes.sum() - sizes), float(sums.sum() / sizes.sum()))


def jackknife_error(without: Floats, value: float) -> float:
    """Compute the standard error of a statistic from its values (G,) with each unit left out."""
    n = len(without)
    return float(np.sqrt((n - 1) / n * np.square(without - value).sum()))


def design_effect(values: ArrayLike, units: Sequence[str]) -> float:
    """Compute how many times the variance of the mean by units is that by queries; NaN for one unit or equal values.

    Raises:
        ValueError: as `unit_totals`.
    """
    by_query = standard_error(values)
    return (standard_error(values, units) / by_query) ** 2 if by_query > 0 else float("nan")


def detectable_difference(differences: ArrayLike, units: Sequence[str] | None = None, power: float = 0.8) -> float:
    """Compute the smallest difference that one two-sided test at 5 % would find with a probability of `power`.

    It is that of a t test with the spread of the given differences by unit. NaN for fewer than 6 units, where the
    sign-flip test can find none, whatever its size.

    Args:
        differences: (n,) model A minus model B, one a query.
        units: the name of each query's unit; None: each query is a unit of its own.
        power: the probability.

    Raises:
        ValueError: as `unit_totals`.
    """
    from scipy.stats import t as student  # only reports need scipy

    n = len(unit_totals(differences, units)[0])
    if n < MIN_UNITS_TO_FIND:
        return float("nan")
    return float((student.ppf(0.975, n - 1) + student.ppf(power, n - 1)) * standard_error(differences, units))


def finite_values(values: ArrayLike) -> Floats:
    """Convert values to an array (n,).

    Raises:
        ValueError: no values, another shape, or values that are not finite.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise ValueError(f"values of shape {numbers.shape}: one dimension with at least 1 value is needed")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{int((~np.isfinite(numbers)).sum())} of {len(numbers)} values are not finite")
    return numbers
