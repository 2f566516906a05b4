import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_folders import every, write_run
from support import write_folder

from dcdt.evaluation.statistics import holm, mean_interval
from dcdt.reporting.cells import Number, pair_cells, per_query, ranking_cell
from dcdt.reporting.figures import learning_curves, make_figures
from dcdt.reporting.table_types import Row, mark_best
from dcdt.reporting.tables import LIST_CAPTION, make_report
from dcdt.runs.reader import read_runs
from dcdt.utils.errors import UserError


def report_of(*folders):
    return make_report(read_runs(folders))


def table(report, name):
    return next(table for table in report.tables if table.name == name)


def rows(report, name="main"):
    return {row.name: row for row in table(report, name).rows}


def test_rows_stand_by_the_primary_metric_and_hold_the_cells_of_the_statistics(comparison):
    report = report_of(comparison)
    main = table(report, "main")
    assert [row.name for row in main.rows] == ["dcdt", "zero_shot", "bm25"]
    for row, variant in zip(main.rows, report.variants, strict=True):
        for metric in ("mrr", "ndcg@10", "recall@1", "recall@5", "recall@10"):
            expected = ranking_cell(variant.runs, metric)
            assert vars(row.cells[metric]) == {**vars(expected), "best": row.cells[metric].best}
        for name, expected in pair_cells(variant.runs).items():
            assert row.cells[f"pair_{name}"].value == expected.value
        assert row.cells["n"] == "48"
    assert (report.best.label, report.reference.label) == ("dcdt", "zero_shot")


@pytest.mark.usefixtures("papers")
def test_the_columns_are_those_of_the_paper_and_pair_recall_is_not_recall_at_k(comparison):
    headings = list(table(report_of(comparison), "main").columns.values())
    assert headings == [
        "n",
        "MRR",  # what orders the rows
        "MRR warm (n = 32)",  # cold has 16
        "Accuracy",
        "Precision",
        "Recall",
        "F1",
        "AUROC",
        "nDCG@10",
        "recall@1",
        "recall@5",
        "recall@10",
        "Accuracy (reported; consistent with precision)",
        "Recall (reported)",
        "F1 (reported)",
        "MRR (reported)",
    ]


def test_the_papers_figures_and_remarks_stand_in_tables_of_its_collection_alone(comparison, monkeypatch):
    def papers_words(report):
        words = [heading for one in report.tables for heading in (one.title, *one.columns.values())]
        words += [note for one in report.tables for note in one.notes]
        return [text for text in words if "eported" in text or "paper" in text or "figure 3" in text]

    assert papers_words(report_of(comparison)) == []
    monkeypatch.setattr("dcdt.reporting.tables.PAPER_COLLECTION", "toy")
    assert len(papers_words(report_of(comparison))) >= 4


@pytest.mark.usefixtures("papers")
def test_reported_numbers_stand_beside_their_models_only(comparison):
    found = rows(report_of(comparison))
    reported = {
        name: {key: cell.value for key, cell in row.cells.items() if key.startswith("reported_")}
        for name, row in found.items()
    }
    assert reported == {
        "dcdt": {"reported_accuracy": 0.821, "reported_recall": 0.784, "reported_f1": 0.802, "reported_mrr": 0.641},
        "bm25": {"reported_accuracy": 0.689, "reported_recall": 0.632, "reported_f1": 0.659, "reported_mrr": 0.487},
        "zero_shot": {},
    }


@pytest.mark.usefixtures("papers")
def test_reported_numbers_are_not_given_to_variants_the_paper_did_not_run(tmp_path):
    write_run(tmp_path, overrides={"loss.margin": 0.5})
    write_run(tmp_path, skill=0.5)
    report = report_of(tmp_path)
    assert not [key for name in ("main", "training") for key in table(report, name).columns if "reported" in key]


