"""Units of inference: brute force, scipy, and what larger units do to intervals and tests."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from support import correlated_values

from dcdt.evaluation.statistics import FEW_UNITS, bootstrap_interval, mean_interval, paired_sign_flip, t_interval
from dcdt.evaluation.units import best_positives, design_effect, detectable_difference, standard_error, unit_totals

VALUES, UNITS = [0.2, -0.1, 0.5, 0.5, 0.0, 0.3, -0.4], list("abacbac")


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.sampled_from([1.0, 2.0, 3.0])), min_size=1))
def test_the_best_positive_is_that_of_brute_force(triples):
    rows, positions = best_positives(*(np.array(column) for column in zip(*triples, strict=True)))
    expected = {}
    for query, position, grade in triples:
        expected[query] = min(expected.get(query, (math.inf, 0)), (-grade, position))
    assert rows.tolist() == sorted(expected)
    assert positions.tolist() == [expected[row][1] for row in rows.tolist()]


def by_hand():
    groups = {name: [value for value, unit in zip(VALUES, UNITS, strict=True) if unit == name] for name in "abc"}
    return [groups[name] for name in "abc"]


def test_the_interval_of_few_units_leaves_each_out_once():
    groups, mean = by_hand(), np.mean(VALUES)
    without = [np.concatenate([group for group in groups if group is not one]).mean() for one in groups]
    error = math.sqrt(2 / 3 * sum((value - mean) ** 2 for value in without))
    half = scipy.stats.t.ppf(0.975, 2) * error
    assert standard_error(VALUES, UNITS) == pytest.approx(error)
    assert t_interval(VALUES, UNITS) == mean_interval(VALUES, UNITS) == pytest.approx((mean - half, mean + half))
    assert mean_interval(VALUES, UNITS, (0.1, 0.2)) == (0.1, 0.2)


def test_the_bootstrap_draws_units_with_all_their_queries():
    """All 27 resamples of three units, each a sum over the number of its queries."""
    means = [np.concatenate(drawn).mean() for drawn in itertools.product(by_hand(), repeat=3)]
    ends = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    assert bootstrap_interval(VALUES, 100_000, units=UNITS) == pytest.approx(tuple(ends))


def test_the_sign_flip_test_flips_units():
    sums = np.array([sum(group) for group in by_hand()])
    patterns = list(itertools.product((1, -1), repeat=3))
    extreme = sum(abs(np.dot(signs, sums)) >= abs(sums.sum()) - 1e-9 for signs in patterns)
    assert paired_sign_flip(VALUES, units=UNITS) == extreme / 8


def test_scipy_agrees_where_it_has_the_same():
    values, units = correlated_values(np.random.default_rng(2), 60, "value")
    sums, sizes = unit_totals(values, units)
    theirs = scipy.stats.bootstrap(
        (sums, sizes),
        lambda total, n, axis: total.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(9),
    ).confidence_interval
    ours = bootstrap_interval(values, units=units)
    assert ours == mean_interval(values, units) == pytest.approx(tuple(theirs), abs=0.05 * (theirs[1] - theirs[0]))
    assert t_interval(values) == pytest.approx(tuple(scipy.stats.ttest_1samp(values, 0).confidence_interval()))
    gaps, units = correlated_values(np.random.default_rng(3), 8)
    test = scipy.stats.permutation_test(
        (unit_totals(gaps, units)[0],), np.sum, permutation_type="samples", n_resamples=np.inf
    )
    assert paired_sign_flip(gaps, units=units) == pytest.approx(test.pvalue)


def test_units_of_one_query_change_nothing():
    values, names = 1 / np.random.default_rng(0).integers(1, 20, 80), [f"q{at:02}" for at in range(80)]
    assert bootstrap_interval(values, units=names) == bootstrap_interval(values) == mean_interval(values)
    assert paired_sign_flip(values, 999, units=names) == paired_sign_flip(values, 999)
    assert design_effect(values, names) == pytest.approx(1)
    assert len(values) >= FEW_UNITS and mean_interval(values[:20]) == t_interval(values[:20])


def test_copies_of_a_query_are_no_evidence():
    values = 1 / np.random.default_rng(1).integers(1, 20, 30) - 0.2
    copies, units = np.repeat(values, 4), [f"u{at // 4:02}" for at in range(120)]
    assert t_interval(copies, units) == pytest.approx(t_interval(values))
    assert paired_sign_flip(copies, 999, units=units) == paired_sign_flip(values, 999)
    assert design_effect(copies, units) == pytest.approx(4 * (119 / 4) / 29)
    assert detectable_difference(copies, units) == pytest.approx(detectable_difference(values))


def test_the_detectable_difference_is_that_of_a_t_test():
    values = np.random.default_rng(0).normal(size=40)
    found = detectable_difference(values)
    noncentral = found / (values.std(ddof=1) / math.sqrt(40))
    limit = scipy.stats.t.ppf(0.975, 39)
    power = scipy.stats.nct.sf(limit, 39, noncentral)
    assert power == pytest.approx(0.8, abs=0.01)
    assert detectable_difference(values, power=0.9) > found
    assert math.isnan(detectable_difference(values, [f"u{at % 5}" for at in range(40)]))  # no test of 5 units finds any


def test_one_unit_has_no_interval_and_wrong_names_are_refused():
    for found in (mean_interval([0.1, 0.2], ["a", "a"]), bootstrap_interval([0.1, 0.2], units=["a", "a"])):
        assert all(math.isnan(end) for end in found)
    assert math.isnan(design_effect([1.0, 1.0], ["a", "b"]))
    with pytest.raises(ValueError, match="1 names of units for 2 values"):
        unit_totals([1.0, 2.0], ["a"])
