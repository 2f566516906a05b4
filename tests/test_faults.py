"""Kills, full disks, folders without rights, files cut short, clocks that go back, two processes in one folder.

Real processes on real disks; docs/reliability.md says which promise each test stands for.
"""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import FAST, clean_environment, dcdt, dcdt_process, mended, on
from support import make_collection
from test_resume import LONG, the_same

SLOW = pytest.mark.slow
BIG = ["model.width=64", *LONG[:-1], "trainer.max_epochs=8", "callbacks.checkpoint_seconds=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("collection") / "small", n_videos=20, n_queries=60)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A run that nothing happened to, to compare with."""
    outputs = tmp_path_factory.mktemp("whole")
    done = dcdt("run", *on(folder, outputs), *BIG, f"hydra.run.dir={outputs}/run")
    assert done.returncode == 0, done.stderr
    return outputs / "run"


@pytest.fixture(scope="module")
def sweep(folder, tmp_path_factory):
    """Two finished runs to report on."""
    outputs = tmp_path_factory.mktemp("sweep")
    given = ["model=zero_shot,bm25", "sweep.report=false", f"hydra.sweep.dir={outputs}/sweep"]
    done = dcdt("run", "-m", *on(folder, outputs), *FAST, *given)
    assert done.returncode == 0, done.stderr
    return outputs / "sweep"


@contextlib.contextmanager
def disk(place, size):
    """A small disk of its own; yields how to change its size."""
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a disk needs root")
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@contextlib.contextmanager
def read_only(place):
    """The folder as on a disk that can only be read, whoever asks: rights alone do not hold back root."""
    if subprocess.run(["mount", "--bind", place, place], capture_output=True).returncode:
        pytest.skip("mounting a disk needs root")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def started(module, *arguments, **changes):
    command = [sys.executable, "-m", f"dcdt.{module}", *map(str, arguments)]
    return subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=clean_environment(**changes))


