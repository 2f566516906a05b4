import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from dcdt.evaluation import statistics
from dcdt.evaluation.statistics import (
    bootstrap_interval,
    holm,
    mean_over_runs,
    nadeau_bengio_interval,
    non_inferior,
    paired_sign_flip,
    spread,
)

RNG_SEEDS = range(4)


def differences(seed, n, shift=0.0):
    rng = np.random.default_rng(seed)
    return 1 / rng.integers(1, 12, n) - 1 / rng.integers(1, 12, n) + shift


def scipy_sign_flip(values, n_resamples):
    test = scipy.stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=n_resamples, rng=np.random.default_rng(1)
    )
    return float(test.pvalue)


@pytest.mark.parametrize("seed", RNG_SEEDS)
@pytest.mark.parametrize("n", [1, 2, 8])
def test_sign_flip_is_exact_for_few_queries(seed, n):
    values = differences(seed, n)
    sums = [sum(s * v for s, v in zip(signs, values, strict=True)) for signs in itertools.product((1, -1), repeat=n)]
    extreme = sum(abs(total) >= abs(values.sum()) - 1e-9 for total in sums)
    assert paired_sign_flip(values) == extreme / 2**n
    if n == 8:
        # scipy reports twice the smaller tail, which is the same for a symmetric null distribution
        assert paired_sign_flip(values) == pytest.approx(min(1.0, scipy_sign_flip(values, np.inf)), abs=1e-12)


@pytest.mark.parametrize("seed", RNG_SEEDS)
def test_sign_flip_by_draws_agrees_with_scipy_and_with_enumeration(seed):
    values = differences(seed, 14, shift=0.1)
    exact = paired_sign_flip(values, n_resamples=2**14)
    error = 5 * math.sqrt(0.25 / 10_000)
    assert paired_sign_flip(values, n_resamples=10_000) == pytest.approx(exact, abs=error)
    assert scipy_sign_flip(values, 10_000) == pytest.approx(exact, abs=error)


def test_sign_flip_by_draws_equals_its_definition():
    values = differences(0, 30)
    draws = 999
    bits = np.unpackbits(np.frombuffer(np.random.default_rng(5).bytes((draws * 30 + 7) // 8), dtype=np.uint8))
    extreme = 0
    for draw in range(draws):
        total = sum(v if bits[draw * 30 + query] else -v for query, v in enumerate(values))
        extreme += abs(total) >= abs(values.sum()) - 1e-9
    assert paired_sign_flip(values, n_resamples=draws, seed=5) == (extreme + 1) / (draws + 1)


def test_sign_flip_keeps_zeros_and_never_reaches_zero():
    assert paired_sign_flip([0.0] * 5) == 1.0
    assert paired_sign_flip([0.0] * 50, n_resamples=1000) == 1.0
    assert paired_sign_flip([1.0, 1.0, 1.0, 0.0]) == 2 / 8  # the zero doubles patterns and extremes alike
    assert paired_sign_flip([0.5] * 60, n_resamples=999) == 1 / 1000
    assert paired_sign_flip([-0.5] * 60, n_resamples=999) == 1 / 1000


def test_sums_that_agree_to_rounding_are_equal():
    third, sixth = float(np.float32(1 / 3)), float(np.float32(1 / 6))
    values = [0.5 - third, third - sixth, 0.0]  # both 1/6, but for float32
    assert values[0] != values[1]
    assert paired_sign_flip([values[0], values[1], values[0] + values[1]]) == paired_sign_flip([1.0, 1.0, 2.0])
    assert paired_sign_flip([-values[0], values[1], sixth]) == paired_sign_flip([-1.0, 1.0, 1.0]) == 1.0


def test_chunks_do_not_change_the_exact_test(monkeypatch):
    values = differences(2, 9)
    whole = paired_sign_flip(values)
    monkeypatch.setattr(statistics, "_CHUNK_CELLS", 100)
    assert paired_sign_flip(values) == whole
    assert paired_sign_flip(differences(2, 40), n_resamples=37) > 0  # a last chunk that is not full


@pytest.mark.parametrize("seed", RNG_SEEDS)
def test_bootstrap_agrees_with_scipy(seed):
    values = 1 / np.random.default_rng(seed).integers(1, 20, 80)
    found = bootstrap_interval(values)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=10_000, rng=np.random.default_rng(9)
    ).confidence_interval
    assert found == pytest.approx((theirs.low, theirs.high), abs=0.05 * (theirs.high - theirs.low))
    assert found[0] < values.mean() < found[1]


def test_bootstrap_of_two_queries_is_known():
    """Of two queries, a resample has mean 0, 1/2 or 1 with chances 1/4, 1/2 and 1/4."""
    assert bootstrap_interval([0.0, 1.0], level=0.95) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5)


def test_bootstrap_follows_its_seed_level_and_chunks(monkeypatch):
    values = differences(1, 50)
    low, high = bootstrap_interval(values)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)
    wide = bootstrap_interval(values, level=0.99)
    assert wide[0] < low < high < wide[1]
    monkeypatch.setattr(statistics, "_CHUNK_CELLS", 1000)
    assert bootstrap_interval(values) == pytest.approx((low, high), abs=0.05 * (high - low))


