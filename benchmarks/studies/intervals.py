"""How often does a 95 % interval cover, and a test at 5 % err, with few units of unequal sizes?

    python benchmarks/studies/intervals.py [--tables 2000]

Simulated per-query values with a correlation of 0.3 within units of log-normal sizes (tests/support.py): of each
interval the share that covers the true mean, of the sign-flip test the share of false positives by units and by
queries, and how often a difference of `detectable_difference` is found. BCa is not in the package: it covers less.
"""

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

from dcdt.evaluation.statistics import bootstrap_interval, paired_sign_flip, t_interval
from dcdt.evaluation.units import Floats, detectable_difference, standard_error, unit_totals

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from support import correlated_values

UNITS = (5, 9, 20, 42, 168, 750)
N_RESAMPLES = 1_000
N_REFERENCE = 200_000  # units whose mean is the true one


def bca(values: Floats, units: Floats, seed: int) -> tuple[float, float]:
    """Compute the bias-corrected and accelerated bootstrap interval over units (Efron 1987), by scipy."""
    found = bootstrap(
        unit_totals(values, units),
        lambda sums, sizes, axis: sums.sum(axis=axis) / sizes.sum(axis=axis),
        paired=True,
        method="BCa",
        n_resamples=N_RESAMPLES,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return found.low, found.high


def sandwich(values: Floats, units: Floats) -> tuple[float, float]:
    """Compute the t interval with the usual cluster-robust error (CR1) in place of the jackknife's."""
    low, high = t_interval(values, units)
    sums, sizes = unit_totals(values, units)
    n, mean = len(sums), values.mean()
    error = np.sqrt(n / (n - 1) * np.square(sums - mean * sizes).sum()) / sizes.sum()
    half = (high - low) / 2 * error / max(standard_error(values, units), 1e-12)
    return mean - half, mean + half


def coverage(n_units: int, kind: str, n_tables: int) -> dict[str, float]:
    """Compute the share of intervals that cover the true mean, by method."""
    rng = np.random.default_rng([n_units, len(kind)])
    true = correlated_values(np.random.default_rng(0), N_REFERENCE, kind)[0].mean() if kind == "value" else 0.0
    covered: dict[str, int] = {}
    for table in range(n_tables):
        values, units = correlated_values(rng, n_units, kind)
        intervals = {
            "by queries, bootstrap": bootstrap_interval(values, N_RESAMPLES, seed=table),
            "bootstrap": bootstrap_interval(values, N_RESAMPLES, seed=table, units=units),
            "BCa": bca(values, units, table),
            "t, CR1": sandwich(values, units),
            "t, jackknife": t_interval(values, units),
        }
        for name, (low, high) in intervals.items():
            covered[name] = covered.get(name, 0) + (low <= true <= high)
    return {name: n / n_tables for name, n in covered.items()}


def positives(n_units: int, n_tables: int) -> dict[str, float]:
    """Compute the share of p-values below 0.05: without a difference, by units and queries, and with a planted one."""
    rng = np.random.default_rng(n_units)
    drawn = [correlated_values(rng, n_units) for _ in range(n_tables)]
    shift = float(np.median([detectable_difference(values, units) for values, units in drawn]))
    shares = {
        "false positives by units": [paired_sign_flip(values, N_RESAMPLES, units=units) for values, units in drawn],
        "by queries": [paired_sign_flip(values, N_RESAMPLES) for values, _ in drawn],
    }
    if np.isfinite(shift):  # no test of five units finds any
        shares["planted"] = [paired_sign_flip(values + shift, N_RESAMPLES, units=units) for values, units in drawn]
    return {name: float(np.mean([p < 0.05 for p in found])) for name, found in shares.items()}


def main() -> None:
    """Print one table of coverages a kind of value, and one of tests."""
    parser = argparse.ArgumentParser(description="Coverage of intervals and errors of tests, by simulation.")
    parser.add_argument("--tables", type=int, default=2000, help="simulated tables of up to 20 units (default: 2000)")
    given = parser.parse_args()
    warnings.simplefilter("ignore")  # BCa has no interval for units whose values are all equal
    for kind in ("value", "difference"):
        for at, n_units in enumerate(UNITS):
            found = coverage(n_units, kind, given.tables // (1 if n_units < 30 else 2 if n_units < 100 else 5))
            if at == 0:
                print(f"\n| units ({kind}s) | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
            print(f"| {n_units} | {' | '.join(f'{share:.3f}' for share in found.values())} |", flush=True)
    for at, n_units in enumerate(UNITS):
        found = positives(n_units, given.tables if n_units < 100 else 3 * given.tables // 10)
        if at == 0:
            print("\n| units | false positives by units | by queries | planted |\n|---|---|---|---|")
        print(f"| {n_units} | {' | '.join(f'{share:.3f}' for share in found.values())} |", flush=True)


if __name__ == "__main__":
    main()
