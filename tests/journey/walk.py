"""Walk docs/quickstart.md, command by command, on a collection turned into tables.

`python tests/journey/walk.py FOLDER [--fresh]` prints the seconds of each; FOLDER is such as
$DCDT_COLLECTIONS/khan_math. With --fresh it begins with a clone and the page's own installation into a new environment.
"""

import argparse
import os
import re
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from documented import ROOT, SERVE_ONCE, blocks, pages, run_block
from journey.exports import write_exports

from dcdt.data.beir import load_collection


@dataclass
class Step:
    """A command as the page has it, and what came of it."""

    command: str
    seconds: float
    code: int
    out: str
    err: str


def commands(page: str = "docs/quickstart.md") -> list[str]:
    """Every command of a page but those that install, continued lines joined."""
    bodies = [body.replace("\\\n", " ") for language, body in blocks(pages()[page]) if language == "bash"]
    lines = [" ".join(line.split()) for body in bodies for line in body.splitlines() if line.strip()]
    return [line for line in lines if line.startswith("python -m dcdt.")]


def install(place: Path, page: str = "docs/quickstart.md") -> list[Step]:
    """Clone this checkout and install it as the page says; the steps, with the clone in place/dcdt."""
    (block,) = [body for language, body in blocks(pages()[page]) if language == "bash" and "pip install" in body]
    steps = []
    for command, folder in ((f"git clone --quiet {shlex.quote(str(ROOT))} dcdt", place), (block, place / "dcdt")):
        started = time.perf_counter()
        done = run_block(command, folder, PYTHONPATH="")
        steps.append(
            Step("; ".join(command.split("\n")), time.perf_counter() - started, done.returncode, "", done.stderr)
        )
    return steps


def walk(
    collection: Path, folder: Path, videos: int = 500, questions: int = 100, clone: Path | None = None
) -> list[Step]:
    """Write the tables into a folder and give every command there; it ends at the first that fails.

    Args:
        collection: that the tables are made of.
        folder: where they lie.
        videos: how many at most.
        questions: how many at most.
        clone: whose environment the commands are of; this one where none is given.
    """
    write_exports(load_collection(collection), folder, videos, questions)
    run, steps, serve, own = "", list[Step](), SERVE_ONCE, {}
    if clone is not None:
        home = clone / ".venv" / "bin"
        serve = f"{home / 'python'} {clone / 'tests' / 'journey' / 'serve_once.py'}"
        own = {"PATH": f"{home}:{os.environ['PATH']}", "PYTHONPATH": ""}
    for command in commands():
        given = command.replace("python -m dcdt.serve", serve)
        if re.search(r"\bRUN\b", given):
            assert run, f"RUN is used before a command has named it: {command}"
            given = shlex.quote(run).join(re.split(r"\bRUN\b", given))
        started = time.perf_counter()
        done = run_block(given, folder, **own)
        steps.append(Step(command, time.perf_counter() - started, done.returncode, done.stdout, done.stderr))
        if done.returncode:
            break
        named = re.search(r"^run folder: (.+)$", done.stdout, re.MULTILINE)
        run = named.group(1) if named else run
    return steps


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("collection", type=Path)
    parser.add_argument("--fresh", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        found = install(Path(place)) if asked.fresh else []
        (Path(place) / "tables").mkdir()
        found += walk(asked.collection, Path(place) / "tables", clone=Path(place) / "dcdt" if asked.fresh else None)
    for step in found:
        print(f"{step.seconds:7.1f} s  {'' if not step.code else f'exit {step.code}: '}{step.command}")
    print(f"{sum(step.seconds for step in found):7.1f} s  in all")
    if found[-1].code:
        print(found[-1].err[-3000:])
        raise SystemExit(1)
