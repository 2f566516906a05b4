"""Intervals and tests over units of queries (`dcdt.evaluation.units`).

Average the rows of each query over seeds and folds first (`mean_over_runs`), then resample units. (query, run) rows as
units give several times too many false positives; queries that share their best positive, too narrow intervals.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from dcdt.evaluation.units import Floats, finite_values, standard_error, unit_totals

FEW_UNITS = 50  # below, the percentile bootstrap covers too little (docs/statistics.md)

_CHUNK_CELLS = 2**20  # resampled cells at once: 8 MB of float64
_ROUNDING = 1e-7  # relative: per-query values are float32


def mean_over_runs(query_ids: Sequence[str], values: ArrayLike) -> tuple[list[str], Floats]:
    """Average the rows of each query over seeds and folds, so that a query is one unit.

    Args:
        query_ids: R ids, one a row.
        values: (R,) the metric of that query in one run.

    Returns:
        The U distinct ids, sorted, and their means (U,).

    Raises:
        ValueError: empty or unequal inputs, values that are not finite.

    >>> mean_over_runs(["b", "a", "b"], [0.0, 1.0, 0.5])
    (['a', 'b'], array([1.  , 0.25]))
    """
    numbers = finite_values(values)
    if len(query_ids) != len(numbers):
        raise ValueError(f"{len(query_ids)} query ids for {len(numbers)} values: one a row is needed")
    names = sorted(set(query_ids))
    row_of = {name: row for row, name in enumerate(names)}
    rows = np.array([row_of[name] for name in query_ids])  # (R,)
    return names, np.bincount(rows, weights=numbers) / np.bincount(rows)  # (U,)


def mean_interval(
    values: ArrayLike,
    units: Sequence[str] | None = None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> tuple[float, float]:
    """Compute the 95 % interval of the mean over queries: `bootstrap_interval`, or `t_interval` below 50 units.

    Args:
        values: (n,) one value a query; for two models, their differences.
        units: the name of each query's unit; None: each query is a unit of its own.
        bounds: the lowest and the highest value that a mean can have.

    Returns:
        Lower and upper end; (nan, nan) for a single unit.

    Raises:
        ValueError: as `unit_totals`.
    """
    n_units = len(unit_totals(values, units)[0])
    ends = t_interval(values, units) if n_units < FEW_UNITS else bootstrap_interval(values, units=units)
    low, high = np.clip(ends, *bounds).tolist()
    return low, high


def t_interval(values: ArrayLike, units: Sequence[str] | None = None, level: float = 0.95) -> tuple[float, float]:
    """Compute the t interval of the mean over queries, with the jackknife's standard error and G - 1 degrees.

    Args:
        values: (n,) one value a query.
        units: the name of each query's unit, G in all; None: each query is a unit of its own.
        level: nominal coverage.

    Returns:
        Lower and upper end; (nan, nan) for a single unit.

    Raises:
        ValueError: as `unit_totals`, or a level outside (0, 1).

    >>> [round(end, 3) for end in t_interval([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    """
    _check_resampling(1, level)
    sums, sizes = unit_totals(values, units)
    return t_ends(float(sums.sum() / sizes.sum()), standard_error(values, units), len(sums), level)


def t_ends(value: float, error: float, n_units: int, level: float = 0.95) -> tuple[float, float]:
    """Compute the ends of a t interval from a standard error; (nan, nan) for a single unit."""
    from scipy.stats import t as student  # only intervals of few units or training sets need scipy

    if n_units == 1:
        return float("nan"), float("nan")
    half = float(student.ppf((1 + level) / 2, df=n_units - 1)) * error
    return value - half, value + half


def bootstrap_interval(
    values: ArrayLike,
    n_resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
    units: Sequence[str] | None = None,
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of the mean over queries (Efron 1979), given the training sets.

    Units are resampled with all their queries; the mean of a resample is the sum of its values over the number of its
    queries.

    Args:
        values: (n,) one value a unique query; for two models, their differences.
        n_resamples: number of resamples.
        level: nominal coverage.
        seed: of the resampling.
        units: the name of each query's unit; None: each query is a unit of its own.

    Returns:
        Lower and upper end; (nan, nan) for a single unit.

    Raises:
        ValueError: as `unit_totals`, or a level outside (0, 1), n_resamples below 1.
    """
    sums, sizes = unit_totals(values, units)
    _check_resampling(n_resamples, level)
    n, equal = len(sums), bool((sizes == sizes[0]).all())
    if n == 1:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    means = []
    for size in _chunks(n_resamples, n):
        drawn = generator.integers(0, n, (size, n))
        totals = sums[drawn].sum(axis=1)
        means.append(totals / (n * sizes[0] if equal else sizes[drawn].sum(axis=1)))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_sign_flip(
    differences: ArrayLike, n_resamples: int = 100_000, seed: int = 0, units: Sequence[str] | None = None
) -> float:
    """Compute a two-sided paired randomisation test of the mean difference: under the null each sign is random.

    The signs of a unit's queries flip together. Exact where all 2**G sign patterns fit into `n_resamples`; else Monte
    Carlo with the observed pattern counted in (Phipson and Smyth 2010), so that p is never 0. Differences of zero stay
    in. Sums that agree to rounding are equal.

    Args:
        differences: (n,) model A minus model B, one a unique query (`mean_over_runs` first).
        n_resamples: number of sign patterns drawn, or the maximum that is enumerated.
        seed: of the draws.
        units: the name of each query's unit, G in all; None: each query is a unit of its own.

    Returns:
        The p-value.

    Raises:
        ValueError: as `unit_totals`, or n_resamples below 1.

    >>> paired_sign_flip([1.0, 2.0, 3.0]), paired_sign_flip([1.0, 2.0, 3.0], units=["a", "a", "b"])
    (0.25, 0.5)
    """
    numbers = unit_totals(differences, units)[0]
    _check_resampling(n_resamples, 0.5)
    n, total = len(numbers), float(numbers.sum())
    limit = abs(total) - _ROUNDING * float(np.abs(finite_values(differences)).sum())
    exact = 2**n <= n_resamples
    generator = np.random.default_rng(seed)
    extreme = start = 0
    for size in _chunks(2**n if exact else n_resamples, n):
        signs = _all_patterns(start, size, n) if exact else _random_patterns(generator, size, n)  # (size, U)
        flipped = 2 * (signs @ numbers) - total  # (size,) sum with the signs of the pattern
        extreme += int((np.abs(flipped) >= limit).sum())
        start += size
    return extreme / 2**n if exact else (extreme + 1) / (n_resamples + 1)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p-values of one family for many comparisons (Holm 1979).

    Args:
        p_values: name -> p-value; an empty family stays empty.

    Returns:
        name -> adjusted p-value, in the order given: at least the raw one, at most 1, in the same order of size.

    Raises:
        ValueError: a p-value outside [0, 1].

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(f"the p-value of '{name}' is {p}, it must lie between 0 and 1")
    adjusted, highest = {}, 0.0
    for i, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - i) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def nadeau_bengio_interval(
    fold_differences: ArrayLike, test_fraction_over_train: float, level: float = 0.95
) -> tuple[float, float]:
    """Compute the corrected resampled t interval of a difference across training sets (Nadeau and Bengio 2003).

    The training sets of different folds overlap, so the variance of the mean is s**2 (1/K + n_test / n_train) rather
    than s**2 / K.

    Args:
        fold_differences: (K,) mean difference of each fold.
        test_fraction_over_train: n_test / n_train, for example 1/9 for ten folds.
        level: nominal coverage.

    Returns:
        Lower and upper end; (nan, nan) for a single fold.

    Raises:
        ValueError: no folds, differences that are not finite, a ratio that is not above 0, a level outside (0, 1).
    """
    numbers = finite_values(fold_differences)
    _check_resampling(1, level)
    if not 0 < test_fraction_over_train < float("inf"):
        raise ValueError(f"n_test / n_train is {test_fraction_over_train}, it must be finite and above 0")
    error = spread(numbers) * (1 / len(numbers) + test_fraction_over_train) ** 0.5
    return t_ends(float(numbers.mean()), error, len(numbers), level)


def non_inferior(low: float, margin: float = 0.02) -> bool:
    """Return whether a model is non-inferior: the lower end of the difference's interval is above -margin.

    False for NaN.

    Raises:
        ValueError: a margin below 0.
    """
    if not margin >= 0:
        raise ValueError(f"the margin is {margin}, it must be at least 0")
    return low > -margin


def spread(values: ArrayLike) -> float:
    """Compute the sample standard deviation over folds and seeds (divisor K - 1); NaN for fewer than two runs.

    Raises:
        ValueError: values that are not finite.
    """
    if np.size(np.asarray(values)) < 2:
        return float("nan")
    return float(finite_values(values).std(ddof=1))


def _all_patterns(start: int, size: int, n: int) -> Floats:
    """Make sign patterns `start` to `start + size` as zeros and ones: bit j of the number is 1 if sign j is kept."""
    numbers = np.arange(start, start + size)[:, None]  # (size, 1)
    return ((numbers >> np.arange(n)) & 1).astype(np.float64)  # (size, U)


def _random_patterns(generator: np.random.Generator, size: int, n: int) -> Floats:
    raw = np.frombuffer(generator.bytes((size * n + 7) // 8), dtype=np.uint8)
    return np.unpackbits(raw, count=size * n).reshape(size, n).astype(np.float64)  # (size, U)


def _chunks(n_resamples: int, n: int) -> list[int]:
    """Divide `n_resamples` into sizes of about `_CHUNK_CELLS` / n."""
    step = max(1, _CHUNK_CELLS // n)
    return [min(step, n_resamples - start) for start in range(0, n_resamples, step)]


def _check_resampling(n_resamples: int, level: float) -> None:
    if n_resamples < 1:
        raise ValueError(f"n_resamples is {n_resamples}, it must be at least 1")
    if not 0 < level < 1:
        raise ValueError(f"the level is {level}, it must lie between 0 and 1")
