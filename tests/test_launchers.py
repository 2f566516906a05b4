"""The same sweep through every launcher, in real processes: one table."""

import importlib.util
import os
import subprocess
import sys

import pytest
from commands import FAST, clean_environment, dcdt, on
from support import make_collection

LAUNCHERS = {
    "processes": "hydra_plugins.hydra_joblib_launcher",
    "slurm_local": "hydra_plugins.hydra_submitit_launcher",
    "ray_local": "hydra_plugins.hydra_ray_launcher",
}
FILES = ("table.md", "table.csv", "table.tex", "tests.csv", "breakdowns.csv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("collection") / "small", n_videos=20, n_queries=60)


def python_with(module):
    """An interpreter that has a launcher: this one, or for Ray, whose plugin needs an older cloudpickle, another."""
    names = module.split(".")
    try:
        if importlib.util.find_spec(module):
            return sys.executable
    except ModuleNotFoundError:
        pass
    other = os.environ.get("DCDT_RAY_PYTHON")
    if names[-1] == "hydra_ray_launcher" and other:
        return other
    pytest.skip(
        f"{names[-1]} is not installed"
        + (" here; $DCDT_RAY_PYTHON can name an interpreter that has it" * ("ray" in module))
    )


def tables(folder, place, launcher=None, python=sys.executable, jobs=()):
    """The quality tables with which a small sweep ends."""
    sweep = ["-m", *on(folder, place.parent), *FAST, "trainer.threads=1", "split=folds", "split.index=0,1"]
    sweep += [
        "model=zero_shot,bm25,dcdt",
        f"hydra.sweep.dir={place}",
        *([f"hydra/launcher={launcher}"] if launcher else []),
        *jobs,
    ]
    done = subprocess.run(
        [python, "-m", "dcdt.run", *sweep], capture_output=True, text=True, env=clean_environment(OMP_NUM_THREADS="1")
    )
    assert done.returncode == 0, done.stderr
    assert "6 finished" in done.stderr
    assert f"report: {place}/report/index.html" in done.stdout
    return {name: (place / "report" / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    return tables(folder, tmp_path_factory.mktemp("plain") / "sweep")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["processes", "slurm_local", pytest.param("ray_local", marks=pytest.mark.extra)])
def test_the_same_sweep_through_another_launcher_gives_the_same_tables(folder, plain, tmp_path, launcher):
    python = python_with(LAUNCHERS[launcher])
    jobs = ["hydra.launcher.n_jobs=2"] if launcher == "processes" else []
    assert tables(folder, tmp_path / "sweep", launcher, python, jobs) == plain


@pytest.mark.slow
def test_a_search_asks_for_the_primary_metric_and_finds_its_jobs_again(folder, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["-m", *on(folder, tmp_path), *FAST, "experiment=search", "hydra.sweeper.n_trials=4"]
    done = dcdt("run", *search)
    assert done.returncode == 0, done.stderr
    [place] = (tmp_path / "sweeps").iterdir()
    assert place.name.startswith("search_")
    values = [float(path.read_text().split('"val/mrr": ')[1].split(",")[0]) for path in place.glob("*/metrics.json")]
    best = (place / "optimization_results.yaml").read_text()
    assert len(values) == 4
    assert float(best.split("best_value: ")[1].split()[0]) == pytest.approx(max(values))
    again = dcdt("run", *search)
    assert again.returncode == 0 and again.stderr.count("done already") == 4
    assert f"report: {place}/report/index.html" in done.stdout and "\nreport: " in again.stdout
