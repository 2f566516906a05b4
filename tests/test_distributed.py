"""Two processes train and validate as one does, and a job that needs several starts them itself, under -m too."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import FAST, dcdt_process, mended, on
from omegaconf import OmegaConf
from support import make_collection
from test_resume import the_same
from test_run import leet_all

from dcdt.data.datamodule import IndexBatches, Positions
from dcdt.runs.folder import RunFolder
from dcdt.training import distributed
from dcdt.training.distributed import process_folder, start
from dcdt.training.loggers.base import RunLogger
from dcdt.utils.errors import UserError
from dcdt.utils.signals import Interrupted

WORKER = Path(__file__).parent / "distributed_worker.py"
DDP = [*FAST[1:], "trainer=ddp", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("collection") / "small", n_videos=20, n_queries=75)


class Plain:
    """Gives the rows as they are."""

    def draw(self, generator):
        return torch.zeros(23, 0, dtype=torch.int64)

    def batch(self, rows, whole=None, device=None):
        return {"rows": rows, "whole": rows if whole is None else whole}


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_batches_are_shared_without_overlap(world):
    pairs, device = torch.arange(46).reshape(23, 2), torch.device("cpu")
    parts = [list(IndexBatches(pairs, Plain(), 4, 0, lambda: 3, device, rank, world)) for rank in range(world)]
    single = list(IndexBatches(pairs, Plain(), 4, 0, lambda: 3, device))
    assert {len(part) for part in parts} == {len(single)}
    for batches in zip(single, *parts, strict=True):
        whole, given = batches[0]["rows"].tolist(), [batch for batch in batches[1:] if batch.get("share", 1)]
        assert sorted(row for batch in given for row in batch["rows"].tolist()) == sorted(whole)
        assert all(batch["whole"].tolist() == whole for batch in batches[1:])
        counted = [batch.get("share", 1) / world for batch in given]  # what a row counts is the same everywhere
        assert all(n == pytest.approx(len(b["rows"]) / len(whole)) for n, b in zip(counted, given, strict=True))


CLOSING = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: (Path(sys.argv[2]).touch(), sys.exit(143)))
Path(sys.argv[1]).touch()
time.sleep(60)
"""


def test_an_interrupted_job_lets_its_processes_close_what_they_have_open(tmp_path, monkeypatch):
    ready, closed = tmp_path / "ready", tmp_path / "closed"

    def interrupt(seconds):
        if ready.exists():
            monkeypatch.undo()
            raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("dcdt.training.distributed.time.sleep", interrupt)
    with pytest.raises(Interrupted):
        start([sys.executable, "-c", CLOSING, str(ready), str(closed)], 1)
    assert closed.exists()


def test_an_interrupted_job_of_several_processes_can_be_resumed(tmp_path, monkeypatch):
    def interrupt(*_):
        (tmp_path / "status.json").write_text('{"status": "running"}')
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(distributed, "start", interrupt)
    monkeypatch.setattr(distributed, "device_count", lambda trainer: 2)
    job = RunFolder(tmp_path)
    with pytest.raises(Interrupted) as error:
        distributed.run_processes(
            SimpleNamespace(trainer=SimpleNamespace(num_nodes=1)), OmegaConf.create(), job, None, False
        )
    job.withdraw(error.value)
    assert job.read_status()["status"] == "interrupted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_closes_its_logger(tmp_path, monkeypatch, number):
    ends = []

    class Closing(RunLogger):
        def close(self, status, reason=""):
            os.kill(os.getpid(), signal.SIGTERM)  # the one from the parent does not cut it short
            ends.append((status, reason))

    spec = {"config": {}, "overrides": None, "command": [], "folder": str(tmp_path), "errors": "", "resuming": False}
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["distributed"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(spec)))
    for name, value in {
        "_end_with_parent": lambda: None,
        "redact_output": lambda: None,
        "choose_logger": lambda *_: Closing(),
        "parse": lambda config: SimpleNamespace(callbacks=SimpleNamespace(progress=False)),
    }.items():
        monkeypatch.setattr(distributed, name, value)
    monkeypatch.setattr("dcdt.training.experiment.run", lambda *_: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted):
        distributed.main()
    assert ends == [("interrupted", f"stopped by {signal.Signals(number).name}")]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(("n", "world"), [(7, 1), (7, 2), (7, 7), (3, 5)])
