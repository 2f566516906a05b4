"""Somebody who has a table and a folder of captions ends at a page that answers with the minute."""

import csv
import json
import re
import shlex

import pytest
from documented import SERVE_ONCE, blocks, pages, run_block

TOPICS = {
    "fractions": "to add fractions you first find a common denominator",
    "triangles": "the angles of a triangle sum to a straight line",
    "circles": "the area of a circle is pi times the radius squared",
    "primes": "a prime number has no divisor but one and itself",
    "percent": "a percentage is a part of one hundred",
    "slopes": "the slope of a line is its rise over its run",
    "vectors": "you add two vectors tip to tail",
    "limits": "a limit is the value that a function approaches",
    "logarithms": "a logarithm turns products into sums",
    "roots": "a square root undoes what squaring does",
    "probability": "the probability of an event is between zero and one",
    "matrices": "you multiply a matrix by rows and columns",
}
IDLE = "so before we begin let me say hello and thank you for watching this lesson today it is good to see you here"


def write_talks(folder):
    """Write a table of talks and of questions, captions in which the answer comes at 2:00, and a new talk."""
    (folder / "captions").mkdir()
    for name, answer in (TOPICS | {"zebras": "a zebra is striped in black and white"}).items():
        lines = ["WEBVTT", ""]
        for second in range(0, 180, 10):
            said = answer if 120 <= second < 160 else f"{IDLE} {second}"
            clock = [f"00:{at // 60:02}:{at % 60:02}.000" for at in (second, second + 10)]
            lines += [f"{clock[0]} --> {clock[1]}", said, ""]
        (folder / "captions" / f"{name}.vtt").write_text("\n".join(lines))
    head = ["id", "title", "url"]
    talks = [[name, f"Lesson {at}", f"https://youtu.be/{name}"] for at, name in enumerate(TOPICS)]
    asked = [[f"{start} {name}", name] for name in TOPICS for start in ("what about", "tell me about", "explain")]
    tables = {
        "talks": [head, *talks],
        "new": [head, ["zebras", "Lesson 99", ""]],
        "asked": [["question", "video"], *asked],
    }
    for name, rows in tables.items():
        with (folder / f"{name}.csv").open("w", newline="") as lines:
            csv.writer(lines).writerows(rows)


@pytest.mark.slow
def test_captions_and_a_table_become_a_page_that_answers_with_moments(tmp_path, monkeypatch, doc_cache):
    monkeypatch.setenv("DCDT_CACHE", str(doc_cache))
    write_talks(tmp_path)
    [body] = [body for _, body in blocks(pages()["docs/your_data.md"]) if "--videos talks.csv" in body]
    run, out = "", {}
    for command in body.strip().splitlines():
        given = shlex.quote(run).join(re.split(r"\bRUN\b", command)).replace("python -m dcdt.serve", SERVE_ONCE)
        done = run_block(given, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        out[command.split()[2]] = done.stdout
        run = (re.search(r"^run folder: (.+)$", done.stdout, re.MULTILINE) or [None, run])[1]
    printed = " ".join(out["dcdt.recommend"].split())
    first = re.search(r"at (\d+):(\d\d): ", printed)
    assert first and 60 <= 60 * int(first[1]) + int(first[2]) <= 150 and "https://youtu.be/fractions?t=" in printed
    assert "added 1" in out["dcdt.index"] and "'Lesson 0'" in out["dcdt.serve"]
    starts = json.loads(out["dcdt.serve"].rsplit("; ", 1)[1])
    assert all(of_video and of_video[0] >= 0 for of_video in starts)
    answer = run_block(f"python -m dcdt.recommend {shlex.quote(run)} 'striped zebra' -k 1 --json", tmp_path)
    [video] = json.loads(answer.stdout)["answer"]
    assert video["id"] == "zebras" and "striped" in video["moments"][0]["text"]