def test_all_ties_at_the_printed_precision_are_bold(tmp_path):
    write_run(tmp_path, "zero_shot", ranks=[1] * 11 + [2])
    write_run(tmp_path, "dcdt", ranks=[2] + [1] * 11)
    write_run(tmp_path, "bm25", ranks=[2] * 12)
    found = rows(report_of(tmp_path))
    bold = {
        key: {name for name, row in found.items() if row.cells[key].best} for key in ("mrr", "recall@1", "recall@10")
    }
    assert bold == {"mrr": {"dcdt", "zero_shot"}, "recall@1": {"dcdt", "zero_shot"}, "recall@10": set(found)}


@pytest.mark.parametrize(
    ("values", "bold"),
    [
        ((0.70049, 0.69951, 0.69949), [True, True, False]),
        ((0.5,), [False]),  # nothing to compare it with
        ((-0.1, -0.2), [True, False]),
    ],
)
def test_values_that_print_alike_are_ties_and_others_are_not(values, bold):
    found = [Row(str(at), {"x": Number(value)}) for at, value in enumerate(values)]
    marked = mark_best(found, {"x"}, {row.name for row in found})
    assert [row.cells["x"].best for row in marked] == bold
    assert not any(row.cells["x"].best for row in mark_best(found, {"x"}, {"0"}))  # the only one that is eligible


def test_nothing_reported_and_no_count_is_ever_bold(comparison):
    for table in report_of(comparison).tables:
        for row in table.rows:
            assert not any(isinstance(c, Number) and c.best for key, c in row.cells.items() if "reported" in key)


def failing(folder):
    for fold in range(4):
        write_run(folder, "zero_shot", fold, skill=1.0)
        broken = fold in (1, 3)
        error = "RuntimeError: out of memory in /home/me/dcdt/x.py\nmore"
        write_run(folder, "dcdt", fold, skill=2.0, status="failed" if broken else "finished", error=error)
        write_run(folder, "collaborative", fold, status="not_applicable", error="no interactions.csv")
        write_run(folder, "bm25", fold, status="half-written")
        write_run(folder, "single_tower", fold, seed=0, skill=0.3)
        write_run(folder, "single_tower", fold, seed=1, skill=0.3, status="half-written" if fold == 2 else "finished")


def test_jobs_without_a_result_stay_in_the_table_and_say_why(tmp_path):
    failing(tmp_path)
    report = report_of(tmp_path)
    assert {row.name: row.note for row in table(report, "main").rows} == {
        "zero_shot": "",
        "single_tower": "did not finish in 1 of 8 jobs",
        "dcdt": "2 of 4 folds; failed in 2 of 4 jobs: RuntimeError: out of memory in x.py",
        "bm25": "did not finish in 4 of 4 jobs",
        "collaborative": "not applicable: no interactions.csv",
    }
    assert [row.name for row in table(report, "main").rows][-3:] == ["dcdt", "bm25", "collaborative"]
    assert [
        (row.name, row.cells["status"], row.cells["folds"], row.cells["seeds"]) for row in report.failures.rows
    ] == [
        ("single_tower", "did not finish", "2", "1"),
        ("dcdt", "failed", "1, 3", "0"),
        ("bm25", "did not finish", "0 to 3", "0"),
        ("collaborative", "not applicable", "0 to 3", "0"),
    ]


def test_a_job_whose_configuration_was_refused_is_listed_by_its_folder(tmp_path):
    """Its configuration is not stored, so nothing else is known of it; it takes part in no comparison."""
    write_run(tmp_path, "zero_shot")
    write_run(
        tmp_path, "dcdt", status="failed", error="UserError: optimizer.lr is -1.0; it must be above 0.", name="lr=-1"
    )
    (tmp_path / "lr=-1" / "config.yaml").unlink()
    report = report_of(tmp_path)
    [row] = report.failures.rows
    assert (row.name, row.cells["status"], row.cells["jobs"]) == ("lr=-1", "failed", "1")
    assert "optimizer.lr is -1.0" in row.cells["reason"] and [one.label for one in report.variants] == ["zero_shot"]
    with pytest.raises(UserError, match=r"none of the 1 runs has finished.*lr=-1: UserError: optimizer.lr"):
        report_of(tmp_path / "lr=-1")


