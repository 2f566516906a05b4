"""What each model declares to read of the settings of training is what its scores depend on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose
from omegaconf import OmegaConf
from support import make_collection, slow_but

from dcdt.config import depends_on, job_name, parse, relevant_overrides
from dcdt.config.registry import MODELS, TRAINED, search_space
from dcdt.data.beir import load_collection
from dcdt.data.splits import make_split
from dcdt.runs.provenance import fingerprint
from dcdt.runs.sweep import without_unread
from dcdt.training import build, fit
from dcdt.training.loggers.base import RunLogger

pytestmark = pytest.mark.usefixtures("hydra")

SPACES = {name for name in MODELS if search_space(name)}
CHANGES = {
    "loss": "loss=triplet",
    "sampler": "sampler=random",
    "batch_size": "batch_size=7",
    "optimizer": "optimizer.lr=0.02",
    "train_queries": "split.train_queries=12",
}
LISTWISE = {**CHANGES, "loss": "loss.temperature=0.3", "sampler": "sampler=in_batch"}
BASES = {  # settings under which every model uses what it is given
    "dcdt_residual": ["loss.margin=2"],
    "dcdt_ridge": ["model.penalty=1"],
    "federated": ["split.schools=3", "model.model.penalty=1"],
    "two_stage": ["model.penalty=1", "model.depth=5"],
    "two_stage_joint": ["model.penalty=1", "model.depth=5", "loss=infonce", "sampler=catalogue"],
    "hybrid": ["model@model.second=dcdt_ridge", "model.second.penalty=1"],
}


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Questions of eight learners among the videos that they watched."""
    folder, rng = make_collection(tmp_path_factory.mktemp("reads") / "c"), np.random.default_rng(0)
    records = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    for at, record in enumerate(records):
        record["metadata"] = {"timestamp": 10 * at, "user_id": f"u{at % 8}"}
    (folder / "queries.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    watched = [f"u{rng.integers(8)},v{rng.integers(20)},{time}" for time in range(1, 600, 3)]
    (folder / "interactions.csv").write_text("\n".join(["user_id,item_id,timestamp", *watched]) + "\n")
    return load_collection(folder)


def config_of(collection, name, *changes):
    fixed = ["data=files", f"data.path={collection.path}", f"outputs={collection.path}/out", "split.part=all"]
    fixed += ["trainer=cpu", "trainer.max_epochs=1", "logger=none", "callbacks.progress=false", "ks=[1,5]"]
    return compose("config", overrides=[*fixed, f"model={name}", *BASES.get(name, []), *changes])


def outcome(collection, name, *changes):
    """Scores of the test queries, and the losses of training: the untrained weights may be the best."""
    settings = parse(config_of(collection, name, *changes))
    build.prepare(settings)
    tables = build.load_tables(settings, collection)
    data = build.make_datamodule(settings, collection, make_split(collection, settings.split), tables)
    trained = fit.train(settings, tables, data, RunLogger(), Path("nowhere"))
    trained.trainer.test(trained.model, datamodule=data, verbose=False)
    losses = [row["train/loss"] for row in trained.history]
    return torch.cat([trained.model.results["test"].scores.flatten(), torch.tensor(losses)])


WITHOUT_PICTURES = [name for name in MODELS if name != "image"]  # whose test is in tests/baselines/test_image.py


@pytest.mark.parametrize("name", slow_but(["zero_shot"], WITHOUT_PICTURES))
def test_scores_depend_on_what_a_model_declares_and_on_nothing_else(collection, name):
    changes = LISTWISE if name == "two_stage_joint" else CHANGES
    base, keys = outcome(collection, name), depends_on({"name": name})
    unread = [changes[key] for key in sorted(TRAINED - keys)]
    if unread:
        torch.testing.assert_close(outcome(collection, name, *unread), base, rtol=0, atol=1e-6)
    for key in sorted(keys):  # so that a declaration which lacks one fails above
        assert not torch.allclose(outcome(collection, name, changes[key]), base, rtol=0, atol=1e-6), key


def test_a_choice_between_trials_is_made_by_the_validation_queries():
    assert all("train_queries" in depends_on({"name": name}, trials=2) for name in SPACES)
    assert depends_on({"name": "zero_shot"}, trials=2) == set()
    assert depends_on({"name": "a model of tomorrow"}) == depends_on(None) == TRAINED


def test_jobs_that_differ_in_what_is_not_read_are_one(collection):
    """Also where the value would be refused: it is not looked at once the job is done."""
    first, *others = (
        without_unread(config_of(collection, "zero_shot", *changes))
        for changes in ([], list(CHANGES.values()), ["split.train_queries=9999"], ["loss.margin=9"])
    )
    assert first.split.train_queries is None
    assert {fingerprint(config, "a", "b") for config in (first, *others)} == {fingerprint(first, "a", "b")}
    fitted = [without_unread(config_of(collection, "dcdt_ridge", change)) for change in CHANGES.values()]
    assert len({fingerprint(config, "a", "b") for config in fitted}) == 2  # the number of queries alone
    assert fitted[-1].split.train_queries == 12


def test_a_job_is_named_by_what_its_model_reads():
    choices = ["model=zero_shot", "seed=1", *CHANGES.values(), "+optimizer.beta=1", "model@loss.teacher=bm25"]
    assert relevant_overrides(choices, {"name": "zero_shot"}) == ["model=zero_shot", "seed=1"]
    assert job_name(choices, {"name": "zero_shot"}) == job_name(["model=zero_shot", "seed=1"])
    assert (
        job_name(choices, {"name": "dcdt"})
        == job_name(choices)
        == job_name(choices, OmegaConf.create({"name": "${x}"}))
    )
    assert "train_queries=12" in job_name(choices, {"name": "dcdt_ridge"})
