import itertools
import math

import numpy as np
import pytest
import scipy.stats
from run_folders import PER_FOLD, every, write_run

from dcdt.evaluation.pairs import pair_metrics
from dcdt.evaluation.statistics import holm, mean_interval, nadeau_bengio_interval, paired_sign_flip
from dcdt.evaluation.units import detectable_difference
from dcdt.reporting.cells import Number, pair_cells, per_query, ranking_cell, units_by_query
from dcdt.reporting.comparisons import compare, make_verdict
from dcdt.reporting.variants import make_variants
from dcdt.runs.reader import read_runs


def variants(folder):
    return {one.label: one for one in make_variants(read_runs([folder]))}


def test_a_query_is_one_unit_however_often_it_was_tested(tmp_path):
    write_run(tmp_path, fold=0, seed=0, ranks=[1] * 12)
    write_run(tmp_path, fold=0, seed=1, ranks=[4] * 12)
    write_run(tmp_path, fold=1, seed=0, ranks=[2] * 12)
    runs = read_runs([tmp_path])
    found = per_query(runs, "mrr")
    assert len(found) == 24
    assert found["q0"] == pytest.approx((1 + 0.25) / 2)
    assert found["q12"] == 0.5
    cell = ranking_cell(runs, "mrr")
    assert cell.value == pytest.approx(np.mean([0.625] * 12 + [0.5] * 12))
    assert (cell.low, cell.high) == cell.by_query == mean_interval([0.625] * 12 + [0.5] * 12)
    assert cell.spread == pytest.approx(np.std([1, 0.25, 0.5], ddof=1))


def test_parts_of_the_queries(tmp_path):
    write_run(tmp_path, ranks=range(1, 13), extra=("slice_zh",))
    runs = read_runs([tmp_path])
    assert list(per_query(runs, "mrr", kind="question").values()) == pytest.approx([1 / 2, 1 / 11, 1 / 5, 1 / 8])
    assert per_query(runs, "mrr", warm="cold").keys() == {"q0", "q3", "q6", "q9"}
    assert per_query(runs, "mrr", side="slice_zh").keys() == {f"slice_zh{at}" for at in range(8)}
    assert ranking_cell(runs, "mrr", warm="mixed") is None


def test_a_query_that_is_warm_in_one_fold_and_cold_in_another_counts_in_each_part_with_its_own_rows(tmp_path):
    for index in (0, 1):
        write_run(tmp_path, fold=index, ranks=[1 + index] * 12)
    one, other = read_runs([tmp_path])
    other.sides["test"].ids[:] = one.sides["test"].ids[1:] + one.sides["test"].ids[:1]
    warm, cold = (per_query([one, other], "mrr", warm=part) for part in ("warm", "cold"))
    assert warm["q0"] == 0.5 and cold["q0"] == 1.0  # cold in the first, warm in the second
    assert per_query([one, other], "mrr")["q0"] == 0.75


def test_pair_cells_are_the_pair_metrics_of_the_pooled_folds_averaged_over_seeds(comparison):
    runs = variants(comparison)["dcdt"].runs
    cells = pair_cells(runs)
    for name in ("accuracy", "precision", "recall", "f1"):
        pooled = []
        for seed in (0, 1):
            parts = [run.pairs for run in runs if run.seed == seed]
            scores = np.concatenate([part.accepted for part in parts]).astype(float)
            labels = np.concatenate([part.labels for part in parts])
            pooled.append(pair_metrics(scores, labels, 0.5)[name])
        assert cells[name].value == pytest.approx(np.mean(pooled))
        assert cells[name].low < cells[name].value < cells[name].high
        own = [pair_metrics(run.pairs.accepted.astype(float), run.pairs.labels, 0.5)[name] for run in runs]
        assert cells[name].spread == pytest.approx(np.std(own, ddof=1))


