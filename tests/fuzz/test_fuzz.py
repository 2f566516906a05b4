"""Real files with odd changes are refused in words or hold what they promise; every defect that was found stays."""

import json
import os
import random
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from bases import finished_run
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import KINDS, TOKENS, mutate
from structures import restructure
from targets import TARGETS, limited, make

HERE = Path(__file__).parent
FAST = {"collection": 60, "tables": 40, "images": 80, "vectors": 40, "approximate": 40}  # inputs; the others are slow
MANY = 400
SLOWER = {"overrides": 100, "report": 150, "restore": 200, "catalogue": 150}
FOUND = sorted((HERE / "found").glob("*/*"))

places = st.floats(0, 1)
steps = st.lists(
    st.tuples(st.integers(0, len(KINDS) - 1), places, places, st.integers(0, 10_000)), min_size=1, max_size=3
)


@pytest.fixture(scope="session")
def laid_out(bench, tmp_path_factory):
    """Every target, laid out once."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = make(name, tmp_path_factory.mktemp("fuzz") / name)
        return made[name]

    return get


def tried(target, examples, name):
    """Give a target changed real files; hypothesis shrinks what goes wrong."""
    corpus = target.corpus()

    @settings(max_examples=examples, database=None, derandomize=True)  # the search is fuzz.py's; a suite repeats itself
    @given(st.sampled_from(range(len(corpus))), st.sampled_from(range(len(corpus))), st.integers(0, 10**6), steps)
    def inner(at, other, number, changes):
        content = corpus[at][1:]
        if number % 2:  # inside what the format holds, else bytes
            content = restructure(target.files[corpus[at][0]], content, number)
        if content is None or number % 2 == 0:
            content = mutate(corpus[at][1:], changes, corpus[other][1:])
        data = corpus[at][:1] + content
        with limited():
            target.run(data)

    inner()


@pytest.mark.slow
def test_the_real_files_themselves_are_accepted(laid_out):
    for name in FAST:
        target = laid_out(name)
        assert all(target.run(content) for content in target.corpus()), name


@pytest.mark.parametrize("name", FAST)
def test_changed_files_are_refused_in_words_or_good(laid_out, name):
    tried(laid_out(name), FAST[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_many_changed_files_are_refused_in_words_or_good(laid_out, name):
    target = laid_out(name)
    assert all(target.run(content) for content in target.corpus())
    tried(target, SLOWER.get(name, MANY), name)


RAW = [
    b"GET /search?q=rank&k=3 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /search HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
]


@pytest.mark.slow
def test_a_real_server_survives_what_is_no_request(tmp_path):
    """Raw bytes over a socket: whatever comes, no answer is of the server's own failing, and it goes on answering."""
    run = finished_run(tmp_path / "x", "model=bm25")
    command = [sys.executable, "-m", "dcdt.serve", str(run), "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
    try:
        address = process.stdout.readline().split()[0]
        port = int(address.rsplit(":", 1)[1])
        rng = random.Random(0)
        for _ in range(400):
            changes = [(rng.randrange(99), rng.random(), rng.random(), rng.randrange(9999)) for _ in range(2)]
            raw = mutate(rng.choice(RAW), changes, rng.choice(RAW))
            with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
                line.settimeout(0.05)  # many are never whole, and rightly wait for the rest
                line.sendall(raw)
                try:
                    answer = line.recv(4096)
                except (TimeoutError, ConnectionError):
                    continue
                assert not answer or not answer.startswith(b"HTTP/1.1 5"), (raw, answer)
        with urllib.request.urlopen(f"{address}/search?q=rank", timeout=10) as answer:
            assert len(json.load(answer)["videos"]) == 10
    finally:
        process.terminate()
        process.wait(20)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_what_is_kept_is_named_after_a_target():
    assert {path.parent.name for path in FOUND} <= set(TARGETS)
    assert len(TOKENS) > 40


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_defect_that_was_found_does_not_come_back(laid_out, path):
    target = laid_out(path.parent.name)
    file = path.name.partition("--")[0]
    at = next(at for at, name in enumerate(target.files) if Path(name).name == file)
    with limited():
        target.run(bytes([at]) + path.read_bytes())


def test_the_counts_are_of_every_target():
    results = json.loads((HERE / "results.json").read_text())
    assert set(results) == set(TARGETS)
    for name, counts in results.items():
        assert counts["executions"] >= counts["seeds"] > 0 and counts["defects"] == 0, name
        assert counts["command"].startswith(f"python tests/fuzz/fuzz.py {name} ")
