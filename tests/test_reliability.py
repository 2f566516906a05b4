"""docs/reliability.md promises nothing that no test shows."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "reliability.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))


def rows():
    """Cells of the rows of every table whose last column names a test."""
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith("|") and "`tests/" in line:
            yield cells


def test_every_test_that_is_named_exists():
    assert len(NAMED) > 50
    for path, name in NAMED:
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"


def test_every_promise_names_its_test():
    table = re.findall(r"^\|(.*)\|$", PAGE, re.MULTILINE)
    promises = [line for line in table if "---" not in line and "Promise" not in line]
    counts = PAGE.split("<!-- counts", 1)[1]
    bare = [line for line in promises if "`tests/" not in line and line not in counts]
    assert bare == []


@pytest.mark.parametrize(
    "fault", ["`kill -9`", "disk full", "read-only folder", "cut short", "clock goes back", "two processes in one"]
)
def test_every_kind_of_fault_is_there(fault):
    assert f"| {fault} |" in PAGE


def test_the_counts_are_those_that_were_measured():
    sys.path.insert(0, str(ROOT / "tests" / "fuzz"))
    import counts

    assert counts.page() == PAGE, "run: python tests/fuzz/counts.py"


@pytest.mark.slow
def test_bandit_finds_nothing_that_is_not_justified():
    command = [sys.executable, "-m", "bandit", "--quiet", "--configfile", "pyproject.toml", "--recursive"]
    done = subprocess.run([*command, "dcdt", "baselines"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    for text in re.findall(r"# nosec.*", "\n".join(path.read_text() for path in (ROOT / "dcdt").rglob("*.py"))):
        assert re.fullmatch(r"# nosec( B\d+)+ # .{8,}", text), text
