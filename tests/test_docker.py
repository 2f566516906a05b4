"""The Dockerfile, as far as it can be checked without docker: what it copies, installs and starts is there."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from dcdt import serve
from dcdt.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text()).splitlines()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def instructions(name):
    """The arguments of every instruction of this name."""
    return [line.split(maxsplit=1)[1] for line in LINES if line.startswith(f"{name} ")]


def copied():
    """Pairs of a source and where it goes."""
    return [(source, words[-1]) for words in map(str.split, instructions("COPY")) for source in words[:-1]]


def test_what_is_copied_is_there_and_nothing_else_is_sent_to_docker():
    sources = {source for source, _ in copied()}
    assert sources and all((ROOT / source).exists() for source in sources)
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert lines[0] == "*" and {line[1:] for line in lines if line.startswith("!")} == sources
    assert [line for line in lines[1:] if not line.startswith("!")] == ["**/__pycache__"]


def test_the_python_and_the_extras_are_those_of_the_package():
    (image,) = instructions("FROM")
    version = re.fullmatch(r"python:(3\.\d+)-slim", image)[1]
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]
    (install,) = [line for line in instructions("RUN") if line.startswith("pip install")]
    (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", install)
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert "--constraint constraints.txt" in install and (".ci/constraints.txt", "./") in copied()
    assert '--extra-index-url "$TORCH_INDEX"' in install
    assert instructions("ARG") == ["TORCH_INDEX=https://download.pytorch.org/whl/cpu"], "no CUDA by default"


def test_what_it_starts_is_a_command_with_these_options(capsys):
    (entry,), command = (json.loads(instructions(name)[0]) for name in ("ENTRYPOINT", "CMD"))
    assert entry in PROJECT["scripts"] and command[0] in COMMANDS
    with pytest.raises(SystemExit):
        serve.main(["--help"])
    usage = capsys.readouterr().out
    assert all(word in usage for word in command if word.startswith("--"))
    (port,) = instructions("EXPOSE")
    (health,) = instructions("HEALTHCHECK")
    assert f'"--port", type=int, default={port}' in (ROOT / "dcdt" / "serve.py").read_text()
    assert f"127.0.0.1:{port}/healthz" in health
    assert shlex.split(instructions("USER")[0]) != ["root"]


@pytest.mark.slow
def test_what_is_copied_makes_the_whole_wheel(tmp_path):
    context = tmp_path / "context"
    for source, target in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, context / target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (context / target).mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / source, context / target)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), str(context)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"dcdt/serve.py", "dcdt/serving/page.html", "dcdt/conf/config.yaml", "dcdt/baselines/bm25.py"} <= names
    assert "dcdt/demo/linear_algebra/corpus.jsonl" in names
