"""What a Lightning user expects: checkpoints, hyperparameters, and a Trainer of their own."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from support import make_collection, quiet_trainer, slow_but

from dcdt.config import config_folder, parse, register_resolvers
from dcdt.data.beir import load_collection
from dcdt.data.splits import make_split
from dcdt.models.dual_tower import DualTower
from dcdt.models.recommender import Recommender
from dcdt.models.ridge_towers import RidgeTowers
from dcdt.runs.folder import RunFolder
from dcdt.training import build, fit
from dcdt.training.loggers.base import RunLogger
from dcdt.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("collection") / "small")


def parts(folder, out, *changes):
    """Settings, tables and batches of a configuration."""
    register_resolvers()
    fixed = ["data=files", f"data.path={folder}", f"outputs={out}", "trainer=cpu", "callbacks.progress=false"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        settings = parse(compose("config", overrides=[*fixed, "trainer.max_epochs=2", "model=dcdt", *changes]))
    build.prepare(settings)
    collection = load_collection(settings.data.path)
    tables = build.load_tables(settings, collection)
    return settings, tables, build.make_datamodule(settings, collection, make_split(collection, settings.split), tables)


@pytest.mark.parametrize("model", slow_but(["dcdt", "bm25"], ["dcdt", "dcdt_residual", "dcdt_ridge", "bm25"]))
def test_a_checkpoint_of_a_run_is_loaded_as_lightning_loads_one(folder, tmp_path, model):
    settings, tables, data = parts(folder, tmp_path, f"model={model}")
    trained = fit.train(settings, tables, data, RunLogger(), tmp_path / "last.ckpt")
    fit.save(trained, settings, [{}], RunFolder(tmp_path))
    path = tmp_path / "checkpoints" / "best.ckpt"
    loaded = Recommender.load_from_checkpoint(path, tables=tables)
    assert type(loaded) is type(trained.model) and not loaded.training
    assert loaded.hparams == trained.model.hparams and loaded.hparams["model"]["name"] == model
    expected = trained.trainer.predict(trained.model, datamodule=data)
    for (scores, videos), (other_scores, other_videos) in zip(
        expected, quiet_trainer().predict(loaded, datamodule=data), strict=True
    ):
        assert torch.equal(scores, other_scores) and torch.equal(videos, other_videos)
    [row, *_] = quiet_trainer().test(loaded, datamodule=data, verbose=False)
    assert row["test/mrr"] == pytest.approx(float(loaded.results["test"].metrics["mrr"].mean()))


def test_a_checkpoint_of_another_class_or_without_hyperparameters_is_refused(folder, tmp_path):
    settings, tables, data = parts(folder, tmp_path)
    trained = fit.train(settings, tables, data, RunLogger(), tmp_path / "last.ckpt")
    fit.save(trained, settings, [{}], RunFolder(tmp_path))
    path = tmp_path / "checkpoints" / "best.ckpt"
    with pytest.raises(UserError, match="holds a DualTower, which is no RidgeTowers"):
        RidgeTowers.load_from_checkpoint(path, tables=tables)
    state = torch.load(path, weights_only=True)
    state["hyper_parameters"]["model"]["name"] = "os:system"
    torch.save(state, path)
    with pytest.raises(UserError, match="the checkpoint's model is 'os:system'; known are"):
        DualTower.load_from_checkpoint(path, tables=tables)
    del state["hyper_parameters"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"holds no hyperparameters .*\nRestore the run instead"):
        DualTower.load_from_checkpoint(path, tables=tables)


def test_the_datamodule_and_a_model_work_with_a_trainer_of_ones_own(folder, tmp_path):
    import lightning as L

    settings, tables, data = parts(folder, tmp_path, "model=dcdt_residual", "loss=infonce", "sampler=in_batch")
    model = build.make_model(settings, tables)
    options = {"accelerator": "cpu", "max_epochs": 2, "log_every_n_steps": 1, "enable_progress_bar": False}
    trainer = L.Trainer(default_root_dir=tmp_path, **options)
    trainer.fit(model, datamodule=data)
    assert {"train/loss", "val/mrr"} <= trainer.callback_metrics.keys()
    loaded = type(model).load_from_checkpoint(trainer.checkpoint_callback.best_model_path, tables=tables)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_model_that_needs_no_epochs_is_prepared_by_the_trainer_once(folder, tmp_path, monkeypatch):
    settings, tables, data = parts(folder, tmp_path, "model=dcdt_ridge")
    calls, fitted = [], RidgeTowers.on_prepare
    monkeypatch.setattr(RidgeTowers, "on_prepare", lambda self, data: calls.append(1) or fitted(self, data))
    model = build.make_model(settings, tables)
    first, second = (quiet_trainer().test(model, datamodule=data, verbose=False)[0]["test/mrr"] for _ in range(2))
    assert first == second and len(calls) == 1
    assert not torch.equal(model.query_map, torch.eye(tables.width))
