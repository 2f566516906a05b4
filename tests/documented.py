"""Code blocks of the documentation, and how a test runs them: in bash, in a folder of their own, as a reader would."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SERVE_ONCE = f"{sys.executable} {ROOT / 'tests' / 'journey' / 'serve_once.py'}"


def pages():
    """README and every page of docs/, by path."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}


def blocks(text):
    """Language and text of every fenced block, in order."""
    return [(language, body) for language, body in FENCE.findall(text)]


def changed(body, instead):
    """Replace placeholders in a block; each must occur."""
    for old, new in instead.items():
        assert old in body, f"'{old}' is no longer in the block:\n{body}"
        body = body.replace(old, new)
    return body


def run_block(body, folder, timeout=900, **more):
    """Run a block in bash with this checkout's package and interpreter; returns the finished process."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DCDT_OUTPUTS": str(folder / "outputs"),
        "WANDB_MODE": "offline",
        "COLUMNS": "120",
        "OMP_NUM_THREADS": "1",
        **more,
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", body],
        cwd=folder,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
