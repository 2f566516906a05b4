"""Cells of a report's tables: a number with its interval, for ranking metrics and for the pair protocol."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dcdt.evaluation.lists import LIST_METRICS
from dcdt.evaluation.statistics import FEW_UNITS, mean_interval, mean_over_runs, spread, t_ends
from dcdt.evaluation.units import jackknife_error
from dcdt.runs.reader import PairScores, Run

Floats = NDArray[np.float64]
NAN = float("nan")
PAIR_METRICS = ("accuracy", "precision", "recall", "f1", "auroc")
N_RESAMPLES, CHUNK = 2_000, 500  # of the pair protocol


@dataclass(frozen=True)
class Number:
    """A cell: a value with its interval and its spread over runs, NaN if unknown, and its format."""

    value: float
    low: float = NAN
    high: float = NAN
    spread: float = NAN
    digits: int = 3
    signed: bool = False
    best: bool = False
    floor: bool = False  # print what rounds to zero as "<0.001", for p-values
    by_query: tuple[float, ...] = ()  # with queries as units: the ends of the interval, or the p-value

    def text(self, value: float | None = None) -> str:
        """Format a value, by default the cell's own, at the precision of the cell.

        >>> Number(0.12345).text(), Number(0.5, signed=True).text()
        ('0.123', '+0.500')
        >>> Number(0.00001, digits=4, floor=True).text()
        '<0.0001'
        """
        printed = self.value if value is None else value
        if self.floor and 0 < printed < 0.5 * 10**-self.digits:
            return f"<{10**-self.digits:.{self.digits}f}"
        return f"{printed:{'+' if self.signed else ''}{',' if self.digits == 0 else ''}.{self.digits}f}"


def per_query(runs: Sequence[Run], metric: str, side: str = "test", kind: str = "", warm: str = "") -> dict[str, float]:
    """Compute each query's mean over seeds, and over folds if it was tested more than once, by id.

    Args:
        runs: the finished runs of a variant.
        metric: such as `mrr`.
        side: `test` or an extra side.
        kind: only queries of this kind.
        warm: only rows where the query was warm, cold or mixed.
    """
    ids: list[str] = []
    values: list[float] = []
    for scores in (run.sides[side] for run in runs if side in run.sides):
        rows = zip(scores.ids, scores.kinds, scores.warm, scores.values[metric], strict=True)
        for name, its_kind, its_warm, value in rows:
            if (not kind or its_kind == kind) and (not warm or its_warm == warm):
                ids.append(name)
                values.append(float(value))
    if not ids:
        return {}
    names, means = mean_over_runs(ids, values)
    return dict(zip(names, means.tolist(), strict=True))


def ranking_cell(runs: Sequence[Run], metric: str, side: str = "test", kind: str = "", warm: str = "") -> Number | None:
    """Compute the mean over unique queries, its interval by units, and the spread over runs; None without a query."""
    values = per_query(runs, metric, side, kind, warm)
    if not values:
        return None
    unit_of = units_by_query(runs, side)
    number = mean_with_interval(list(values.values()), [unit_of[name] for name in values])
    by_run = [per_query([run], metric, side, kind, warm).values() for run in runs]
    means = [float(np.mean(list(values_of_run))) for values_of_run in by_run if values_of_run]
    return replace(number, spread=spread(means))


def largest_k(runs: Sequence[Run]) -> int:
    """Return the largest number of places that the runs of a report are scored at."""
    return max(int(k) for k in runs[0].config["ks"])


def list_cells(runs: Sequence[Run]) -> dict[str, Number]:
    """Compute the mean over runs of each of LIST_METRICS at the largest k; empty where a run has none."""
    k, cells = largest_k(runs), {}
    for name in LIST_METRICS:
        values = [run.metrics[key] for run in runs if (key := f"test/{name}@{k}") in run.metrics]
        if len(values) == len(runs):
            cells[f"{name}@{k}"] = Number(float(np.mean(values)), spread=spread(values))
    return cells


def units_by_query(runs: Sequence[Run], side: str = "test") -> dict[str, str]:
    """Return the unit of each query, by id; a query of a run that names no units is one of its own."""
    sides = [run.sides[side] for run in runs if side in run.sides]
    return {name: unit for scores in sides for name, unit in zip(scores.ids, scores.units or scores.ids, strict=True)}


def mean_with_interval(values: Sequence[float] | Floats, units: Sequence[str], signed: bool = False) -> Number:
    """Compute the mean over queries with its 95 % interval by units, and beside it that by queries.

    Args:
        values: (n,) one value a query, of a metric between 0 and 1.
        units: (n,) names.
        signed: values are differences.
    """
    bounds = (-1.0 if signed else 0.0, 1.0)
    ends = mean_interval(values, units, bounds)
    by_query = mean_interval(values, None, bounds) if len(set(units)) < len(units) else ends
    return Number(float(np.mean(values)), *ends, signed=signed, by_query=by_query)


def pair_cells(runs: Sequence[Run]) -> dict[str, Number]:
    """Compute accuracy, precision, recall, F1 and AUROC of the pair protocol; empty if a run has no pairs.

    The test pairs of all folds are pooled per seed, each accepted or not at its own run's threshold, and the seeds are
    averaged. AUROC compares only pairs that one run scored: the scores of two folds' models are on two scales.
    Intervals resample units with all their pairs, or leave them out one at a time where they are few.
    """
    if any(run.pairs is None or not len(run.pairs.labels) for run in runs):
        return {}
    seeds: dict[int, list[PairScores]] = {}
    for run in runs:
        assert run.pairs is not None
        seeds.setdefault(run.seed, []).append(run.pairs)
    unit_of = units_by_query(runs)
    queries = sorted({name for seed_pairs in seeds.values() for pairs in seed_pairs for name in pairs.queries})
    by_unit = {name: unit_of.get(name, name) for name in queries}
    values, ends = _pair_intervals(list(seeds.values()), by_unit)
    by_query = ends
    if len(set(by_unit.values())) < len(queries):
        by_query = _pair_intervals(list(seeds.values()), {name: name for name in queries})[1]
    single = [
        _mean_over_seeds([_FoldPool([_UnitCounts(run.pairs, dict.fromkeys(queries, 0))])], None)
        for run in runs
        if run.pairs
    ]
    return {
        name: Number(
            float(values[i]),
            float(ends[i, 0]),
            float(ends[i, 1]),
            spread([float(run_values[i, 0]) for run_values in single]),
            by_query=(float(by_query[i, 0]), float(by_query[i, 1])),
        )
        for i, name in enumerate(PAIR_METRICS)
    }


def _pair_intervals(seeds: list[list[PairScores]], unit_of: dict[str, str]) -> tuple[Floats, Floats]:
    """Compute the five metrics (5,) and the ends of their intervals (5, 2)."""
    units = sorted(set(unit_of.values()))
    unit_rows = {name: row for row, name in enumerate(units)}
    row_of = {name: unit_rows[unit] for name, unit in unit_of.items()}
    pools = [_FoldPool([_UnitCounts(pairs, row_of) for pairs in seed_pairs]) for seed_pairs in seeds]
    values, n = _mean_over_seeds(pools, None)[:, 0], len(units)
    if n == 1:
        return values, np.full((len(values), 2), NAN)
    if n < FEW_UNITS:
        without = _mean_over_seeds(pools, 1 - np.eye(n))  # (5, G), each with one unit left out
        ends = [t_ends(value, jackknife_error(row, value), n) for row, value in zip(without, values, strict=True)]
        return values, np.clip(ends, 0, 1)
    generator, resampled = np.random.default_rng(0), []
    for start in range(0, N_RESAMPLES, CHUNK):
        size = min(CHUNK, N_RESAMPLES - start)
        drawn = generator.integers(0, n, (size, n)) + np.arange(size)[:, None] * n
        weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, -1).astype(np.float64)
        resampled.append(_mean_over_seeds(pools, weights))
    return values, np.nanquantile(np.concatenate(resampled, axis=1), [0.025, 0.975], axis=1).T


class _UnitCounts:
    """The pairs of one run counted by unit, so that a resample of units is a product with weights.

    Args:
        pairs: of one run.
        row_of: the row of each query's unit, by id.
    """

    def __init__(self, pairs: PairScores, row_of: dict[str, int]) -> None:
        rows = np.array([row_of[name] for name in pairs.queries])  # (m,)
        self.rows, index = np.unique(rows, return_inverse=True)  # (q,), (m,)
        n, labels, accepted = len(self.rows), pairs.labels, pairs.accepted
        cases = (labels & accepted, ~labels & accepted, labels & ~accepted, ~labels & ~accepted)
        self.cases = np.stack([np.bincount(index[case], minlength=n) for case in cases], axis=1)  # (q, 4)
        self.wins = np.zeros((n, n))  # positives of one unit over negatives of another, ties half
        negatives, negative_index = pairs.scores[~labels], index[~labels]
        for score, unit in zip(pairs.scores[labels], index[labels], strict=True):
            won = (negatives < score) + 0.5 * (negatives == score)
            self.wins[unit] += np.bincount(negative_index, weights=won, minlength=n)
        self.positives, self.negatives = (np.bincount(index[case], minlength=n) for case in (labels, ~labels))


class _FoldPool:
    """The pairs of all folds of one seed."""

    def __init__(self, folds: list[_UnitCounts]) -> None:
        self.folds = folds

    def metrics(self, weights: Floats | None) -> Floats:
        """Compute the five metrics (5, r) with weights of units (r, G); None: each unit once."""
        fold_weights = [
            np.ones((1, len(fold.rows))) if weights is None else weights[:, fold.rows] for fold in self.folds
        ]
        weighted_folds = list(zip(fold_weights, self.folds, strict=True))  # (r, q) weights and counts of one fold
        cases = np.sum([w @ fold.cases for w, fold in weighted_folds], axis=0)  # (r, 4)
        wins = np.sum([((w @ fold.wins) * w).sum(1) for w, fold in weighted_folds], axis=0)  # (r,)
        duels = np.sum([(w @ fold.positives) * (w @ fold.negatives) for w, fold in weighted_folds], axis=0)  # (r,)
        hits, false, missed, right = cases.T
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.stack(
                [
                    (hits + right) / cases.sum(1),
                    hits / np.maximum(hits + false, 1),
                    hits / np.maximum(hits + missed, 1),
                    2 * hits / np.maximum(2 * hits + false + missed, 1),
                    wins / duels,
                ]
            )


def _mean_over_seeds(pools: list[_FoldPool], weights: Floats | None) -> Floats:
    mean: Floats = np.mean([pool.metrics(weights) for pool in pools], axis=0)
    return mean