def test_auroc_of_one_run_is_that_of_the_pair_metrics_and_other_scales_do_not_enter_it(comparison):
    runs = variants(comparison)["dcdt"].runs
    alone = pair_metrics(runs[0].pairs.scores, runs[0].pairs.labels, 0.5)["auroc"]
    assert pair_cells(runs[:1])["auroc"].value == pytest.approx(alone)
    before = pair_cells(runs)["auroc"]
    for run in runs:
        run.pairs.scores[:] = run.pairs.scores * (1 + run.fold) + 100 * run.fold  # in one fold order stays
    assert pair_cells(runs)["auroc"] == before
    pooled = np.concatenate([run.pairs.scores for run in runs[::2]])
    labels = np.concatenate([run.pairs.labels for run in runs[::2]])
    assert abs(pair_metrics(pooled, labels, 0.5)["auroc"] - before.value) > 0.05


def test_ties_count_half_in_auroc_and_a_query_may_have_several_positives(tmp_path):
    write_run(tmp_path)
    (run,) = read_runs([tmp_path])
    run.pairs.scores[:] = np.round(run.pairs.scores)
    run.pairs.labels[[1, 2, 6]] = True
    expected = pair_metrics(run.pairs.scores, run.pairs.labels, 0.5)["auroc"]
    assert pair_cells([run])["auroc"].value == pytest.approx(expected)


def test_pair_intervals_resample_queries_with_all_their_pairs(tmp_path, monkeypatch):
    """By hand: every resample of three queries, each as often as it is drawn, gives the ends."""
    monkeypatch.setattr("dcdt.reporting.cells.N_RESAMPLES", 40_000)
    monkeypatch.setattr("dcdt.reporting.cells.FEW_UNITS", 2)
    write_run(tmp_path, n=3)
    (run,) = read_runs([tmp_path])
    names = run.sides["test"].ids
    rows = {name: [at for at, query in enumerate(run.pairs.queries) if query == name] for name in names}
    found = {name: [] for name in ("accuracy", "recall", "f1", "auroc")}
    for drawn in itertools.product(names, repeat=3):
        chosen = [at for name in drawn for at in rows[name]]
        accepted = run.pairs.accepted[chosen].astype(float)
        for name in found:
            scores = run.pairs.scores[chosen] if name == "auroc" else accepted
            found[name].append(pair_metrics(scores, run.pairs.labels[chosen], 0.5)[name])
    cells = pair_cells([run])
    for name, values in found.items():
        ends = np.quantile(values, [0.025, 0.975], method="inverted_cdf")
        assert (cells[name].low, cells[name].high) == pytest.approx(tuple(ends), abs=0.02), name


def test_cells_and_comparisons_resample_units_and_have_queries_as_units_beside(tmp_path):
    for fold in range(2):
        write_run(tmp_path, "zero_shot", fold, units=every(3))
        write_run(tmp_path, "dcdt", fold, skill=2.0, units=every(3))
    found = variants(tmp_path)
    ours, theirs = (per_query(found[name].runs, "mrr") for name in ("dcdt", "zero_shot"))
    units = [every(3)(name) for name in ours]
    assert len(set(units)) == 8 and units_by_query(found["dcdt"].runs) == dict(zip(ours, units, strict=True))
    cell = ranking_cell(found["dcdt"].runs, "mrr")
    assert (cell.low, cell.high) == mean_interval(list(ours.values()), units, (0, 1))
    assert cell.by_query == mean_interval(list(ours.values()), None, (0, 1)) != (cell.low, cell.high)
    (result,) = compare([(found["dcdt"], found["zero_shot"])], "mrr")
    gaps = [ours[name] - theirs[name] for name in ours]
    assert (result.n, result.n_units, result.p) == (24, 8, paired_sign_flip(gaps, units=units))
    assert (result.difference.low, result.difference.high) == mean_interval(gaps, units)
    assert result.difference.by_query == mean_interval(gaps)
    assert result.adjusted_by_query == paired_sign_flip(gaps) < result.p
    assert result.detectable == detectable_difference(gaps, units)