def test_a_model_that_misses_queries_is_never_the_best_nor_bold_and_is_tested_on_what_it_has(tmp_path):
    failing(tmp_path)
    report = report_of(tmp_path)
    found = rows(report)
    assert found["dcdt"].cells["mrr"].value > found["zero_shot"].cells["mrr"].value
    assert report.best.label == "zero_shot"
    assert not any(cell.best for cell in found["dcdt"].cells.values() if isinstance(cell, Number))
    assert {(one.model, one.reference, one.n) for one in report.comparisons} == {
        ("dcdt", "zero_shot", 24),
        ("single_tower", "zero_shot", 48),
    }
    assert "warm" not in found["dcdt"].cells and "warm" in found["zero_shot"].cells
    assert any("miss queries" in note for note in table(report, "main").notes)


def test_a_second_attempt_that_finished_leaves_the_first_in_the_list(tmp_path):
    write_run(tmp_path / "a", "zero_shot", status="failed", error="x")
    write_run(tmp_path / "b", "zero_shot")
    report = report_of(tmp_path / "a", tmp_path / "b")
    assert rows(report)["zero_shot"].note == ""
    assert [row.cells["status"] for row in report.failures.rows] == ["failed, then finished"]


def test_the_family_is_every_model_against_zero_shot_and_against_the_best_each_pair_once(comparison):
    report = report_of(comparison)
    pairs = [(one.model, one.reference) for one in report.comparisons]
    assert pairs == [("dcdt", "zero_shot"), ("bm25", "zero_shot"), ("bm25", "dcdt")]
    raw = {str(at): one.p for at, one in enumerate(report.comparisons)}
    assert [one.adjusted for one in report.comparisons] == list(holm(raw).values())
    tests = table(report, "tests")
    assert [row.cells["p"].value for row in tests.rows] == [one.adjusted for one in report.comparisons]
    assert "sign-flip" in tests.caption and "3 tests, Holm-corrected" in tests.caption


def test_the_family_where_zero_shot_is_the_best_has_no_second_round(tmp_path):
    for model, skill in (("zero_shot", 3.5), ("dcdt", 0.2), ("bm25", 0.4)):
        write_run(tmp_path, model, skill=skill)
    assert {(one.model, one.reference) for one in report_of(tmp_path).comparisons} == {
        ("dcdt", "zero_shot"),
        ("bm25", "zero_shot"),
    }


def test_without_zero_shot_a_note_says_how_to_add_it(tmp_path):
    write_run(tmp_path, "dcdt", skill=2.0)
    write_run(tmp_path, "bm25", skill=0.5)
    report = report_of(tmp_path)
    assert report.reference is None
    assert any("model=zero_shot" in note for note in table(report, "main").notes)
    assert [(one.model, one.reference) for one in report.comparisons] == [("bm25", "dcdt")]


def test_one_model_alone_has_no_tests(tmp_path):
    write_run(tmp_path, "zero_shot")
    report = report_of(tmp_path)
    assert report.comparisons == [] and "tests" not in [table.name for table in report.tables]


def test_of_several_zero_shot_rows_title_and_text_is_the_reference(tmp_path):
    write_run(tmp_path, "zero_shot", overrides={"model.fields": ["title"]}, skill=3.5)
    write_run(tmp_path, "zero_shot", skill=0.2)
    report = report_of(tmp_path)
    assert report.best.label == "zero_shot, model.fields=[title]"
    assert report.reference.label == "zero_shot, model.fields=[title,text]"