def killing(code, *arguments, **changes):
    """Run a command that is prepared to kill itself; it has no chance to clean up."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(**changes), timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr


def told(done, *expected):
    """As `mended`, for a command that says what it is doing first."""
    first = ('{"time', "resuming ")
    lines = [line for line in done.stderr.splitlines() if not line.endswith(" ...") and not line.startswith(first)]
    done.stderr = "\n".join(lines)
    mended(done, *expected)


def contents(place):
    """Every file of a folder with a hash of what it holds, without those that are being written."""
    files = [path for path in sorted(place.rglob("*")) if path.is_file() and path.suffix != ".tmp"]
    return {path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def status(run):
    return json.loads((run / "status.json").read_text())


# ---- full disks


@SLOW
@pytest.mark.parametrize(("room", "begun"), [("8k", False), ("800k", True), ("6m", True)])
def test_a_full_disk_ends_a_run_in_words_and_it_goes_on(folder, whole, tmp_path, room, begun):
    """Where nothing can be written, where the state of training no longer fits, and where the results do not."""
    outputs = tmp_path / "disk"
    with disk(outputs, room) as resize:
        arguments = [*on(folder, outputs), *BIG, f"hydra.run.dir={outputs}/run"]
        mended(dcdt("run", *arguments), "No space left on device", "Free some space")
        assert (outputs / "run" / "status.json").exists() == begun
        assert begun or not (outputs / "run").exists()
        assert not (outputs / "run" / "metrics.json").exists()
        assert [path for path in outputs.rglob("*.tmp") if path.is_file()] == []
        resize("400m")
        done = dcdt("run", *([f"resume={outputs}/run"] if begun else arguments))
        assert done.returncode == 0, done.stderr
        the_same(outputs / "run", whole)


@SLOW
def test_a_full_disk_under_wandb_ends_in_words_too(folder, tmp_path):
    outputs = tmp_path / "disk"
    with disk(outputs, "2m"):
        arguments = [*on(folder, outputs), *BIG, "logger=wandb", "logger.mode=offline", f"hydra.run.dir={outputs}/run"]
        done = dcdt_process("run", *arguments, HOME=str(tmp_path))
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert "No space left on device" in done.stderr


@SLOW
def test_a_sweep_on_a_full_disk_says_which_jobs_failed_and_goes_on(folder, tmp_path):
    outputs = tmp_path / "disk"
    with disk(outputs, "1m") as resize:
        given = ["-m", *on(folder, outputs), *BIG[1:], "model=zero_shot,dcdt", f"hydra.sweep.dir={outputs}/sweep"]
        done = dcdt("run", *given)
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert "No space left on device" in done.stderr and "1 finished" in done.stderr
        resize("400m")
        done = dcdt("run", *given)
        assert done.returncode == 0, done.stderr
        assert "2 finished" in done.stderr and done.stderr.count("done already") == 1


@SLOW
def test_a_full_disk_keeps_the_report_that_was_there(sweep, tmp_path):
    out = tmp_path / "disk"
    with disk(out, "6m") as resize:
        assert dcdt("report", str(sweep), "--out", str(out / "report")).returncode == 0
        before = contents(out)
        (out / "other").write_bytes(bytes(os.statvfs(out).f_bavail * os.statvfs(out).f_frsize))
        mended(dcdt("report", str(sweep), "--out", str(out / "report")), "No space left", "Free some space")
        (out / "other").unlink()
        assert contents(out) == before and not list(out.rglob("*.tmp"))
        resize("50m")
        assert dcdt("report", str(sweep), "--out", str(out / "report")).returncode == 0


@SLOW
def test_a_full_disk_leaves_no_half_index_and_no_half_batch(sweep, tmp_path):
    place = tmp_path / "disk"
    source = next(path.parent for path in sweep.glob("*bm25*/metrics.json"))
    with disk(place, "200m"):
        run = Path(shutil.copytree(source, place / "run"))
        (place / "other").write_bytes(bytes(os.statvfs(place).f_bavail * os.statvfs(place).f_frsize - 20_000))
        told(dcdt("index", str(run), "build"), "Free some space")
        assert not (run / "serving" / "current.json").exists()
        assert [path for path in (run / "serving").iterdir() if path.name != ".lock"] == []
        (place / "other").unlink()
        assert dcdt("index", str(run), "build").returncode == 0
        (place / "asked.csv").write_text("question\n" + "rank of a span\n" * 200)
        (place / "other").write_bytes(bytes(os.statvfs(place).f_bavail * os.statvfs(place).f_frsize - 20_000))
        batch = ["--batch", str(place / "asked.csv"), "--out", str(place / "out.csv")]
        mended(dcdt("recommend", str(run), *batch), "out.csv", "No space left", "Free some space")
        assert not (place / "out.csv").exists()


def test_a_full_disk_leaves_no_half_collection(tmp_path):
    table = tmp_path / "videos.csv"
    table.write_text("id,title,text\n" + "".join(f"v{at},Title {at},{'words ' * 50}\n" for at in range(300)))
    place = tmp_path / "disk"
    with disk(place, "64k"):
        given = ["new", str(place / "made"), "--videos", str(table), "--bootstrap-queries", "titles"]
        table.write_text(table.read_text().replace("Title ", "A title of words "))
        mended(dcdt("collection", *given), "No space left", "Free some space")
        assert list(place.iterdir()) == []


# ---- folders without rights


@SLOW
def test_a_read_only_folder_is_said_before_anything_is_done(folder, sweep, tmp_path):
    place = tmp_path / "place"
    source = next(path.parent for path in sweep.glob("*bm25*/metrics.json"))
    run = Path(shutil.copytree(source, place / "run"))
    assert dcdt("index", str(run), "build").returncode == 0
    before = contents(place)
    with read_only(place):
        remedy = "a folder that can be written"
        mended(dcdt("run", *on(folder, place / "out"), *FAST), "Read-only file system", remedy)
        mended(dcdt("run", "-m", *on(folder, place / "out"), *FAST, "seed=0,1"), "Read-only file system", remedy)
        mended(dcdt("run", f"resume={run}"), "Read-only file system", remedy)
        mended(dcdt("report", str(run), "--out", str(place / "report")), "Read-only file system", remedy)
        mended(dcdt("index", str(run), "add", "--id", "x", "--title", "x"), "cannot be written (Read-only file system)")
        mended(dcdt("collection", "demo", str(place / "demo")), "Read-only file system", remedy)
        done = dcdt("recommend", str(run), "rank of a span", "-k", "2", "--json")  # what only reads goes on
        assert done.returncode == 0 and len(json.loads(done.stdout)["answer"]) == 2, done.stderr
    assert contents(place) == before


@SLOW
def test_a_collection_that_can_only_be_read_is_enough(folder, tmp_path):
    with read_only(folder):
        done = dcdt("run", *on(folder, tmp_path), *FAST, "model=zero_shot", f"hydra.run.dir={tmp_path}/run")
        assert done.returncode == 0, done.stderr


# ---- kills

# The process kills itself at the given write: the new content is there, its name is not.
KILL_AT_RENAME = """
import os, pathlib, signal, sys
name, left = sys.argv.pop(1), int(sys.argv.pop(1))
replace = pathlib.Path.replace
def dying(self, target):
    global left
    if pathlib.Path(target).name.startswith(name):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
