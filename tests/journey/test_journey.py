"""Somebody who has two tables and the documentation ends at a search page of a model tuned on their data."""

import csv
import os
import re
from pathlib import Path

import pytest
from documented import ROOT
from journey.walk import commands, install, walk

from dcdt.utils.files import read_json

STEPS = ["collection new", "run", "run -m", "run", "recommend", "recommend", "index", "serve"]
NOISE = re.compile(r"Traceback|Warning:|DEBUG|initializer|\b1 (videos|queries|epochs|descriptions)\b")


def test_the_quickstart_walks_the_whole_way_and_no_step_is_lost():
    said = [command.removeprefix("python -m dcdt.") for command in commands()]
    assert len(said) == len(STEPS)
    assert all(command.startswith(step) for command, step in zip(said, STEPS, strict=True)), said


def shipped():
    return ROOT / "data" / "linear_algebra", 46


def khan():
    root = os.environ.get("DCDT_COLLECTIONS")
    if not root:
        pytest.skip("$DCDT_COLLECTIONS is not set: the public collections are not here")
    return Path(root) / "khan_math", 500


@pytest.mark.slow
@pytest.mark.parametrize("source", [shipped, khan], ids=["shipped", "khan_math"])
def test_two_tables_become_a_search_page(source, tmp_path, monkeypatch, doc_cache):
    collection, videos = source()
    monkeypatch.setenv("DCDT_CACHE", str(doc_cache))
    clone = None
    if source is shipped:  # as somebody does who has nothing yet: clone, new environment, the page's own installation
        (tmp_path / "home").mkdir()
        for step in install(tmp_path / "home"):
            assert step.code == 0, f"{step.command}\n{step.err}"
        clone = tmp_path / "home" / "dcdt"
    steps = walk(collection, tmp_path, videos, clone=clone)
    for step in steps:
        assert step.code == 0, f"{step.command}\n{step.err}"
        noise = [line for line in (step.out + step.err).splitlines() if NOISE.search(line)]
        assert not noise, f"{step.command}\n{noise[:5]}"
    made, trained, reported, served, asked, _, changed, page = steps
    assert "queries with a positive" in made.out and "Train on it: python -m dcdt.run" in made.out
    assert "zero_shot" in trained.out and "ask it: python -m dcdt.recommend" in served.out
    assert "hybrid_towers" in reported.out and "bm25" in reported.out
    assert asked.out.count("│") >= 5
    answers = list(csv.DictReader((tmp_path / "answers.csv").open(encoding="utf-8")))
    questions = list(csv.DictReader((tmp_path / "asked.csv").open(encoding="utf-8-sig")))
    assert {row["question"] for row in answers} == {row["What they asked"] for row in questions}
    added = len(list(csv.reader((tmp_path / "new.csv").open(encoding="utf-8-sig")))) - 1
    assert f"added {added}" in changed.out
    assert "served http://127.0.0.1" in page.out
    tuned = re.search(r"^run folder: (.+)$", served.out, re.MULTILINE).group(1)
    metrics = read_json(Path(tuned) / "metrics.json")
    assert metrics["test/mrr"] >= metrics["zero_shot/test/mrr"] - 0.15  # a broken model falls far behind the cosine