def test_the_caption_says_what_was_measured_on_what(tmp_path):
    for fold in (0, 1, 2):
        for seed in (0, 1):
            write_run(tmp_path, "dcdt", fold, seed, overrides={"trials": 4}, trials=4)
        write_run(tmp_path, "collaborative", fold, overrides={"trials": 4}, provenance={"simulated": ["interactions"]})
    caption = table(report_of(tmp_path), "main").caption
    for text in (
        "toy: 36 unique test queries",
        "12 videos ranked",
        "3 of 10 folds (0 to 2)",
        "2 seeds (0, 1)",
        "part open (the sealed quarter of the queries took no part)",
        "collaborative (simulated): 1; dcdt: 4",
        "prevalence 0.20",
        "conditional on the training sets",
        "Simulated: interactions; used by collaborative (simulated)",
    ):
        assert text in caption


def test_unequal_tuning_effort_is_said(tmp_path):
    write_run(tmp_path, "zero_shot")
    write_run(tmp_path, "dcdt", overrides={"trials": 4}, trials=4)
    assert not any("tuning effort" in note for note in table(report_of(tmp_path), "main").notes)
    write_run(tmp_path, "bm25", overrides={"trials": 4})
    assert any(
        "tuning effort is not equal: bm25 had 1 trial" in note for note in table(report_of(tmp_path), "main").notes
    )


def test_cold_learners_and_several_code_versions_are_said(tmp_path):
    folder = write_run(tmp_path, "collaborative")
    (folder / "metrics.json").write_text('{"test/cold_queries": 5, "test/n_queries": 12, "val/pair_threshold": 0.5}')
    write_run(tmp_path, "zero_shot", provenance={"code": "other"})
    notes = " ".join(table(report_of(tmp_path), "main").notes)
    assert "5 of 12 test queries came from learners without a history" in notes
    assert "2 versions of the code" in notes


def test_lists_have_columns_where_every_run_of_a_row_measured_them(tmp_path):
    for model, seed, coverage in [("collaborative", 0, 0.25), ("collaborative", 1, 0.75), ("zero_shot", 0, 0.125)]:
        folder = write_run(tmp_path, model, seed=seed)
        measured = {"test/coverage@10": coverage, "test/popularity@10": 0.125, "test/novelty@10": 6.5}
        (folder / "metrics.json").write_text(json.dumps(measured))
    half = [write_run(tmp_path, "bm25", seed=seed) for seed in (0, 1)]
    (half[0] / "metrics.json").write_text('{"test/coverage@10": 1.0}')
    main = table(report_of(tmp_path), "main")
    measured_columns = [key for key in main.columns if not key.startswith("reported_")]
    assert measured_columns[-3:] == ["coverage@10", "popularity@10", "novelty@10"]
    rows = {row.name: row.cells for row in main.rows}
    assert rows["collaborative"]["coverage@10"].value == 0.5
    assert rows["collaborative"]["coverage@10"].spread == pytest.approx(np.std([0.25, 0.75], ddof=1))
    assert rows["collaborative"]["novelty@10"].value == 6.5
    assert not any(key.startswith(("coverage", "popularity", "novelty")) for key in rows["bm25"])
    assert not any(rows[name]["coverage@10"].best for name in ("collaborative", "zero_shot"))
    assert LIST_CAPTION in main.caption


def test_collections_with_questions_have_no_columns_of_lists(comparison):
    main = table(report_of(comparison), "main")
    assert not any(key.partition("@")[0] in ("coverage", "popularity", "novelty") for key in main.columns)
    assert LIST_CAPTION not in main.caption