def test_positions_are_shared_in_runs_that_follow_each_other(n, world):
    side = type("Side", (), {"queries": torch.arange(n), "candidates": torch.ones(4)})
    parts = [torch.cat(list(Positions(side, rank, world))).tolist() for rank in range(world)]
    if n >= world:
        assert [row for part in parts for row in part] == list(range(n))
    else:
        assert parts == [list(range(n))] * world


def test_only_the_first_process_writes_to_the_folder(monkeypatch, tmp_path):
    folder = RunFolder(tmp_path)
    assert process_folder(folder, named=False, sweeping=True) == folder
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert process_folder(folder, named=True, sweeping=False).path != tmp_path
    with pytest.raises(UserError, match="torchrun and srun start the processes of one run"):
        process_folder(folder, named=False, sweeping=False)
    monkeypatch.setenv("RANK", "0")
    assert process_folder(folder, named=True, sweeping=False) == folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "gather"), [("in_batch", True), ("logq", True), ("hard", True), ("in_batch", False)]
)
def test_the_gradient_of_two_processes_is_that_of_one(folder, tmp_path, monkeypatch, sampler, gather):
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(WORKER.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    )
    command = [sys.executable, str(WORKER), str(folder), str(tmp_path), sampler, str(gather).lower()]
    assert start(command, 2) is None
    assert subprocess.run(command, check=False).returncode == 0
    one, first, second = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("1_0", "2_0", "2_1"))
    results = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1_0", "2_0", "2_1")]
    assert results[0]["val"] == results[1]["val"] == results[2]["val"]  # the full ranking, bit for bit
    for rows, *parts in zip(*(part["rows"] for part in results), strict=True):
        assert sorted(rows) == sorted(parts[0] + parts[1])
    assert results[2]["rows"][-1] == []  # the last batch has one row
    assert all(torch.equal(a, b) for a, b in zip(first["steps"], second["steps"], strict=True))
    near = [torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(one["steps"], first["steps"], strict=True)]
    assert all(near) == gather  # without gathering, queries see fewer negatives
    if gather:
        torch.testing.assert_close(one["loss"], first["loss"])
        torch.testing.assert_close(first["loss"], second["loss"])


