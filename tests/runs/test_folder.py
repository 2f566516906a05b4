import json

import pytest
from hydra import compose, initialize_config_dir
from support import make_collection, slow_but

from dcdt.config import config_folder, register_resolvers
from dcdt.data.beir import load_collection
from dcdt.runs.folder import RunFolder
from dcdt.runs.provenance import code_version, fingerprint
from dcdt.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("status") / "c", n_videos=5, n_queries=9)


@pytest.fixture(autouse=True)
def hydra():
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield


def config_of(folder, *changes):
    return compose("config", overrides=["data=files", f"data.path={folder}", *changes])


def finished(run, config, folder):
    provenance = {"collection_fingerprint": load_collection(folder).fingerprint, "code": code_version()["code"]}
    status = RunFolder(run)
    status.start(config, provenance)
    (run / "metrics.json").write_text('{"val/mrr": 0.25}')
    status.finish()
    return status


def read(run):
    return json.loads((run / "status.json").read_text())


def test_a_run_begins_and_finishes(folder, tmp_path):
    status = RunFolder(tmp_path)
    status.start(config_of(folder), {"collection_fingerprint": "x", "code": "y"})
    started = read(tmp_path)
    assert started["status"] == "running"
    assert "${" not in (tmp_path / "config.yaml").read_text()
    status.finish()
    assert read(tmp_path)["status"] == "finished"
    assert read(tmp_path)["started"] == started["started"]


def test_a_failed_run_says_why(folder, tmp_path):
    RunFolder(tmp_path).fail(config_of(folder), ValueError("7 scores are NaN"))
    assert read(tmp_path)["status"] == "failed"
    assert read(tmp_path)["error"] == "ValueError: 7 scores are NaN"
    RunFolder(tmp_path).mark_not_applicable(config_of(folder), "no interactions")
    assert (read(tmp_path)["status"], read(tmp_path)["error"]) == ("not_applicable", "no interactions")


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    status = RunFolder(tmp_path / "run")
    status.require_empty(sweeping=False)
    (tmp_path / "run").mkdir()
    status.require_empty(sweeping=False)
    (tmp_path / "run" / "file").write_text("")
    for sweeping in (False, True):
        with pytest.raises(UserError, match=r"exists and is not empty\.\nName another one"):  # it may be anything
            status.require_empty(sweeping)
    (tmp_path / "run" / "status.json").write_text("{")
    with pytest.raises(UserError, match="Remove that run, or name another one"):
        status.require_empty(sweeping=False)
    with pytest.raises(UserError, match=r"status\.json is corrupt"):
        status.require_finished()


def test_a_job_of_a_sweep_takes_the_place_of_its_own_attempt(folder, tmp_path):
    status = RunFolder(tmp_path)
    status.fail(config_of(folder), ValueError("x"))
    status.require_empty(sweeping=True)
    with pytest.raises(UserError):
        status.require_empty(sweeping=False)


def test_a_run_that_never_began_leaves_nothing(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    RunFolder(run).withdraw(UserError("no key"))
    assert not run.exists()
    status = RunFolder(run)
    status.start(config_of(folder), {"collection_fingerprint": "x", "code": "y"})
    status.withdraw(UserError("no key"))
    assert (read(run)["status"], read(run)["error"]) == ("failed", "UserError: no key")


def test_a_finished_job_is_known_again(folder, tmp_path):
    config = config_of(folder)
    status = finished(tmp_path, config, folder)
    assert status.finished_metric(config) == 0.25
    for change in ("logger=csv", "outputs=/elsewhere", "callbacks.progress=false"):
        same = config_of(folder, change)
        assert status.finished_metric(same) == 0.25


CHANGES = ["seed=1", "loss.margin=0.5", "split=folds", "callbacks.patience=3", "trials=2"]


@pytest.mark.parametrize("change", slow_but(["seed=1", "loss.margin=0.5"], CHANGES))
def test_another_configuration_is_another_job(folder, tmp_path, change):
    status = finished(tmp_path, config_of(folder), folder)
    other = config_of(folder, change)
    assert status.finished_metric(other) is None


def test_a_job_that_did_not_finish_is_done_again(folder, tmp_path):
    config = config_of(folder)
    status = finished(tmp_path, config, folder)
    status.fail(config, ValueError("x"))
    assert status.finished_metric(config) is None
    (tmp_path / "status.json").write_text("{")
    assert status.finished_metric(config) is None


def test_other_data_or_code_is_another_job(folder):
    config = config_of(folder)
    keys = {fingerprint(config, *given) for given in (("a", "b"), ("a", "c"), ("c", "b"))}
    assert len(keys) == 3
    assert fingerprint(config, "a", "b") in keys
