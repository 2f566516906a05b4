from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from support import EMBEDDER, make_collection, prepare, quiet_trainer

from dcdt.config import config_folder, parse, register_resolvers
from dcdt.config.registry import MODELS, look_up
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.embeddings.tables import load_tables
from dcdt.training.build import make_trainer, reference_results
from dcdt.training.callbacks.divergence import DivergenceCheck
from dcdt.training.callbacks.history import History
from dcdt.training.summary import simulated_parts


@pytest.fixture(autouse=True)
def hydra():
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return prepare(make_collection(tmp_path_factory.mktemp("setup") / "c"), SplitConfig("query", 0, 10, "all"))


def settings_of(*changes):
    return parse(compose("config", overrides=["data=files", "data.path=/x", *changes]))


def reference(made, fields):
    """Zero-shot beside a model that reads these fields."""
    cache = str(made.collection.path / "embeddings")
    tables = load_tables(made.collection, fields, EMBEDDER, cache, progress=False)
    data = RankingDataModule(made.collection, made.split, made.pairs, None, 16, 0, (1, 5))
    return reference_results(tables, quiet_trainer(), data)


def zero_shot(made):
    """The results of the model itself."""
    data = RankingDataModule(made.collection, made.split, made.pairs, None, 16, 0, (1, 5))
    model = look_up(MODELS, "zero_shot")(settings_of("model=zero_shot").model, made.tables)
    quiet_trainer().test(model, datamodule=data, verbose=False)
    return model.results


@pytest.mark.parametrize("fields", [["title"], ["text"], ["title", "text"], ["text", "title"]])
def test_the_reference_is_zero_shot_whatever_the_model_reads(made, fields):
    found, expected = reference(made, fields), zero_shot(made)
    assert found.keys() == expected.keys()
    for name, side in expected.items():
        torch.testing.assert_close(found[name].scores, side.scores, atol=1e-6, rtol=0)
        torch.testing.assert_close(found[name].metrics, side.metrics)
    if len(fields) == 2:
        assert all(torch.equal(found[name].scores, side.scores) for name, side in expected.items())


@pytest.mark.parametrize(
    ("split", "changes", "said"),
    [
        ("query", ["model=dcdt"], False),
        ("query", ["model=hybrid"], False),
        ("query", ["model=collaborative"], True),
        ("query", ["model=hybrid", "model@model.second=collaborative"], True),
        ("time", ["model=dcdt"], True),
    ],
)
def test_simulated_parts_are_said_where_figures_rest_on_them(split, changes, said):
    collection, division = SimpleNamespace(simulated=["interactions"]), SimpleNamespace(name=split)
    assert simulated_parts(collection, division, settings_of(*changes)) == (["interactions"] if said else [])


@pytest.mark.parametrize("callbacks", [[], [History()]])
def test_a_training_is_checked_for_divergence_before_any_other_callback(callbacks):
    found = [type(one) for one in make_trainer(settings_of("trainer=cpu"), callbacks).callbacks]
    assert found[:2] == ([DivergenceCheck, History] if callbacks else [])
