"""A run that was cut off goes on as if it had not been: processes that are killed with no chance to clean up."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from commands import clean_environment, dcdt, mended, on
from embeddings.tiny import write_model
from support import make_collection

# The process kills itself in the given epoch, after its first batch: no handler, no cleanup, nothing flushed.
KILLED = """
import os, signal, sys
import dcdt.models.pairs as pairs
import dcdt.training.fit as setup
trained, step, train = [], pairs.PairRecommender.training_step, setup.train
def dying(self, batch, index):
    if len(trained) == {trial} and self.current_epoch == {epoch} and index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, index)
def counted(*arguments):
    done = train(*arguments)
    trained.append(1)
    return done
pairs.PairRecommender.training_step, setup.train = dying, counted
from dcdt.run import main
main()
"""
LONG = ["trainer=cpu", "logger=csv", "callbacks.progress=false", "callbacks.patience=100", "trainer.max_epochs=60"]


def killed(epoch, *arguments, trial=0):
    code = KILLED.format(epoch=epoch, trial=trial)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=clean_environment()
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("collection") / "small", n_videos=20, n_queries=60)


def the_same(one, other):
    """The same numbers, bit for bit: every epoch's loss, the weights that stayed, every metric."""
    for name in ("history.csv", "metrics.json", "per_query.parquet", "run.trec"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = (torch.load(run / "checkpoints" / "best.ckpt", weights_only=True) for run in (one, other))
    assert first["epoch"] == second["epoch"] and first["state_dict"].keys() == second["state_dict"].keys()
    assert all(torch.equal(first["state_dict"][name], second["state_dict"][name]) for name in first["state_dict"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ["callbacks.checkpoint_seconds=0", "optimizer.schedule=linear"],
        ["callbacks.checkpoint_seconds=0.3", "sampler=dynamic_hard", "sampler.warm_up=3", "sampler.every=20"],
        ["callbacks.checkpoint_seconds=0", "model=dcdt_residual", "loss=infonce", "loss.learn_temperature=true"],
    ],
)
def test_killed_in_epoch_50_and_resumed_equals_uninterrupted(folder, tmp_path, changes):
    arguments = [*on(folder, tmp_path), *LONG, *changes]
    killed(49, *arguments, f"hydra.run.dir={tmp_path}/killed")
    status = json.loads((tmp_path / "killed" / "status.json").read_text())
    assert status["status"] == "running" and not (tmp_path / "killed" / "metrics.json").exists()
    state = torch.load(tmp_path / "killed" / "checkpoints" / "last.ckpt", weights_only=True)
    assert 0 < state["epoch"] <= 48
    done = dcdt("run", f"resume={tmp_path}/killed")
    assert done.returncode == 0, done.stderr
    assert "resuming killed from its last state" in done.stderr
    whole = dcdt("run", *arguments, f"hydra.run.dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    the_same(tmp_path / "killed", tmp_path / "whole")
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()] == ["best.ckpt"]
    provenance = json.loads((tmp_path / "killed" / "provenance.json").read_text())
    assert (
        provenance["command"][-1] == f"resume={tmp_path}/killed"
        and provenance["begun"]["command"] != provenance["command"]
    )


@pytest.mark.slow
def test_a_training_encoder_resumes_to_the_same_bits(folder, tmp_path):
    model = write_model(tmp_path / "tiny")
    arguments = [
        *("data=files", f"data.path={folder}", f"data.cache={tmp_path}/cache", f"outputs={tmp_path}/out", "ks=[1,5]"),
        *(f"embedder.package={model}", "embedder.layer_weights=[0.2,1.0]", "embedder.max_tokens=32"),
        *("experiment=encoder", "model.dropout=0.3", *LONG[:-1], "trainer.max_epochs=8"),
        "callbacks.checkpoint_seconds=0",
    ]
    killed(5, *arguments, f"hydra.run.dir={tmp_path}/killed")
    assert dcdt("run", f"resume={tmp_path}/killed").returncode == 0
    assert dcdt("run", *arguments, f"hydra.run.dir={tmp_path}/whole").returncode == 0
    the_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_a_run_of_several_trials_keeps_those_that_ended(folder, tmp_path):
    arguments = [
        *on(folder, tmp_path),
        *LONG[:-1],
        "trainer.max_epochs=20",
        "trials=3",
        "callbacks.checkpoint_seconds=0",
    ]
    killed(10, *arguments, f"hydra.run.dir={tmp_path}/killed", trial=1)
    assert {path.name for path in (tmp_path / "killed" / "checkpoints").iterdir()} == {"last_0.ckpt", "last_1.ckpt"}
    assert "ended" in torch.load(tmp_path / "killed" / "checkpoints" / "last_0.ckpt", weights_only=True)
    done = dcdt("run", f"resume={tmp_path}/killed")
    assert done.returncode == 0, done.stderr
    assert dcdt("run", *arguments, f"hydra.run.dir={tmp_path}/whole").returncode == 0
    the_same(tmp_path / "killed", tmp_path / "whole")
    assert (tmp_path / "killed" / "tuning.json").read_bytes() == (tmp_path / "whole" / "tuning.json").read_bytes()


@pytest.mark.slow
def test_a_sweep_resumes_what_was_cut_off_and_skips_what_is_done(folder, tmp_path):
    sweep = ["-m", *on(folder, tmp_path), *LONG, "seed=0,1", "sweep.report=false", "callbacks.checkpoint_seconds=0"]
    place = f"hydra.sweep.dir={tmp_path}/sweep"
    killed(40, *sweep, place, trial=1)
    states = {path.parent.name: json.loads(path.read_text())["status"] for path in tmp_path.glob("sweep/*/status.json")}
    assert sorted(states.values()) == ["finished", "running"]
    done = dcdt("run", *sweep, place)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("done already") == 1 and done.stderr.count("from its last state") == 1
    assert dcdt("run", *sweep, f"hydra.sweep.dir={tmp_path}/other").returncode == 0
    for name in states:
        the_same(tmp_path / "sweep" / name, tmp_path / "other" / name)


@pytest.mark.slow
def test_what_cannot_be_resumed_says_why(folder, tmp_path):
    mended(dcdt("run", f"resume={tmp_path}/nowhere", "logger=csv"), "takes the configuration", "Leave out logger=csv")
    mended(dcdt("run", f"resume={tmp_path}/nowhere"), "holds no run")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.slow
def test_a_run_whose_data_changed_is_not_resumed(tmp_path):
    folder = make_collection(tmp_path / "c", n_videos=20, n_queries=60)
    arguments = [*on(folder, tmp_path), *LONG, "callbacks.checkpoint_seconds=0"]
    killed(5, *arguments, f"hydra.run.dir={tmp_path}/killed")
    (folder / "collection.yaml").write_text("positive_grade: 1\nlanguages: [en]\n")
    mended(dcdt("run", f"resume={tmp_path}/killed"), "has changed since this run began", "Start a new run")
    assert json.loads((tmp_path / "killed" / "status.json").read_text())["status"] == "running"


@pytest.mark.slow
def test_a_finished_run_is_not_trained_again(folder, tmp_path):
    short = [*on(folder, tmp_path), *LONG[:-1], "trainer.max_epochs=2", f"hydra.run.dir={tmp_path}/run"]
    assert dcdt("run", *short).returncode == 0
    before = (tmp_path / "run" / "cost.json").stat().st_mtime_ns
    done = dcdt("run", f"resume={tmp_path}/run")
    assert done.returncode == 0 and "done already: run" in done.stderr
    assert (tmp_path / "run" / "cost.json").stat().st_mtime_ns == before
