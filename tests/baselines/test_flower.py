"""Flower averages the weights of towers by our modules; $DCDT_FLOWER names the python of an environment that has it."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from commands import clean_environment, dcdt
from support import make_collection

from dcdt.runs.folder import RunFolder
from dcdt.training.checkpoint import read_weights

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "studies" / "flower.py"


@pytest.mark.extra
def test_averaged_towers_are_runs_that_a_report_compares(tmp_path):
    python = os.environ.get("DCDT_FLOWER")
    if not python:
        pytest.skip("Flower needs an environment of its own (docs/federation.md); $DCDT_FLOWER can name its python")
    folder = make_collection(tmp_path / "all", 20, 150)
    settings = ["data=files", f"data.path={folder}", f"outputs={tmp_path}", "split.schools=3", "split.part=all"]
    line = [python, SCRIPT, tmp_path / "sweep", "--folds", "0", *settings, "model.rounds=2"]
    done = subprocess.run(line, capture_output=True, text=True, env=clean_environment(OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stderr
    found = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/metrics.json")}
    assert set(found) == {"fedavg_0", "fedadam_0"}
    for metrics in found.values():
        assert metrics["federated/rounds"] == 2 and metrics["federated/bytes"] > 1_000_000
    weights = [read_weights(RunFolder(tmp_path / "sweep" / name)) for name in sorted(found)]
    assert not all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    report = dcdt("report", tmp_path / "sweep", "--out", tmp_path / "report")
    assert report.returncode == 0 and "model.fit=fedadam" in report.stdout, report.stderr
