"""Faults that people met at the edges of the product: signals, secrets, strangers, shells, terminals, servers."""

import json
import os
import signal
import subprocess
import sys

import pytest
from commands import FAST, clean_environment, dcdt, on
from support import make_collection

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A collection with its vectors."""
    return make_collection(tmp_path_factory.mktemp("collection") / "small", n_videos=20, n_queries=60)


def raising(number):
    """A function that a signal ends."""
    return lambda *_, **__: os.kill(os.getpid(), number)


# ---- signals


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_run_in_one_line_and_it_can_be_resumed(folder, tmp_path, monkeypatch, number, code):
    from dcdt.models.recommender import Recommender

    run = tmp_path / "my run"
    with monkeypatch.context() as patch:
        patch.setattr(Recommender, "on_validation_epoch_end", raising(number))
        done = dcdt("run", *on(folder, tmp_path), *FAST, f"hydra.run.dir='{run}'")
    name = signal.Signals(number).name
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == (
        f"stopped by {name}; the run is kept; continue it: python -m dcdt.run 'resume=\"{run}\"'"
    )
    assert "Traceback" not in done.stderr
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "interrupted" and status["error"] == f"stopped by {name}"
    done = dcdt("run", f'resume="{run}"')
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "status.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_sweep_at_once(folder, tmp_path, monkeypatch, number, code):
    monkeypatch.setattr("dcdt.training.fit.train", raising(number))
    done = dcdt("run", "-m", *on(folder, tmp_path), *FAST, "model=bm25,zero_shot", f"hydra.sweep.dir={tmp_path}/s")
    assert done.returncode == code and "the same command continues the sweep" in done.stderr.splitlines()[-1]
    [status] = (tmp_path / "s").glob("*/status.json")
    assert json.loads(status.read_text())["status"] == "interrupted"


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize(
    ("command", "arguments", "work"),
    [
        ("report", ["RUN"], "dcdt.report.report"),
        ("recommend", ["RUN", "a question"], "dcdt.recommend.load"),
        ("index", ["RUN", "info"], "dcdt.index.load"),
        ("collection", ["check", "RUN"], "dcdt.collection.check_collection"),
        ("serve", ["RUN"], "dcdt.serve._socket"),
        ("doctor", [], "dcdt.doctor.packages"),
        ("embed", ["data=files", "data.path=RUN"], "dcdt.embed.run"),
    ],
)
def test_a_signal_ends_every_command_in_one_line(tmp_path, monkeypatch, command, arguments, work, number, code):
    monkeypatch.setattr("dcdt.serving.hot_reload.ReloadingRecommender.__init__", lambda *_: None)
    monkeypatch.setattr(work, raising(number))
    done = dcdt(command, *(text.replace("RUN", str(tmp_path)) for text in arguments))
    assert done.returncode == code
    assert done.stderr.startswith(f"stopped by {signal.Signals(number).name}; ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_signal_during_the_report_of_a_sweep_prints_the_command_that_repeats_it(tmp_path, monkeypatch):
    from dcdt.report import report_sweep
    from dcdt.utils.signals import Interrupted, interruptible

    monkeypatch.setattr("dcdt.report.report", raising(signal.SIGTERM))
    with interruptible(), pytest.raises(Interrupted) as error:
        report_sweep(tmp_path / "a sweep", to_wandb=True)
    assert error.value.advice.endswith(f"Repeat: python -m dcdt.report '{tmp_path}/a sweep' --wandb")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# ---- terminals


def test_a_terminal_that_is_not_utf_8_shows_question_marks(folder):
    env = clean_environment(PYTHONIOENCODING="ascii", PYTHONPATH=os.pathsep.join(sys.path))
    line = [sys.executable, "-m", "dcdt.collection", "check", str(folder)]  # draws bars
    done = subprocess.run(line, capture_output=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and b"????" in done.stdout