def test_parts_with_fewer_than_thirty_queries_are_listed_not_shown(tmp_path):
    for fold in range(4):  # 48 queries: 16 a kind, 16 cold and 32 warm
        write_run(tmp_path, "zero_shot", fold)
        write_run(tmp_path, "dcdt", fold, skill=2.0)
    report = report_of(tmp_path)
    main, kinds = table(report, "main"), table(report, "kinds")
    assert list(main.columns.items())[1:3] == [("mrr", "MRR"), ("warm", "MRR warm (n = 32)")]
    assert "Warm: every positive" in main.caption and "largest training set" not in main.caption
    assert main.notes[0] == "Too few queries for a figure (fewer than 30): cold (16)."
    assert [row.name for row in main.rows] == ["dcdt", "zero_shot"]
    assert main.rows[0].cells["warm"].value == ranking_cell(report.variants[0].runs, "mrr", warm="warm").value
    assert (kinds.stub, kinds.columns) == ("Part", {"n": "n"})
    assert {row.name: row.cells["n"] for row in kinds.rows} == {"beginner": "16", "keyword": "16", "question": "16"}
    assert "No part has the 30 queries" in kinds.caption


def test_tests_state_the_difference_on_warm_queries_with_its_interval(tmp_path):
    for fold in range(4):
        write_run(tmp_path, "zero_shot", fold)
        write_run(tmp_path, "dcdt", fold, skill=1.5)
    report = report_of(tmp_path)
    tests = table(report, "tests")
    assert tests.columns["warm"] == "Difference in MRR warm (n = 32)" and "cold" not in tests.columns
    of = {variant.label: per_query(variant.runs, "mrr", warm="warm") for variant in report.variants}
    gaps = [of["dcdt"][name] - of["zero_shot"][name] for name in sorted(of["dcdt"])]
    cell = tests.rows[0].cells["warm"]
    assert len(gaps) == 32 and cell.value == pytest.approx(np.mean(gaps)) != tests.rows[0].cells["difference"].value
    assert (cell.low, cell.high) == mean_interval(gaps)
    assert "on warm queries without a test" in tests.caption


def test_a_learning_curve_marks_the_same_queries_as_warm_in_every_row(tmp_path):
    for fold in range(4):
        write_run(tmp_path, "zero_shot", fold)
        for few, n in ((8, 8), (None, 84)):
            folder = write_run(
                tmp_path,
                fold=fold,
                overrides={"split.train_queries": few},
                provenance={"split_fingerprint": f"split-{fold}{few or ''}", "queries": {"train": n, "test": 12}},
            )
            if few:  # of so few videos hardly any was asked for
                table_of = pq.read_table(folder / "per_query.parquet")
                cold = pa.array(["cold"] * len(table_of))
                pq.write_table(table_of.set_column(5, "warm", cold), folder / "per_query.parquet")
    main = table(report_of(tmp_path), "main")
    assert (main.columns["warm"], "cold" in main.columns) == ("MRR warm (n = 32)", False)
    assert all("warm" in row.cells for row in main.rows) and len(main.rows) == 3
    assert "By the largest training set of each fold" in main.caption


def test_extra_sides_have_tables_of_their_own(tmp_path):
    for model in ("zero_shot", "dcdt"):
        write_run(tmp_path, model, extra=("slice_zh", "test_all"))
    report = report_of(tmp_path)
    for side in ("slice_zh", "test_all"):
        assert "n = 8" in table(report, side).title
        expected = ranking_cell(report.variants[0].runs, "ndcg@10", side).value
        assert table(report, side).rows[0].cells["ndcg@10"].value == expected


def test_the_cost_table_is_apart_and_quality_tables_hold_no_timing(comparison):
    report = report_of(comparison)
    assert {"training_seconds", "ms_per_query", "parameters"} <= set(report.cost.columns)
    keys = {key for table in report.tables for row in table.rows for key in row.cells}
    assert not keys & set(report.cost.columns)


@pytest.mark.parametrize("metric", ["val/map", "val/ndcg@5"])
def test_another_primary_metric_orders_the_rows_and_is_shown(tmp_path, metric):
    for model, skill in (("zero_shot", 1.0), ("dcdt", 3.0)):
        write_run(tmp_path, model, skill=skill, overrides={"primary_metric": metric})
    report = report_of(tmp_path)
    assert report.metric == metric.removeprefix("val/") in table(report, "main").columns
    assert table(report, "main").rows[0].name == "dcdt"


