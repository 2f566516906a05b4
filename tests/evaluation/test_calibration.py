"""Over 200 simulated tables without a difference, the test is wrong about as often as it says."""

import numpy as np
import pytest

from dcdt.evaluation.statistics import bootstrap_interval, mean_over_runs, paired_sign_flip

N_TABLES, N_QUERIES, N_RUNS = 200, 60, 5
IDS = [f"q{query}" for _ in range(N_RUNS) for query in range(N_QUERIES)]


def null_table(seed, gain=0.0):
    """Per-row differences (runs * queries,) of two models' reciprocal ranks, exchangeable where gain is 0.

    The models differ query by query in the same way in every run, as two trained models do; runs add noise.
    """
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(2.0, 1.0, N_QUERIES)
    logs = [difficulty + rng.normal(0, 0.7, N_QUERIES) - shift for shift in (gain, 0.0)]
    ranks = [np.ceil(np.exp(log + rng.normal(0, 0.1, (N_RUNS, N_QUERIES)))).clip(1) for log in logs]
    return (1 / ranks[0] - 1 / ranks[1]).ravel()


def p_value(rows, averaged):
    units = mean_over_runs(IDS, rows)[1] if averaged else rows
    return paired_sign_flip(units, n_resamples=5_000)


@pytest.mark.slow
def test_unique_queries_keep_the_error_rate_and_rows_as_units_do_not():
    tables = [null_table(seed) for seed in range(N_TABLES)]
    assert sum(p_value(rows, averaged=True) < 0.05 for rows in tables) <= 17
    assert sum(p_value(rows, averaged=False) < 0.05 for rows in tables) > 40


@pytest.mark.slow
def test_a_planted_difference_is_found():
    tables = [null_table(1000 + seed, gain=0.6) for seed in range(40)]
    assert sum(p_value(rows, averaged=True) < 0.05 for rows in tables) >= 32
    assert p_value(null_table(7, gain=1.5), averaged=True) < 0.001


@pytest.mark.slow
def test_the_bootstrap_interval_covers_the_mean():
    """60 skewed values a table: coverage a little under 95 % is the percentile bootstrap's, not an error of ours."""
    population = 1 / np.ceil(np.exp(np.random.default_rng(0).normal(2.0, 1.0, 100_000)))
    rng = np.random.default_rng(1)
    intervals = [bootstrap_interval(rng.choice(population, N_QUERIES), 2_000) for _ in range(N_TABLES)]
    covered = sum(low <= population.mean() <= high for low, high in intervals)
    assert 178 <= covered <= 199
