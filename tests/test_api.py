"""Training, comparing and asking from Python: `dcdt.train`, `dcdt.compare`, and what they return."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest
from commands import FAST, dcdt, on
from support import make_collection

import dcdt as package
from dcdt.api import Run
from dcdt.utils.errors import UserError
from dcdt.utils.signals import Interrupted


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("collection") / "small")


@pytest.fixture(scope="module")
def overrides(folder, tmp_path_factory):
    return [*on(folder, tmp_path_factory.mktemp("outputs")), *FAST]


@pytest.fixture(scope="module")
def run(overrides):
    return package.train("model=dcdt", *overrides)


def test_the_package_shows_its_api_alone_and_imports_nothing_large():
    code = "import sys, dcdt; print(dir(dcdt)); print({'torch', 'pandas', 'hydra', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    public = ["__version__", "compare", "evaluate", "load", "register", "train"]
    assert done.stdout.splitlines() == [str(public), "set()"]


def test_a_run_from_python_is_that_of_the_command(run, overrides, tmp_path):
    arguments = sys.argv
    done = dcdt("run", "model=dcdt", *overrides, f"hydra.run.dir={tmp_path}/command")
    assert done.returncode == 0, done.stderr
    for name in ("metrics.json", "config.yaml", "run.trec", "history.csv"):
        assert (run.folder / name).read_text() == (tmp_path / "command" / name).read_text()
    keys = [json.loads((path / "status.json").read_text())["key"] for path in (run.folder, tmp_path / "command")]
    assert keys[0] == keys[1]
    provenance = json.loads((run.folder / "provenance.json").read_text())
    assert provenance["command"] == ["python", "-m", "dcdt.run", "model=dcdt", *map(str, overrides)]
    assert sys.argv is arguments


def test_the_frames_of_a_run_are_its_files(run):
    values = json.loads((run.folder / "metrics.json").read_text())
    row = run.metrics.loc["test/mrr"]
    assert row["value"] == values["test/mrr"] and row["zero_shot"] == values["zero_shot/test/mrr"]
    assert not any(name.startswith("zero_shot") for name in run.metrics.index)
    rows = run.per_query.query("split == 'test' and metric == 'mrr'")
    assert rows["value"].mean() == pytest.approx(values["test/mrr"])
    assert len(run.history) == 3 and run.history["train/loss"].notna().all()
    assert {"loss", "scores"} <= run.figures.keys()


def test_a_run_says_what_it_is(run):
    values = json.loads((run.folder / "metrics.json").read_text())
    number = r"[01]\.\d{3}"
    pattern = (
        rf"Run\(dcdt on small: MRR ({number}) \[{number}, {number}\], untrained cosine ({number}), 4 test queries; "
    )
    match = re.match(pattern, repr(run))
    assert match and repr(run).endswith(f"{run.folder})")
    assert match.groups() == (f"{values['test/mrr']:.3f}", f"{values['zero_shot/test/mrr']:.3f}")


def test_a_finished_run_is_not_trained_again_and_opens_by_its_folder(run, caplog):
    before = (run.folder / "metrics.json").stat().st_mtime_ns
    with caplog.at_level(logging.WARNING):
        again = package.train(f"resume={run.folder}")
    assert again.folder.samefile(run.folder) and "done already" in caplog.text
    assert (run.folder / "metrics.json").stat().st_mtime_ns == before
    assert repr(Run(str(run.folder))) == repr(run) and os.fspath(run) == str(run.folder)
    with pytest.raises(UserError, match="is not a run"):
        Run(run.folder.parent)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["model=dctd"], "no such option.*Did you mean"),
        (["model=dcdt,bm25"], "sweep over it"),
        (["experiment=comparison"], "is a sweep of several runs"),
        (["-m"], "-m"),
        (["data=files", "data.path=/nowhere"], "is not a collection"),
        (["seed=-1"], "seed is -1"),
        (["seed=${nothing}"], "nothing"),
        (["model=dcdt", "hydra.run.dir=RUN"], "exists and is not empty"),
        (["data=files", "data.path=SMALL", "model=collaborative", "logger=none"], "interactions"),
        (["experiment_name=http://me:hunter22@host"], "holds a key"),
    ],
)
def test_mistakes_raise_what_the_command_prints(run, folder, tmp_path, given, message):
    given = [text.replace("RUN", str(run.folder)).replace("SMALL", str(folder)) for text in given]
    with pytest.raises(UserError, match=re.compile(message, re.DOTALL)):
        package.train(*given, f"outputs={tmp_path}/outputs")
    statuses = [json.loads(path.read_text())["status"] for path in tmp_path.rglob("status.json")]
    assert statuses == (["failed"] if "model=collaborative" in given else [])  # it began before it found nothing


def test_an_interruption_leaves_a_run_that_can_be_continued(overrides, tmp_path, monkeypatch):
    def stop(settings, config, folder, *rest):
        folder.start(config, {"collection_fingerprint": "", "code": ""})
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("dcdt.training.experiment.run", stop)
    with pytest.raises(KeyboardInterrupt, match=r"stopped by SIGINT; the run is kept.*resume="):
        package.train(*overrides, f"hydra.run.dir={tmp_path}/run")
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "interrupted"


def test_a_comparison_has_the_tables_of_the_report_as_frames(run, overrides, tmp_path):
    other = package.train("model=zero_shot", *overrides)
    report = package.compare([run, str(other.folder)], out=tmp_path / "report")
    assert report.page == tmp_path / "report" / "index.html" and report.page.is_file()
    main = report.tables["main"]
    assert set(main.index) == {"dcdt", "zero_shot"}
    assert main.loc["dcdt", "mrr"] == pytest.approx(run.metrics.loc["test/mrr", "value"], abs=1e-6)
    assert main.loc["dcdt", "mrr_low"] < main.loc["dcdt", "mrr"]
    assert {"tests", "cost"} <= report.tables.keys()
    assert "zero_shot" in repr(report) and str(report.page) in repr(report)
    assert "differences" in report.figures
    assert package.compare([run]).page == run.folder / "report" / "index.html"
    for folders, message in (([], "no run to compare"), ([tmp_path / "none"], "is not a folder")):
        with pytest.raises(UserError, match=message):
            package.compare(folders)


def test_a_run_is_asked_and_served(make_run):
    run = Run(make_run("model=dcdt_ridge"))
    videos = run.recommend("span of a basis", k=2, explained=True)
    assert [video.rank for video in videos] == [1, 2] and videos[0].why
    with urllib.request.urlopen(f"{run.serve()}/search?q=span+of+a+basis&k=1", timeout=60) as answer:
        assert json.load(answer)["videos"][0]["id"] == videos[0].id