def test_the_reference_is_the_cosine_that_is_not_whitened(tmp_path):
    for fold in range(3):
        write_run(tmp_path, "zero_shot", fold, skill=2.0, overrides={"model.whiten": "soft"})
        write_run(tmp_path, "zero_shot", fold, skill=0.5)
    report = make_report(read_runs([tmp_path]))
    assert (report.best.label, report.reference.label) == ("zero_shot_whitened", "zero_shot")


def test_models_that_were_trained_in_different_ways_are_noted(tmp_path):
    for fold in range(2):
        write_run(tmp_path, "zero_shot", fold)
        write_run(tmp_path, "dcdt", fold, overrides={"optimizer.lr": 0.01})
        write_run(tmp_path, "single_tower", fold)
    notes = make_report(read_runs([tmp_path])).tables[0].notes
    assert "Trained each in its own way. dcdt: optimizer.lr=0.01; single_tower: optimizer.lr=0.001." in notes


def test_another_metric_orders_and_tests(comparison):
    runs = read_runs([comparison])
    report = make_report(runs, "recall@1")
    assert report.metric == "recall@1"
    assert "recall@1" in next(table for table in report.tables if table.name == "tests").caption
    values = [row.cells["recall@1"].value for row in report.tables[0].rows if "recall@1" in row.cells]
    assert values == sorted(values, reverse=True)
    with pytest.raises(UserError, match=r"--metric is 'auroc'; choose one of mrr, ndcg@10, recall@1"):
        make_report(runs, "auroc")


def test_learning_curves_are_by_the_number_of_training_queries(tmp_path):
    for few in (64, 16, None):
        for fold in range(2):
            queries = {"train": few or 200 + fold, "val": 12, "test": 12}
            write_run(
                tmp_path,
                fold=fold,
                skill=(few or 200) / 50,
                overrides={"split.train_queries": few},
                provenance={"split_fingerprint": f"{few}", "queries": queries},
            )
    for fold in range(2):
        write_run(tmp_path, "zero_shot", fold, provenance={"split_fingerprint": "None"})
    report = make_report(read_runs([tmp_path]))
    curves = learning_curves(report)
    assert [number for number, _ in curves["dcdt"]] == [16, 64, 200.5]
    assert list(curves) == ["dcdt"]
    assert "learning" in make_figures(report)


def test_models_are_compared_on_the_divisions_both_have(tmp_path):
    for fold in range(3):
        write_run(tmp_path, "zero_shot", fold, skill=0.2)
    for fold in range(1, 4):  # fold 3 of dcdt and fold 0 of zero_shot stand alone
        write_run(tmp_path, "dcdt", fold, skill=2.0)
    [one] = make_report(read_runs([tmp_path])).comparisons
    assert one.n == 2 * 12


def test_no_division_in_common_is_refused(tmp_path):
    write_run(tmp_path, "zero_shot", 0, n=24)
    write_run(tmp_path, "dcdt", 1, n=12)  # another division, whose test queries are among those of the first
    with pytest.raises(UserError, match=r"no two models here were tested on the same division"):
        make_report(read_runs([tmp_path]))


def test_every_row_is_tested_against_the_one_that_is_asked_for(comparison):
    report = make_report(read_runs([comparison]), against="bm25")
    assert report.reference.label == "bm25"
    assert {one.reference for one in report.comparisons} == {"bm25", report.best.label}
    tests = next(table for table in report.tables if table.name == "tests")
    assert "every model against bm25 and against the best" in tests.caption
    with pytest.raises(UserError, match=r"--against: there is no finished 'nobody' here; choose of: .*bm25"):
        make_report(read_runs([comparison]), against="nobody")


