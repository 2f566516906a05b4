"""Keys by their names of before are read on the command line, in experiment files and in stored runs."""

import json
import logging
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dcdt import cli
from dcdt.config import config_folder, parse, register_resolvers, renames
from dcdt.config.renames import RENAMED, normalise, rename_overrides
from dcdt.reporting.variants import make_variants
from dcdt.runs.folder import RunFolder
from dcdt.runs.reader import read_runs
from dcdt.training.checkpoint import restore
from dcdt.training.experiment import run
from dcdt.training.loggers.base import RunLogger

OLD = {  # as on a command line, and what it is now
    "model.weight_on=val": "model.tune_on=val",
    "++model.recall.weight_on=val": "++model.recall.tune_on=val",
    "loss.teacher.weight_on=val": "loss.teacher.tune_on=val",
    "sampler.pool_share=0.1,0.2": "sampler.pool_fraction=0.1,0.2",
    "loss.learned=true": "loss.learn_temperature=true",
    "trainer.tables=float16": "trainer.embedding_dtype=float16",
    "~trainer.tables": "~trainer.embedding_dtype",
}


@pytest.fixture(autouse=True)
def hydra():
    register_resolvers()
    renames._warn.cache_clear()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield


def with_old_names(config):
    """What a run of before wrote: the same configuration with the old names of the keys."""
    back = {new: old for old, (new, _) in RENAMED.items()}
    if isinstance(config, dict):
        return {back.get(key, key): with_old_names(value) for key, value in config.items()}
    return config


@pytest.mark.parametrize("old", OLD)
def test_the_command_line_may_have_the_old_name(old, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dcdt.run", "seed=1", old])
    cli.prepare_hydra()
    assert sys.argv[1:] == ["seed=1", OLD[old]]


@pytest.mark.parametrize(
    "text", ["model.learned=true", "tables=1", "weight_on", "data.path=loss.learned", "loss=infonce"]
)
def test_what_is_no_key_of_before_stays(text):
    assert rename_overrides([text]) == [text]


def test_each_old_name_is_said_once(caplog):
    with caplog.at_level(logging.WARNING, "dcdt"):
        rename_overrides(["sampler.pool_share=0.1", "sampler.pool_share=0.2", "loss.learned=true"])
    assert [record.message for record in caplog.records] == [
        "sampler.pool_share is now named sampler.pool_fraction; the old name is read until 0.3.",
        "loss.learned is now named loss.learn_temperature; the old name is read until 0.3.",
    ]


def test_an_experiment_file_may_have_the_old_names():
    """It is merged over the defaults, which have the new names; what the file says is what was given."""
    added = ["+sampler.pool_share=0.1", "+trainer.tables=float16", "loss=infonce", "+loss.learned=true"]
    config = compose("config", ["model=hybrid_towers", "+model.weight_on=val", *added])
    settings = parse(config)
    assert (settings.model.tune_on, settings.sampler.pool_fraction) == ("val", 0.1)
    assert (settings.loss.learn_temperature, settings.trainer.embedding_dtype) == (True, "float16")
    normalise(config)  # what is written to the run's folder
    assert not set(RENAMED) & {*config.model, *config.sampler, *config.loss, *config.trainer}
    assert parse(config) == settings


def test_a_stored_configuration_with_the_old_names_is_the_same(tmp_path):
    config = OmegaConf.to_container(compose("config", ["model=two_stage", "loss=infonce"]), resolve=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(with_old_names(config)))
    assert "weight_on" in (tmp_path / "config.yaml").read_text()
    assert config.pop("plugins") == []
    assert RunFolder(tmp_path).read_config() == config


@pytest.fixture(scope="module")
def finished(small, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fixed = ["trainer=cpu", "logger=none", "callbacks.progress=false", "ks=[1,5]", f"outputs={folder.parent}"]
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("config", ["model=hybrid", "data=files", f"data.path={small}", "trials=2", *fixed])
    run(parse(config), config, RunFolder(folder), RunLogger())
    return folder


def test_a_run_of_before_is_reported_with_those_of_now_and_restored(finished):
    new = restore(finished)
    [before] = make_variants(read_runs([finished]))
    for name in ("config.yaml", "tuning.json"):
        path = finished / name
        stored = with_old_names(yaml.safe_load(path.read_text()))
        path.write_text(json.dumps(stored))  # which is YAML too
        assert "weight_on" in path.read_text() and "tune_on" not in path.read_text()
    old = restore(finished)
    assert old.settings == new.settings
    assert old.model.weight == new.model.weight
    [after] = make_variants(read_runs([finished]))
    assert (after.label, after.runs[0].config) == (before.label, before.runs[0].config)


def test_a_run_that_lacks_keys_which_came_since_is_the_same_variant(finished):
    [before] = make_variants(read_runs([finished]))
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    for part, key in (("callbacks", "monitor"), ("callbacks", "checkpoint_by")):
        del stored[part][key]
    del stored["model"]["second"]["passages"]
    stored["embedder"]["spoken_formulas"] = False  # an option that is gone
    (finished / "config.yaml").write_text(json.dumps(stored))
    [after] = make_variants(read_runs([finished]))
    assert (after.label, after.runs[0].config) == (before.label, before.runs[0].config)
