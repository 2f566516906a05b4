"""The wheel, installed outside the checkout, and the `dcdt` command."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import dcdt
from dcdt.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent


def run(*command, **changes):
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, **changes)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Source distribution, and the wheel made from it, of what git would commit: nothing of this machine gets in."""
    copy, out = tmp_path_factory.mktemp("source") / "dcdt", tmp_path_factory.mktemp("dist")
    listed = run("git", "-C", ROOT, "ls-files", "-co", "--exclude-standard").stdout.splitlines()
    for name in listed:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    done = run(sys.executable, "-m", "build", "--outdir", out, copy)
    assert done.returncode == 0, done.stderr + done.stdout
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(built):
    return built[1]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder to stand in, and an environment where the wheel comes before the checkout."""
    target, home = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("home")
    done = run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel)
    assert done.returncode == 0, done.stderr
    return home, {**os.environ, "PYTHONPATH": str(target), "PATH": f"{target / 'bin'}:{os.environ['PATH']}"}


@pytest.mark.slow
def test_the_wheel_installs_no_generic_name_and_all_it_needs(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"dcdt"}
    assert {"dcdt/py.typed", "dcdt/conf/config.yaml", "dcdt/baselines/bm25.py"} <= set(names)
    assert "dcdt/demo/linear_algebra/corpus.jsonl" in names


@pytest.mark.slow
def test_the_source_distribution_holds_what_the_wheel_is_made_of_and_the_wheel_says_what_it_is(built):
    source, wheel = built
    with tarfile.open(source) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"pyproject.toml", "LICENSE", "README.md", "conf/config.yaml", "baselines/bm25.py", "dcdt/py.typed"} <= names
    assert "data/linear_algebra/corpus.jsonl" in names and not any(name.startswith("outputs/2") for name in names)
    with zipfile.ZipFile(wheel) as archive:
        about = next(name for name in archive.namelist() if name.endswith("/METADATA"))
        said = archive.read(about).decode()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Version: {project['version']}\n" in said and "License-Expression: MIT\n" in said
    assert "Typing :: Typed" in said and dcdt.__version__ == project["version"]
    claimed = [name.rsplit(" ", 1)[1] for name in project["classifiers"] if "Python :: 3." in name]
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in claimed, "what runs these tests is claimed"
    assert claimed == re.findall(r"3\.\d+", (ROOT / "README.md").read_text().split("and `make`")[0]), (
        "and README says so"
    )
    extras = {line.split(": ")[1] for line in said.splitlines() if line.startswith("Provides-Extra")}
    assert {"local", "serve", "joblib", "slurm", "search"} <= extras
    cited = (ROOT / "CITATION.cff").read_text()
    assert f"version: {project['version']}" in cited and project["version"] in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_installed_command_runs_the_main_job_outside_the_checkout(installed):
    home, env = installed
    where = run("python", "-c", "import dcdt; print(dcdt.__file__)", cwd=home, env=env).stdout
    assert str(ROOT) not in where
    (home / "mine" / "model").mkdir(parents=True)
    (home / "mine" / "model" / "narrow.yaml").write_text("defaults: [dcdt]\nwidth: 8\n")
    arguments = ["--config-dir", "mine", "model=narrow", "logger=none", "trainer.max_epochs=1"]
    done = run("dcdt", "run", *arguments, cwd=home, env=env)
    assert done.returncode == 0, done.stderr
    assert "run folder:" in done.stdout and len(list((home / "outputs").glob("*/metrics.json"))) == 1
    done = run("dcdt", "run", "hydra.searchpath=[file://mine]", *arguments[2:], cwd=home, env=env)  # Hydra's other way
    assert done.returncode == 0, done.stderr
    done = run("dcdt", "run", "model=bm25", "logger=none", cwd=home, env=env)  # a baseline, inside the package there
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_every_command_of_the_installed_package_shows_its_help(installed):
    home, env = installed
    for name in COMMANDS:
        done = run("dcdt", name, "--help", cwd=home, env=env)
        assert done.returncode == 0 and done.stdout, (name, done.stderr)


def test_an_unknown_command_lists_those_there_are():
    done = run(sys.executable, "-m", "dcdt.cli", "serv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: 'serv' is no command; choose one of {', '.join(COMMANDS)}. Did you mean 'serve'?\n"
