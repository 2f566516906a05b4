import io
import json
import os
import pty
import subprocess
import sys
import time

import pytest
from commands import FAST, dcdt_process, on
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console
from support import make_collection

from dcdt.config import config_folder, job_name, register_resolvers
from dcdt.runs.sweep import _jobs
from dcdt.runs.sweep_progress import SweepProgress

QUIET = Console(file=io.StringIO())


def write(folder, name, status, age=0.0):
    (folder / name).mkdir(exist_ok=True)
    path = folder / name / "status.json"
    path.write_text(json.dumps({"status": status}))
    os.utime(path, (time.time() - age, time.time() - age))


def test_jobs_are_counted_as_they_settle(tmp_path):
    for name, status, age in (("old", "finished", 99), ("failed_before", "failed", 99), ("cut_off", "running", 99)):
        write(tmp_path, name, status, age)
    write(tmp_path, "of_another_sweep", "failed")
    watch = SweepProgress(tmp_path, ["old", "failed_before", "cut_off", "new", "last"], 5, QUIET)
    watch.update()
    assert (watch.n_ended, watch.line()) == (1, "0 running")
    write(tmp_path, "failed_before", "running")
    watch.update()
    assert (watch.n_ended, watch.line()) == (1, "1 running")
    write(tmp_path, "failed_before", "failed")
    write(tmp_path, "cut_off", "not_applicable")
    write(tmp_path, "new", "running")
    watch.update()
    watch.update()
    assert (watch.n_ended, watch.line()) == (3, "1 failed, 1 running")
    assert watch.pending == {"new", "last"}


def test_a_search_counts_what_is_there(tmp_path):
    watch = SweepProgress(tmp_path, None, 9, QUIET)
    write(tmp_path, "a", "finished")
    write(tmp_path, "b", "failed")
    watch.update()
    watch.update()
    assert (watch.n_ended, watch.line()) == (2, "1 failed, 0 running")


def test_nothing_is_shown_or_looked_at_where_there_is_no_terminal(tmp_path):
    watch = SweepProgress(tmp_path, ["a"], 1, QUIET)
    assert watch._thread is None
    watch.stop()
    assert QUIET.file.getvalue() == ""


def test_the_line_is_left_on_a_terminal(tmp_path):
    shown = Console(file=io.StringIO(), force_terminal=True, width=100)
    write(tmp_path, "a", "finished")
    watch = SweepProgress(tmp_path, ["a", "b"], 2, shown)
    write(tmp_path, "b", "failed")
    watch.stop()
    assert "2/2" in shown.file.getvalue() and "1 failed, 0 running" in shown.file.getvalue()


def asked(*overrides):
    return OverridesParser.create().parse_overrides(list(overrides))


def test_the_jobs_of_a_sweep_are_known_before_they_run():
    assert _jobs(asked("split.index=range(0,2)", "seed=0", "model=a,b", "seed=3")) == [
        job_name([f"split.index={index}", "seed=3", f"model={model}"]) for index in (0, 1) for model in ("a", "b")
    ]
    assert _jobs(asked("model=glob(*)")) is None
    assert _jobs(asked("optimizer.lr=interval(0,1)")) is None


def test_jobs_that_differ_in_what_is_not_read_are_one_folder():
    composed = []

    def composing(job):
        composed.append(job)
        return compose("config", overrides=job)

    register_resolvers()
    choices = ["model=zero_shot,dcdt", "loss.margin=0.5,1.0", "split.index=0,1"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        names = _jobs(asked(*choices), composing)
    assert (len(names), len(set(names)), len(composed)) == (8, 6, 2)  # once a model
    assert job_name(["model=zero_shot", "split.index=1"]) in names
    assert len(set(_jobs(asked("model=a,b", "seed=0,1"), composing))) == 4 and len(composed) == 2


@pytest.mark.slow
def test_a_sweep_shows_its_line_on_a_terminal_alone(tmp_path):
    folder = make_collection(tmp_path / "c", n_videos=20, n_queries=60)
    sweep = ["-m", *on(folder, tmp_path), *FAST[:-1], "model=zero_shot", "split=folds", "split.index=0,1"]
    sweep += ["sweep.report=false"]
    piped = dcdt_process("run", *sweep, f"hydra.sweep.dir={tmp_path}/piped")
    assert piped.returncode == 0
    assert "\x1b" not in piped.stderr + piped.stdout and "2/2" not in piped.stderr
    terminal, ours = pty.openpty()
    command = [sys.executable, "-m", "dcdt.run", *sweep, f"hydra.sweep.dir={tmp_path}/shown"]
    done = subprocess.Popen(command, stderr=ours, stdout=ours, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"})
    os.close(ours)
    seen = b""
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break
        seen += part
    assert done.wait() == 0
    assert b"2/2" in seen and b"0 running" in seen and b"\x1b[?25h" in seen  # and the cursor is back