@pytest.mark.slow
def test_a_sweep_of_jobs_on_two_processes_leaves_one_folder(folder, tmp_path):
    sweep = ["-m", *on(folder, tmp_path), *DDP, "logger=wandb", "split=folds", "split.index=0,1", "model.dropout=0"]
    done = dcdt_process(
        "run", *sweep, "model.fields=[title],[title,tags]", "callbacks.progress=true", HOME=str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert "run folder:" not in done.stdout  # no job prints a summary
    assert "2 finished, 2 not_applicable" in done.stderr
    [place] = (tmp_path / "sweeps").iterdir()
    runs = {path.parent.name: json.loads(path.read_text())["status"] for path in place.glob("*/status.json")}
    assert sorted(runs.values()) == ["finished", "finished", "not_applicable", "not_applicable"]
    assert not [path for path in tmp_path.glob("2*")]  # no process began a run of its own
    assert [found["exit_code"] for found in leet_all(place).values()] == [0] * 6  # and a report with a row
    alone = dcdt_process(
        "run",
        "-m",
        *on(folder, tmp_path),
        *FAST,
        "split=folds",
        "split.index=0,1",
        "model.dropout=0",
        "model.fields=[title]",
        f"hydra.sweep.dir={tmp_path}/alone",
    )
    assert alone.returncode == 0, alone.stderr
    for name in (name for name, status in runs.items() if status == "finished"):
        index = name[name.index("split.index=") :].split(",")[0]
        [other] = [path for path in (tmp_path / "alone").glob("*") if index in path.name]
        mine, theirs = (json.loads((run / "metrics.json").read_text()) for run in (place / name, other))
        assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.slow
def test_several_processes_end_with_the_one_that_started_them_and_resume(folder, tmp_path):
    arguments = [*on(folder, tmp_path), *DDP, "trainer.max_epochs=400", "callbacks.patience=400", "logger=csv"]
    arguments += ["callbacks.checkpoint_seconds=0", "model.dropout=0.2"]
    state = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    command = [sys.executable, "-m", "dcdt.run", *arguments, f"hydra.run.dir={tmp_path}/killed"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = -1
    while written != (written := state.stat().st_mtime_ns):  # the others end
        time.sleep(3)
    assert json.loads((tmp_path / "killed" / "status.json").read_text())["status"] == "running"
    done = dcdt_process("run", f"resume={tmp_path}/killed")
    assert done.returncode == 0, done.stderr
    assert dcdt_process("run", *arguments, f"hydra.run.dir={tmp_path}/whole").returncode == 0
    the_same(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_mistakes_on_several_processes_are_said_once(folder, tmp_path):
    mended(
        dcdt_process("run", *on(folder, tmp_path), *DDP, "logger=csv", "model.fields=[title,speaker]"),
        "field 'speaker'",
    )
    mended(dcdt_process("run", *on(folder, tmp_path), *DDP, "logger=csv", "trainer.num_nodes=2"), "torchrun")
    mended(dcdt_process("run", *on(folder, tmp_path), *FAST, "trainer.devices=2"), "choose trainer=ddp")
    run = tmp_path / "diverged"
    arguments = [*DDP, "optimizer.lr=1e30", f"hydra.run.dir={run}"]
    mended(
        dcdt_process("run", *on(folder, tmp_path), *arguments, "logger=csv"),
        "training diverged in epoch 0",
        "optimizer.lr",
    )
    assert json.loads((run / "status.json").read_text())["status"] == "failed"


ALLOCATION = {"SLURM_JOB_ID": "4321", "SLURM_JOB_NAME": "sweep", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}


@pytest.mark.slow
def test_inside_an_allocation_of_slurm_processes_are_ours(folder, tmp_path):
    batch = {**ALLOCATION, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    for name, run, more in (("two", DDP, {"SLURM_NTASKS_PER_NODE": "1"}), ("one", FAST, {"SLURM_NTASKS": "4"})):
        done = dcdt_process(
            "run", *on(folder, tmp_path), *run, "logger=csv", f"hydra.run.dir={tmp_path}/{name}", **(batch | more)
        )
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / name / "status.json").read_text())["status"] == "finished"


@pytest.mark.slow
def test_srun_starts_one_run(folder, tmp_path):
    run = [sys.executable, "-m", "dcdt.run", *on(folder, tmp_path), *DDP, "logger=csv", "callbacks.progress=false"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        step = {**ALLOCATION, "SLURM_STEP_NUM_TASKS": "2", "MASTER_PORT": str(free.getsockname()[1])}
    started = []
    for task in "01":
        environment = {**os.environ, **step, "SLURM_PROCID": task, "SLURM_LOCALID": task}
        started.append(subprocess.Popen([*run, f"hydra.run.dir={tmp_path}/run"], env=environment))
    assert [process.wait(timeout=200) for process in started] == [0, 0]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"
    assert [path.name for path in tmp_path.iterdir() if path.name != "pairs"] == ["run"]


@pytest.mark.slow
def test_torchrun_starts_one_run(folder, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    run = ["-m", "dcdt.run", *on(folder, tmp_path), *DDP, "logger=csv", "callbacks.progress=false"]
    done = subprocess.run([*torchrun, *run, f"hydra.run.dir={tmp_path}/run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"
    assert [path.name for path in tmp_path.iterdir() if path.name != "pairs"] == ["run"]