def test_pair_intervals_of_few_units_leave_each_out_with_all_its_pairs(tmp_path):
    """By hand: a run's pairs without those of one unit, four times."""
    write_run(tmp_path, n=12, units=every(3))
    (run,) = read_runs([tmp_path])
    cells = pair_cells([run])
    unit = np.array([every(3)(name) for name in run.pairs.queries])
    for name in ("accuracy", "recall", "f1", "auroc"):
        scores = run.pairs.scores if name == "auroc" else run.pairs.accepted.astype(float)
        without = [
            pair_metrics(scores[unit != one], run.pairs.labels[unit != one], 0.5)[name] for one in sorted(set(unit))
        ]
        value = pair_metrics(scores, run.pairs.labels, 0.5)[name]
        half = scipy.stats.t.ppf(0.975, 3) * np.sqrt(3 / 4 * sum((one - value) ** 2 for one in without))
        expected = max(0, value - half), min(1, value + half)
        assert (cells[name].value, cells[name].low, cells[name].high) == pytest.approx((value, *expected)), name
        assert cells[name].by_query != (cells[name].low, cells[name].high)


def test_runs_without_pairs_have_no_pair_cells(tmp_path):
    (write_run(tmp_path, fold=1) / "pairs.parquet").unlink()
    write_run(tmp_path, fold=0)
    assert pair_cells(read_runs([tmp_path])) == {}


def test_a_comparison_is_the_paired_test_on_common_queries(comparison):
    found = variants(comparison)
    family = [(found["dcdt"], found["zero_shot"]), (found["bm25"], found["zero_shot"]), (found["bm25"], found["dcdt"])]
    results = compare(family, "mrr")
    raw = {}
    for (model, reference), result in zip(family, results, strict=True):
        ours, theirs = per_query(model.runs, "mrr"), per_query(reference.runs, "mrr")
        gaps = np.array([ours[name] - theirs[name] for name in sorted(ours)])
        assert (result.n, result.difference.value) == (4 * PER_FOLD, pytest.approx(gaps.mean()))
        assert (result.difference.low, result.difference.high) == mean_interval(gaps)
        assert (result.n_units, result.design_effect) == (result.n, pytest.approx(1))
        assert (result.adjusted_by_query, result.verdict_by_query) == (result.adjusted, result.verdict)
        raw[result.model + result.reference] = paired_sign_flip(gaps)
        assert result.p == raw[result.model + result.reference]
        folds = gaps_by_fold(model, reference)
        assert (result.corrected.low, result.corrected.high) == pytest.approx(nadeau_bengio_interval(folds, 1 / 7))
        assert result.corrected.value == pytest.approx(np.mean(folds))
    assert [one.adjusted for one in results] == list(holm(raw).values())
    assert results[0].adjusted > results[0].p


def gaps_by_fold(model, reference):
    gaps = []
    for fold in range(4):
        ours, theirs = (per_query([run for run in one.runs if run.fold == fold], "mrr") for one in (model, reference))
        gaps.append(np.mean([ours[name] - theirs[name] for name in ours]))
    return gaps


def test_only_queries_both_were_tested_on_enter_a_comparison(tmp_path):
    for fold in (0, 1):
        write_run(tmp_path, "zero_shot", fold, ranks=[2] * 12)
    write_run(tmp_path, "dcdt", 0, ranks=[1] * 12)
    found = variants(tmp_path)
    for model, reference, difference in (("dcdt", "zero_shot", 0.5), ("zero_shot", "dcdt", -0.5)):
        (result,) = compare([(found[model], found[reference])], "mrr")
        assert (result.n, result.difference.value) == (12, difference)
        assert math.isnan(result.corrected.low)  # one fold says nothing of other training sets


@pytest.mark.parametrize(
    ("value", "low", "p", "verdict"),
    [
        (0.1, 0.05, 0.049, "better"),
        (-0.1, -0.15, 0.049, "worse"),
        (0.1, -0.019, 0.05, "non-inferior"),
        (-0.005, -0.019, 0.9, "non-inferior"),
        (0.1, -0.02, 0.05, "no difference shown"),
        (0.1, float("nan"), 0.5, "no difference shown"),
    ],
)
def test_verdicts(value, low, p, verdict):
    assert make_verdict(Number(value, low, value + 0.1), p) == verdict
