"""`dcdt runs`: list, show, compare, delete, and `latest` as the name of a run."""

import os
import sys
from pathlib import Path

import pytest
from commands import dcdt, mended

sys.path.append(str(Path(__file__).parents[1] / "reporting"))
from run_folders import write_run

from dcdt.runs.reader import read_runs
from dcdt.utils.files import write_json


@pytest.fixture
def outputs(tmp_path):
    """Two finished runs, of which `second` is the later, one that failed after them, and a sweep."""
    folder = tmp_path / "outputs"
    for age, (name, more) in enumerate(
        {
            "failed": {"status": "failed", "error": "ValueError: it broke"},
            "second": {},
            "first": {"model": "zero_shot"},
        }.items()
    ):
        run = write_run(folder, name=name, **more)
        os.utime(run / "status.json", (1e9 - age, 1e9 - age))
    [second] = read_runs([folder / "second"])
    mean = second.sides["test"].values["mrr"].mean()
    write_json(folder / "second" / "metrics.json", {"test/mrr": mean, "zero_shot/test/mrr": 0.1234})
    write_run(folder / "sweeps" / "trial", name="one")
    write_json(folder / "sweeps" / "trial" / "sweep.json", {"common": []})
    return folder


def runs(outputs, *arguments, **options):
    return dcdt("runs.__main__", *arguments, DCDT_OUTPUTS=str(outputs), **options)


def test_the_list_has_the_latest_first_with_status_and_metric(outputs):
    done = runs(outputs, "list")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["run", "sweeps/trial", "failed", "second", "first"]
    assert lines[1][1:] == ["1", "finished"] and lines[2][1] == "failed"
    assert lines[3][1:4] == ["finished", "dcdt", "mrr"] and lines[3][-2:] == ["zero_shot", "0.123"]
    assert lines[4][2] == "zero_shot"
    assert len(runs(outputs, "list", "-n", "2").stdout.splitlines()) == 3


def test_an_empty_folder_has_an_empty_list(tmp_path):
    done = runs(tmp_path, "list")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1


def test_a_run_is_shown_by_its_name_or_as_the_latest_that_finished(outputs):
    for name in ("second", "latest", outputs / "second"):
        done = runs(outputs, "show", name)
        assert done.returncode == 0, done.stderr
        assert f"{outputs / 'second'}: dcdt, finished" in done.stdout and "test/mrr" in done.stdout
        assert "ask it: python -m dcdt.recommend" in done.stdout
    failed = runs(outputs, "show", "failed").stdout
    assert "error: ValueError: it broke" in failed and "ask it" not in failed
    mended(runs(outputs, "show", outputs), "is not a run")


def test_runs_are_compared_by_the_tests_of_a_report_without_writing_one(outputs):
    done = runs(outputs, "compare", "first", "second")
    assert done.returncode == 0, done.stderr
    assert "dcdt minus zero_shot: " in done.stdout and "p (Holm)" in done.stdout
    assert not list(outputs.rglob("report"))


def test_nothing_is_deleted_without_a_yes(outputs):
    for answer in ("", "\n", "n\n"):
        mended(runs(outputs, "delete", "first", stdin=answer), "nothing was deleted", "--yes")
        assert (outputs / "first").is_dir()
    done = runs(outputs, "delete", "first", stdin="y\n")
    assert done.returncode == 0 and f"deleted: {outputs / 'first'}" in done.stdout and "[y/N]" in done.stdout
    assert not (outputs / "first").exists() and (outputs / "second").is_dir()
    done = runs(outputs, "delete", outputs / "sweeps" / "trial", "latest", "--yes")
    assert done.returncode == 0 and "[y/N]" not in done.stdout
    assert not (outputs / "sweeps" / "trial").exists() and not (outputs / "second").exists()


def test_what_is_no_run_is_never_deleted(outputs, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "link").symlink_to(outputs / "first")
    for path in (tmp_path / "home", outputs, tmp_path / "link", tmp_path / "nothing"):
        mended(runs(outputs, "delete", "second", path, "--yes"), "nothing was deleted")
    assert (outputs / "second").is_dir() and (outputs / "first").is_dir()


@pytest.mark.parametrize("command", ["recommend", "index", "serve", "report"])
def test_every_command_that_takes_a_run_takes_the_latest(command, tmp_path):
    after = {"recommend": ["what is a basis"], "index": ["info"]}.get(command, [])
    done = dcdt(command, "latest", *after, DCDT_OUTPUTS=str(tmp_path))
    assert done.returncode == 2 and f"latest: no run in {tmp_path} has finished" in done.stderr


def test_the_latest_run_is_reported(outputs):
    done = dcdt("report", "latest", DCDT_OUTPUTS=str(outputs))
    assert done.returncode == 0, done.stderr
    assert (outputs / "second" / "report" / "index.html").is_file()


def test_resume_takes_the_latest_that_was_cut_off(outputs, tmp_path):
    mended(dcdt("run", "resume=latest", DCDT_OUTPUTS=str(tmp_path / "none")), "was cut off")
    done = dcdt("run", "resume=latest", DCDT_OUTPUTS=str(outputs))
    assert done.returncode == 2 and "latest" not in done.stderr  # the run named failed, which has no checkpoint