pathlib.Path.replace = dying
module = sys.argv.pop(1)
__import__(module, fromlist=["main"]).main()
"""


@SLOW
@pytest.mark.parametrize(("file", "times"), [("last.ckpt", 3), ("best.ckpt", 1), ("per_query", 1), ("status.json", 2)])
def test_a_kill_while_a_state_or_a_result_is_written_loses_no_run(folder, whole, tmp_path, file, times):
    run = tmp_path / "run"
    killing(KILL_AT_RENAME, file, times, "dcdt.run", *on(folder, tmp_path), *BIG, f"hydra.run.dir={run}")
    assert status(run)["status"] == "running"
    assert dcdt("report", str(run)).returncode == 2  # it does not pass for a finished one
    done = dcdt("run", f"resume={run}")
    assert done.returncode == 0 and "from its last state" in done.stderr, done.stderr
    the_same(run, whole)


@SLOW
@pytest.mark.parametrize("at", [1, 5, 11])
def test_a_kill_while_a_report_is_written_leaves_whole_files(sweep, tmp_path, at):
    wanted, out = tmp_path / "wanted", tmp_path / "out"
    assert dcdt("report", str(sweep), "--out", str(wanted)).returncode == 0
    killing(KILL_AT_RENAME, "", at, "dcdt.report", sweep, "--out", out)
    done = contents(wanted)
    links = {"index.html"}  # names its own folder
    left = contents(out)
    assert len(left) == at - 1 and all(done[name] == value for name, value in left.items() if name not in links)
    assert dcdt("report", str(sweep), "--out", str(out)).returncode == 0
    assert {name: value for name, value in contents(out).items() if name not in links} == {
        name: value for name, value in done.items() if name not in links
    }


KILL_BEFORE = """
import os, signal, sys
module, name = sys.argv.pop(1), sys.argv.pop(1)
__import__(module)
setattr(sys.modules[module], name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
command = sys.argv.pop(1)
__import__(command, fromlist=["main"]).main()
"""


@SLOW
def test_a_kill_while_an_index_or_a_collection_is_made_leaves_none(sweep, tmp_path):
    source = next(path.parent for path in sweep.glob("*bm25*/metrics.json"))
    run = Path(shutil.copytree(source, tmp_path / "run"))
    killing(KILL_BEFORE, "dcdt.serving.export", "write_pointer", "dcdt.index", run, "build")
    assert not (run / "serving" / "current.json").exists()
    done = dcdt("recommend", str(run), "rank of a span", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["answer"], done.stderr
    killing(KILL_BEFORE, "dcdt.collection", "load_collection", "dcdt.collection", "new", tmp_path / "made",
            "--videos", table(tmp_path), "--bootstrap-queries", "titles")  # fmt: skip
    assert not (tmp_path / "made").exists()
    made = ["new", str(tmp_path / "made"), "--videos", str(table(tmp_path)), "--bootstrap-queries", "titles"]
    assert dcdt("collection", *made).returncode == 0


def table(place):
    rows = "".join(f"v{at},A title number {at},What it is about {at}\n" for at in range(40))
    (place / "videos.csv").write_text(f"id,title,text\n{rows}")
    return place / "videos.csv"


# ---- files cut short


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("finished")
    short = ["model=dcdt", "model.width=4", *FAST, f"hydra.run.dir={outputs}/run"]
    done = dcdt("run", *on(folder, outputs), *short)
    assert done.returncode == 0, done.stderr
    return outputs / "run"


CUT = ["config.yaml", "status.json", "metrics.json", "provenance.json", "cost.json", "per_query.parquet"]
CUT += ["pairs.parquet", "history.csv", "run.trec", "scores.parquet"]


@SLOW
@pytest.mark.parametrize("name", CUT)
def test_a_report_names_the_file_that_is_cut_short(finished, tmp_path, name):
    from dcdt.runs.reader import read_runs
    from dcdt.utils.errors import UserError

    run = Path(shutil.copytree(finished, tmp_path / "run"))
    content = (finished / name).read_bytes()
    refused = 0
    for length in [0, 1, *range(7, len(content), max(1, len(content) // 12)), len(content) - 1]:
        (run / name).write_bytes(content[:length])
        try:
            read_runs([run])
        except UserError as error:
            refused += 1
            assert name in str(error) or "has finished" in str(error), error
            assert len(str(error).splitlines()) <= 2
    optional = {"run.trec", "scores.parquet", "history.csv"}  # a cut table of plain numbers is a shorter table
    assert refused >= 12 or name in optional or (name == "config.yaml" and refused >= 6)
    (run / name).write_bytes(content)
    read_runs([run])


@SLOW
@pytest.mark.parametrize("name", ["config.yaml", "status.json", "provenance.json", "checkpoints/best.ckpt"])
def test_a_run_that_is_cut_short_is_not_served(finished, tmp_path, name):
    from dcdt.training.checkpoint import restore
    from dcdt.utils.errors import UserError

    run = Path(shutil.copytree(finished, tmp_path / "run"))
    content, wanted = (finished / name).read_bytes(), vars(restore(run).settings)
    for length in [0, 1, *range(7, len(content), max(1, len(content) // 10)), len(content) - 40]:
        (run / name).write_bytes(content[:length])
        try:
            found = vars(restore(run).settings)
        except UserError as error:
            assert len(str(error).splitlines()) <= 2
        else:  # the end of config.yaml says where results went, which decides nothing
            changed = {key for key in wanted if found[key] != wanted[key]}
            assert name == "config.yaml" and changed <= {"outputs", "resume", "experiment_name"}, changed
    (run / name).write_bytes(content)
    restore(run)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/all.tsv", "collection.yaml"])
def test_a_collection_that_is_cut_short_is_told_with_its_line(folder, tmp_path, name):
    from dcdt.data.beir import load_collection
    from dcdt.utils.errors import UserError

    copy = Path(shutil.copytree(folder, tmp_path / "c"))
    (copy / "collection.yaml").write_text('positive_grade: 1\nlanguages: [en]\nname: "small"\n')
    if not (copy / name).exists():
        name = next((copy / "qrels").glob("*.tsv")).relative_to(copy).as_posix()
    content = (copy / name).read_bytes()
    wanted = load_collection(copy)
    for length in range(len(content) - 40, len(content)):
        (copy / name).write_bytes(content[:length])
        try:
            found = load_collection(copy)
        except UserError as error:
            assert Path(name).name in str(error) and len(str(error).splitlines()) <= 2
        else:  # it ended with whole lines: another collection, of another fingerprint, which no run passes for this one
            lost = content[length:].strip()
            assert found.fingerprint != wanted.fingerprint or lost == b"" or (lost in b'name: "small"')


@SLOW
def test_a_state_that_is_cut_short_is_named_and_training_begins_anew_without_it(folder, whole, tmp_path):
    run = tmp_path / "run"
    killing(KILL_AT_RENAME, "best.ckpt", 1, "dcdt.run", *on(folder, tmp_path), *BIG, f"hydra.run.dir={run}")
    last = run / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 10):
        last.write_bytes(content[:length])
        told(dcdt("run", f"resume={run}"), "last.ckpt is corrupt", "Delete it")
        assert last.read_bytes() == content[:length]
    last.unlink()
    done = dcdt("run", f"resume={run}")
    assert done.returncode == 0 and "from the start" in done.stderr, done.stderr
    the_same(run, whole)


@SLOW
def test_a_finished_job_without_its_metrics_is_done_again(finished, tmp_path):
    from omegaconf import OmegaConf

    from dcdt.runs.folder import RunFolder
    from dcdt.runs.provenance import code_version, fingerprint

    run = Path(shutil.copytree(finished, tmp_path / "run"))
    config = OmegaConf.load(run / "config.yaml")
    provenance = json.loads((run / "provenance.json").read_text())
    assert status(run)["key"] == fingerprint(config, provenance["collection_fingerprint"], code_version()["code"])
    assert RunFolder(run).finished_metric(config) is not None
    (run / "metrics.json").write_bytes((run / "metrics.json").read_bytes()[:30])
    assert RunFolder(run).finished_metric(config) is None


# ---- clocks


def faked(clock):
    """Environment in which the clock is what a file says, from one moment to the next; it goes back in the middle."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("libfaketime is not installed (Debian: apt install faketime)")
    settings = {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return {"LD_PRELOAD": str(library), **settings}


@SLOW
def test_a_clock_that_goes_back_while_a_run_trains_changes_no_result(folder, whole, tmp_path):
    clock, run = tmp_path / "clock", tmp_path / "run"
    clock.write_text("+0")
    process = started("run", *on(folder, tmp_path), *BIG, f"hydra.run.dir={run}", **faked(clock))
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    clock.write_text("-30d")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    the_same(run, whole)
    recorded = status(run)
    assert recorded["finished"] < recorded["started"]  # the clock did go back
    assert json.loads((run / "cost.json").read_text())["training_seconds"] > 0


@SLOW
def test_what_was_made_in_the_future_is_resumed_reported_and_changed(folder, tmp_path):
    clock, run = tmp_path / "clock", tmp_path / "sweep"
    clock.write_text("+400d")
    given = ["-m", *on(folder, tmp_path), *FAST, "model=zero_shot,bm25", f"hydra.sweep.dir={run}"]
    assert dcdt_process("run", *given, **faked(clock)).returncode == 0
    bm25 = next(path.parent for path in run.glob("*bm25*/metrics.json"))
    add = ["index", str(bm25), "add", "--title", "A span", "--id"]
    assert dcdt_process(*add, "x", **faked(clock)).returncode == 0
    done = dcdt("run", *given)  # by today's clock, 400 days earlier
    assert done.returncode == 0 and done.stderr.count("done already") == 2, done.stderr
    assert "\nreport: " in done.stdout
    done = dcdt(*add, "y")
    assert done.returncode == 0 and "22 videos" in done.stdout, done.stderr


# ---- two processes in one folder


@SLOW
def test_two_runs_in_one_folder_are_one_run_and_a_message(folder, whole, tmp_path):
    arguments = [*on(folder, tmp_path), *BIG, f"hydra.run.dir={tmp_path}/run"]
    both = [started("run", *arguments) for _ in range(2)]
    said = [process.communicate(timeout=200)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    (told,) = (text for process, text in zip(both, said, strict=True) if process.returncode == 2)
    assert "another process is writing the run" in told or "exists and is not empty" in told
    assert "Traceback" not in told and len(told.splitlines()) <= 2
    the_same(tmp_path / "run", whole)


@SLOW
def test_two_sweeps_in_one_folder_share_the_work(folder, tmp_path):
    given = ["-m", *on(folder, tmp_path), *BIG, "seed=0,1,2", "sweep.report=false", f"hydra.sweep.dir={tmp_path}/sweep"]
    both = [started("run", *given) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum(text.count("done already") for text in said) == 3  # each job was done once
    assert all("3 finished" in text for text in said)
    whole = dcdt("run", *given[:-1], f"hydra.sweep.dir={tmp_path}/other")
    assert whole.returncode == 0
    for job in (tmp_path / "other").glob("*/metrics.json"):
        the_same(tmp_path / "sweep" / job.parent.name, job.parent)


@SLOW
def test_two_reports_and_two_collections_in_one_folder_end_whole(sweep, tmp_path):
    both = [started("report", sweep, "--out", tmp_path / "out") for _ in range(2)]
    assert [process.wait(120) for process in both] == [0, 0]
    assert dcdt("report", str(sweep), "--out", str(tmp_path / "alone")).returncode == 0
    assert contents(tmp_path / "out").keys() == contents(tmp_path / "alone").keys()
    for process in both:
        process.communicate()
    videos = table(tmp_path)
    made = ["new", tmp_path / "made", "--videos", videos, "--bootstrap-queries", "titles"]
    both = [started("collection", *made) for _ in range(2)]
    said = [process.communicate(timeout=100)[1] for process in both]
    assert {process.returncode for process in both} <= {0, 2} and 0 in {process.returncode for process in both}, said
    assert all("Traceback" not in text for text in said)
    assert dcdt("collection", "check", str(tmp_path / "made")).returncode == 0
