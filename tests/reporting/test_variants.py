import numpy as np
import pytest
from run_folders import write_run

from dcdt.config import model_presets
from dcdt.reporting.variants import make_variants
from dcdt.runs.reader import read_runs
from dcdt.utils.errors import UserError


def labels(folder):
    return [variant.label for variant in make_variants(read_runs([folder]))]


def write(folder, *changes, model="dcdt", **more):
    for change in changes:
        write_run(folder, model, overrides=change, **more)


def test_folds_and_seeds_make_no_variant(comparison):
    variants = {one.label: one for one in make_variants(read_runs([comparison]))}
    assert variants.keys() == {"bm25", "dcdt", "zero_shot"}
    assert [(run.fold, run.seed) for run in variants["dcdt"].runs] == [
        (fold, seed) for fold in range(4) for seed in (0, 1)
    ]
    assert variants["dcdt"].folds == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": "/elsewhere"},
        {"logger": {"name": "wandb", "project": "x"}},
        {"callbacks.progress": True},
        {"experiment_name": "comparison"},
        {"data.path": "/moved/here", "data.name": "toy"},
        {"loss.margin": 1},  # 1.0 before
    ],
)
def test_where_a_run_writes_and_logs_makes_no_variant(tmp_path, change):
    write_run(tmp_path, fold=0)
    write_run(tmp_path, fold=1, overrides=change)
    assert labels(tmp_path) == ["dcdt"]


def test_a_label_says_what_differs_and_nothing_else(tmp_path):
    write(tmp_path, {}, {"loss.squared": True}, {"loss.squared": True, "loss.margin": 0.5})
    assert labels(tmp_path) == [
        "dcdt, loss.margin=0.5, loss.squared=true",
        "dcdt, loss.margin=1, loss.squared=false",
        "dcdt, loss.margin=1, loss.squared=true",
    ]


def test_a_field_is_compared_within_its_own_kind(tmp_path):
    write(tmp_path, {}, {"sampler": {"name": "random", "negatives": 4}})
    assert labels(tmp_path) == ["dcdt, sampler=hard", "dcdt, sampler=random"]  # random has no pool to name
    write(tmp_path, {"sampler.pool_fraction": 0.1})
    assert labels(tmp_path) == [
        "dcdt, sampler=hard, sampler.pool_fraction=0.1",
        "dcdt, sampler=hard, sampler.pool_fraction=0.3",
        "dcdt, sampler=random",
    ]


def test_choices_tell_apart_what_has_the_same_name_alone(tmp_path):
    write(tmp_path, {"model.width": 64})
    write(tmp_path, {}, model="single_tower")
    assert labels(tmp_path) == ["dcdt", "single_tower"]
    write(tmp_path, {"optimizer.lr": 0.01}, model="single_tower", fold=1)
    assert labels(tmp_path) == [
        "dcdt",
        "single_tower, optimizer.lr=0.001",
        "single_tower, optimizer.lr=0.01",
    ]


def test_training_choices_make_no_variant_of_what_is_not_trained(tmp_path):
    changes = ({}, {"loss.squared": True}, {"batch_size": 64}, {"trials": 4}, {"trainer.max_epochs": 9})
    write(tmp_path, *changes, model="zero_shot")
    (variant,) = make_variants(read_runs([tmp_path]))
    assert (variant.label, len(variant.runs)) == ("zero_shot", 1)
    write(tmp_path, {"model.fields": ["title"]}, model="zero_shot", skill=0.1)
    assert labels(tmp_path) == ["zero_shot, model.fields=[title,text]", "zero_shot, model.fields=[title]"]


def test_tuning_effort_makes_a_variant_where_there_is_something_to_tune(tmp_path):
    write(tmp_path, {}, {"trials": 4})
    assert labels(tmp_path) == ["dcdt, trials=1", "dcdt, trials=4"]


def test_simulated_interactions_are_said_wherever_they_are_used(tmp_path):
    simulated = {"simulated": ["interactions"]}
    for model in ("collaborative", "hybrid", "zero_shot"):
        write_run(tmp_path, model, provenance=simulated)
    assert labels(tmp_path) == ["collaborative (simulated)", "hybrid", "zero_shot"]
    write_run(tmp_path, "hybrid", overrides={"model.second": "collaborative"}, provenance=simulated)
    assert "hybrid (simulated), model.second=collaborative" in labels(tmp_path)


def test_real_interactions_are_not_called_simulated(tmp_path):
    write_run(tmp_path, "collaborative", provenance={"simulated": ["query users and times"]})
    assert labels(tmp_path) == ["collaborative"]


