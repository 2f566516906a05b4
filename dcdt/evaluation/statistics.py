"""Intervals and tests over unique queries.

The unit of inference is the unique query: average over seeds and folds first (`mean_over_runs`), then resample queries.
(query, run) rows as units give several times too many false positives.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

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
    numbers = _checked(values)
    if len(query_ids) != len(numbers):
        raise ValueError(f"{len(query_ids)} query ids for {len(numbers)} values: one a row is needed")
    names = sorted(set(query_ids))
    row_of = {name: row for row, name in enumerate(names)}
    rows = np.array([row_of[name] for name in query_ids])  # (R,)
    return names, np.bincount(rows, weights=numbers) / np.bincount(rows)  # (U,)


def bootstrap_interval(
    values: ArrayLike, n_resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Compute the percentile bootstrap interval of the mean over queries (Efron 1979), given the training sets.

    Args:
        values: (U,) one value a unique query; for two models, their differences.
        n_resamples: number of resamples.
        level: nominal coverage.
        seed: of the resampling.

    Returns:
        Lower and upper end; (nan, nan) for a single query.

    Raises:
        ValueError: no values, values that are not finite, a level outside (0, 1), n_resamples below 1.
    """
    numbers = _checked(values)
    _check_resampling(n_resamples, level)
    n = len(numbers)
    if n == 1:
        return float("nan"), float("nan")
    generator = np.random.default_rng(seed)
    means = [numbers[generator.integers(0, n, (size, n))].mean(axis=1) for size in _chunks(n_resamples, n)]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_sign_flip(differences: ArrayLike, n_resamples: int = 100_000, seed: int = 0) -> float:
    """Compute a two-sided paired randomisation test of the mean difference: under the null each sign is random.

    Exact where all 2**U sign patterns fit into `n_resamples`; else Monte Carlo with the observed pattern counted in
    (Phipson and Smyth 2010), so that p is never 0. Differences of zero stay in. Sums that agree to rounding are equal.

    Args:
        differences: (U,) model A minus model B, one a unique query (`mean_over_runs` first).
        n_resamples: number of sign patterns drawn, or the maximum that is enumerated.
        seed: of the draws.

    Returns:
        The p-value.

    Raises:
        ValueError: no differences, differences that are not finite, n_resamples below 1.

    >>> paired_sign_flip([1.0, 2.0, 3.0])
    0.25
    """
    numbers = _checked(differences)
    _check_resampling(n_resamples, 0.5)
    n, total = len(numbers), float(numbers.sum())
    limit = abs(total) - _ROUNDING * float(np.abs(numbers).sum())
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
    from scipy.stats import t as student  # only tables across training sets need scipy

    numbers = _checked(fold_differences)
    _check_resampling(1, level)
    if not 0 < test_fraction_over_train < float("inf"):
        raise ValueError(f"n_test / n_train is {test_fraction_over_train}, it must be finite and above 0")
    if len(numbers) == 1:
        return float("nan"), float("nan")
    error = spread(numbers) * (1 / len(numbers) + test_fraction_over_train) ** 0.5
    half = float(student.ppf((1 + level) / 2, df=len(numbers) - 1)) * error
    mean = float(numbers.mean())
    return mean - half, mean + half


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
    return float(_checked(values).std(ddof=1))


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


def _checked(values: ArrayLike) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise ValueError(f"values of shape {numbers.shape}: one dimension with at least 1 value is needed")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{int((~np.isfinite(numbers)).sum())} of {len(numbers)} values are not finite")
    return numbers
