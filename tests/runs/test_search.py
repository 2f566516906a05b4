"""The words at the end of a hyperparameter search."""

import pytest
import yaml

from dcdt.runs.search import describe_search
from dcdt.utils.files import write_json


def write_trial(folder, name, lr, val, test, status="finished"):
    run = folder / name
    run.mkdir(parents=True)
    write_json(run / "status.json", {"status": status})
    config = {
        "model": {"name": "dcdt", "dropout": 0.123456},
        "optimizer": {"name": "adamw", "lr": lr},
        "loss": {"name": "infonce"},
        "primary_metric": "val/mrr",
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = {"val/mrr": val, "test/mrr": test, "zero_shot/val/mrr": 0.7, "zero_shot/test/mrr": 0.6}
    write_json(run / "metrics.json", metrics)


@pytest.fixture
def sweep(tmp_path):
    asked = ["model=choice(dcdt,dcdt_residual)", "optimizer.lr=tag(log,interval(1e-4,1e-2))", "loss=choice(infonce)"]
    asked += ["model.dropout=interval(0.0,0.5)", "data=files", "experiment=search"]
    common = ["data=files", "data.path=mine", "experiment=search", "hydra.sweeper.n_trials=2"]
    write_json(tmp_path / "sweep.json", {"common": common, "asked": asked})
    write_trial(tmp_path, "a", 0.00123456, 0.72, 0.65)
    write_trial(tmp_path, "b", 0.005, 0.71, 0.9)
    write_trial(tmp_path, "c", 0.001, 0.99, 0.99, status="failed")
    return tmp_path


def test_the_best_trial_on_validation_is_named_with_rounded_settings_and_a_command(sweep):
    first, settings, command = describe_search(sweep)
    assert first.startswith(
        "best of 3 trials: val/mrr 0.720 (zero_shot 0.700), test/mrr 0.650 (zero_shot 0.600): better"
    )
    assert settings == "its settings: model=dcdt optimizer.lr=0.00123 loss=infonce model.dropout=0.123"
    assert command.endswith(
        "dcdt.run data=files data.path=mine model=dcdt optimizer.lr=0.00123 loss=infonce model.dropout=0.123"
    )


@pytest.mark.parametrize(("val", "test"), [(0.75, 0.6), (0.7, 0.7)])
def test_what_is_not_better_on_both_sides_is_no_better_than_untrained(sweep, val, test):
    write_trial(sweep, "d", 0.01, val, test)
    (sweep / "a" / "status.json").write_text('{"status": "failed"}')
    (sweep / "b" / "status.json").write_text('{"status": "failed"}')
    assert describe_search(sweep)[0].endswith("no better than untrained")


def test_without_a_finished_trial_nothing_is_said(tmp_path):
    assert describe_search(tmp_path) == []