def test_a_failed_job_belongs_to_its_variant_and_a_second_attempt_replaces_it(tmp_path):
    write_run(tmp_path / "a", fold=0)
    write_run(tmp_path / "a", fold=1, status="failed", error="x")
    write_run(tmp_path / "a", fold=2, status="failed", error="x")
    write_run(tmp_path / "b", fold=2)
    (variant,) = make_variants(read_runs([tmp_path / "a", tmp_path / "b"]))
    places = [[run.fold for run in runs] for runs in (variant.runs, variant.missing, variant.retried)]
    assert places == [[0, 2], [1], [2]]


def test_the_same_run_twice_counts_once_and_another_result_is_refused(tmp_path):
    write_run(tmp_path, ranks=np.ones(12), name="one")
    write_run(tmp_path, ranks=np.ones(12), name="two")
    (variant,) = make_variants(read_runs([tmp_path]))
    assert len(variant.runs) == 1
    write_run(tmp_path, ranks=np.full(12, 2), name="three")
    with pytest.raises(UserError, match=r"two runs of dcdt, fold 0, seed 0.*(one|two).*three|three.*one"):
        make_variants(read_runs([tmp_path]))


@pytest.mark.parametrize(
    ("place", "value", "word"),
    [
        ("split_fingerprint", "other", "split of fold 0"),
        ("collection_fingerprint", "other", "collection"),
        ("embeddings", "other", "embedding space"),
    ],
)
def test_runs_on_other_data_are_refused_by_name(tmp_path, place, value, word):
    write_run(tmp_path, "zero_shot")
    write_run(tmp_path, "dcdt", provenance={place: value})
    with pytest.raises(UserError, match=f"not comparable: the {word}") as caught:
        make_variants(read_runs([tmp_path]))
    assert len(str(caught.value).splitlines()) == 2
    assert all(f"model={model},fold=0" in str(caught.value) for model in ("zero_shot", "dcdt"))


def test_splits_are_compared_fold_by_fold(tmp_path):
    for fold in (0, 1):  # another fingerprint for each fold, the same for both models
        write_run(tmp_path, "zero_shot", fold)
        write_run(tmp_path, "dcdt", fold)
    assert labels(tmp_path) == ["dcdt", "zero_shot"]


@pytest.mark.parametrize(
    "change",
    [
        {"ks": [1, 5]},
        {"primary_metric": "val/map"},
        {"split.part": "sealed"},
        {"split.n_folds": 5},
        {"split.name": "query"},
    ],
)
def test_settings_that_decide_what_is_measured_must_agree(tmp_path, change):
    write_run(tmp_path, "zero_shot")
    write_run(tmp_path, "dcdt", overrides=change)
    with pytest.raises(UserError, match="not comparable"):
        make_variants(read_runs([tmp_path]))


@pytest.mark.parametrize(("key", "value"), [("train_queries", 32), ("max_overlap", 0.3)])
def test_other_training_queries_make_a_variant_of_what_is_fitted(tmp_path, key, value):
    for choice in (value, None):
        for model in ("bm25", "dcdt", "zero_shot"):
            changes = {f"split.{key}": choice}
            write_run(tmp_path, model, overrides=changes, provenance={"split_fingerprint": f"{choice}"})
    assert labels(tmp_path) == ["bm25", f"dcdt, {key}={value}", f"dcdt, {key}=null", "zero_shot"]


def test_what_is_not_trained_is_one_row_also_where_no_run_finished(tmp_path):
    for margin in (0.5, 1.0):
        write_run(tmp_path, "zero_shot", overrides={"loss.margin": margin}, status="failed", error="x")
        write_run(tmp_path, overrides={"loss.margin": margin})
    assert labels(tmp_path) == ["dcdt, loss.margin=0.5", "dcdt, loss.margin=1", "zero_shot"]


def test_training_sizes_are_compared_on_the_same_test_queries_only(tmp_path):
    for few, n in ((32, 12), (64, 11)):
        provenance = {"split_fingerprint": f"few{few}"}
        write_run(tmp_path, overrides={"split.train_queries": few}, provenance=provenance, n=n)
    with pytest.raises(UserError, match="not comparable: the test side of fold 0"):
        labels(tmp_path)


def test_a_run_is_named_by_the_option_that_it_is(tmp_path):
    known = model_presets()
    write_run(tmp_path, "hybrid", overrides={"model": known["hybrid_towers"]}, name="a")
    older = {key: value for key, value in known["dcdt_ridge"].items() if key != "fit_on"}  # before that key came
    write_run(tmp_path, "dcdt", overrides={"model": older}, name="b")
    write_run(tmp_path, "dcdt", overrides={"model": {**known["dcdt"], "width": 8}}, name="c")
    assert labels(tmp_path) == ["dcdt", "dcdt_ridge", "hybrid_towers"]
    changed = {**known["hybrid_towers"], "fusion": "rrf"}
    write_run(tmp_path, "hybrid", overrides={"model": changed}, name="d")
    expected = ["dcdt", "dcdt_ridge", "hybrid_towers, model.fusion=convex", "hybrid_towers, model.fusion=rrf"]
    assert labels(tmp_path) == expected