def test_captions_give_units_their_largest_the_design_effect_and_what_would_be_found(tmp_path):
    for fold in range(4):
        write_run(tmp_path, "zero_shot", fold, units=every(2))
        write_run(tmp_path, "dcdt", fold, skill=2.0, units=every(2))
    report = report_of(tmp_path)
    main, tests = table(report, "main"), table(report, "tests")
    (comparison,) = report.comparisons
    for text in (
        "48 unique test queries",
        "Units: 24 (queries that share their best positive), the largest of 2 queries; design effect ",
        f"Smallest detectable difference: {comparison.detectable:.3f} in MRR",
        "by units",
    ):
        assert text in main.caption
    assert main.columns["warm"] == "MRR warm (n = 32 in 24 units)"
    assert f"median design effect of the differences {comparison.design_effect:.2f}" in tests.caption
    assert "the best was found on these same queries" in tests.caption and "flip together" in tests.caption
    assert tests.rows[0].cells["units"] == "24"


def test_units_of_version_0_1_come_from_other_runs_or_the_unchanged_collection_or_are_said_to_lack(tmp_path):
    videos = [{"_id": f"v{at}", "title": f"Lecture {at}", "text": "x"} for at in range(12)]
    queries = [{"_id": f"q{at}", "text": f"Question {at}"} for at in range(12)]
    lines = [f"q{at}\tv{at // 4}\t1" for at in range(12)]
    folder = write_folder(tmp_path / "toy", videos, queries, all=lines)
    for model in ("zero_shot", "dcdt"):
        write_run(tmp_path / "old", model, units=None)
        write_run(tmp_path / "same", model, units=None, collection=folder)
    write_run(tmp_path / "new", "bm25", units=lambda query: "one" if query == "q0" else "two")
    captions = {
        name: table(report, "main").caption
        for name, report in {
            "old": report_of(tmp_path / "old"),
            "same": report_of(tmp_path / "same"),
            "new": report_of(tmp_path / "old", tmp_path / "new"),
        }.items()
    }
    assert "Units: not known (runs of version 0.1" in captions["old"]
    assert "Units: 3 (queries that share their best positive), the largest of 4 queries" in captions["same"]
    assert "Units: 2 (queries that share their best positive), the largest of 11 queries" in captions["new"]


def test_a_model_of_several_schools_stands_beside_that_of_one_with_its_privacy(tmp_path):
    for fold in range(2):
        write_run(tmp_path, "zero_shot", fold)
        write_run(tmp_path, "dcdt", fold)
        merged = write_run(tmp_path, "dcdt", fold, skill=2.0, name=f"merged{fold}")
        (merged / "federation.json").write_text('{"schools": 3, "queries": 0, "epsilon": 8.0, "delta": 1e-05}')
    report = report_of(tmp_path)
    merged_label = "dcdt, federated=3 schools, epsilon 8 at delta 1e-05"
    assert set(rows(report)) == {"zero_shot", "dcdt, federated=no", merged_label}
    assert f"{merged_label}: fitted from the sums of 3 schools, epsilon 8 at delta 1e-05." in report.tables[0].notes
    (tmp_path / "merged0" / "federation.json").write_text('{"schools": "many"}')
    with pytest.raises(UserError, match=r"federation\.json is corrupt"):
        report_of(tmp_path)


def test_schools_have_a_table_with_the_worst_of_them(tmp_path):
    for fold in range(4):
        for model, skill in (("zero_shot", 0.5), ("dcdt", 2.0)):
            write_run(tmp_path, model, fold, skill=skill, n=40, kinds=("a", "b"), overrides={"split.schools": 2})
    found = table(report_of(tmp_path), "kinds")
    assert found.title == "MRR by school" and list(found.columns) == ["a", "b", "worst"]
    for row in found.rows:
        assert row.cells["worst"].value == min(row.cells["a"].value, row.cells["b"].value)
    assert [row.name for row in found.rows if row.cells["worst"].best] == ["dcdt"]