def test_one_query_has_no_interval():
    assert all(math.isnan(end) for end in bootstrap_interval([0.5]))


def test_rows_of_a_query_are_averaged_first():
    names, means = mean_over_runs(["q2", "q1", "q2", "q1", "q3"], [1.0, 0.5, 0.0, 0.25, 1.0])
    assert names == ["q1", "q2", "q3"]
    assert means.tolist() == [0.375, 0.5, 1.0]


def test_rows_as_units_shrink_the_interval_and_the_p_value():
    """Ten runs that agree on every query are ten copies, not ten times the evidence."""
    values = differences(3, 25, shift=0.06)
    ids = [f"q{query}" for query in range(25)] * 10
    _, means = mean_over_runs(ids, np.tile(values, 10))
    order = np.argsort([f"q{query}" for query in range(25)])
    assert means == pytest.approx(values[order])
    honest, naive = bootstrap_interval(means), bootstrap_interval(np.tile(values, 10))
    assert naive[1] - naive[0] < 0.4 * (honest[1] - honest[0])
    assert paired_sign_flip(np.tile(values, 10), 10_000) < 0.05 < paired_sign_flip(means, 10_000)


def test_holm_by_hand():
    raw = {"b": 0.01, "a": 0.04, "d": 0.03, "c": 0.005}
    assert holm(raw) == pytest.approx({"b": 0.03, "a": 0.06, "d": 0.06, "c": 0.02})
    assert list(holm(raw)) == ["b", "a", "d", "c"]
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.04}) == {"a": 0.04}
    assert holm({}) == {}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_monotone_and_never_below_the_raw_value(values):
    raw = {str(place): p for place, p in enumerate(values)}
    adjusted = holm(raw)
    for one, other in itertools.product(raw, repeat=2):
        if raw[one] <= raw[other]:
            assert adjusted[one] <= adjusted[other]
    for name, p in raw.items():
        assert p <= adjusted[name] <= min(1.0, len(raw) * p)


def test_nadeau_bengio_by_hand():
    """Five folds, mean 0.03, s**2 = 0.00025, t(4, 0.975) = 2.776445: half = t sqrt((1/5 + 1/4) 0.00025)."""
    low, high = nadeau_bengio_interval([0.01, 0.02, 0.03, 0.04, 0.05], test_fraction_over_train=0.25)
    half = 2.776445105 * math.sqrt((1 / 5 + 1 / 4) * 0.00025)
    assert (low, high) == pytest.approx((0.03 - half, 0.03 + half), abs=1e-9)
    assert all(math.isnan(end) for end in nadeau_bengio_interval([0.1], 0.25))


def test_nadeau_bengio_tends_to_the_plain_t_interval_as_the_overlap_vanishes():
    values = differences(0, 10)
    plain = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert nadeau_bengio_interval(values, 1e-12, level=0.9) == pytest.approx((plain.low, plain.high), abs=1e-6)


def test_non_inferiority_is_a_statement_about_the_lower_end():
    assert non_inferior(-0.019)
    assert not non_inferior(-0.02)
    assert not non_inferior(-0.5)
    assert non_inferior(-0.04, margin=0.05)
    assert not non_inferior(math.nan)


def test_spread_is_the_sample_deviation():
    assert spread([1.0, 2.0, 4.0]) == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert math.isnan(spread([])) and math.isnan(spread([1.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_over_runs([], []), "at least 1 value"),
        (lambda: mean_over_runs(["a"], [1.0, 2.0]), "1 query ids for 2 values"),
        (lambda: mean_over_runs(["a"], [math.nan]), "1 of 1 values are not finite"),
        (lambda: bootstrap_interval([]), "at least 1 value"),
        (lambda: bootstrap_interval([1.0, math.inf]), "1 of 2 values are not finite"),
        (lambda: bootstrap_interval([1.0, 2.0], level=95), "level is 95"),
        (lambda: bootstrap_interval([1.0, 2.0], n_resamples=0), "n_resamples is 0"),
        (lambda: paired_sign_flip([]), "at least 1 value"),
        (lambda: paired_sign_flip([[1.0]]), r"shape \(1, 1\)"),
        (lambda: paired_sign_flip([math.nan]), "not finite"),
        (lambda: paired_sign_flip([1.0], n_resamples=0), "n_resamples is 0"),
        (lambda: holm({"a": 1.2}), "'a' is 1.2"),
        (lambda: holm({"a": math.nan}), "'a' is nan"),
        (lambda: nadeau_bengio_interval([], 0.1), "at least 1 value"),
        (lambda: nadeau_bengio_interval([0.1, 0.2], 0), "n_test / n_train is 0"),
        (lambda: nadeau_bengio_interval([0.1, 0.2], math.nan), "n_test / n_train is nan"),
        (lambda: nadeau_bengio_interval([0.1, 0.2], 0.1, level=1), "level is 1"),
        (lambda: non_inferior(0.0, margin=-0.02), "margin is -0.02"),
        (lambda: spread([1.0, math.nan]), "not finite"),
    ],
)
def test_refuses_what_has_no_answer(call, message):
    with pytest.raises(ValueError, match=message):
        call()
