"""The command as its users start it, against a real server and real disks."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import dcdt, dcdt_process
from embeddings.loopback import Loopback, Trouble, vector_of
from support import EMBEDDER, make_collection, write_folder

from dcdt.embeddings.cache import Space, VectorCache
from dcdt.embeddings.providers import space_of

SECRET = "sk-test-0123456789-never-to-be-seen"
SLOW = pytest.mark.slow
SPACE = Space("openai-compatible", "text-embedding-3-small", 1536, "l2")
SMALL_REQUESTS = ["embedder.request_inputs=8", "embedder.concurrency=4"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """A key, and no proxy between the client and the server of a test."""
    for name in [name for name in os.environ if "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def fixed(folder):
    return ["data=files", f"data.path={folder}", f"data.cache={folder}/cache"]


def command(folder, *overrides):
    return [sys.executable, "-m", "dcdt.embed", *fixed(folder), *map(str, overrides)]


def embed(folder, *overrides, call=dcdt, **changes):
    return call("embed", *fixed(folder), *overrides, cwd=folder, **changes)


def openai(server, *overrides):
    return ["embedder=openai", f"embedder.base_url={server.url}", *overrides]


def catalogue(folder, n=400):
    videos = [{"_id": f"v{at}", "title": f"Title {at}", "text": f"What video {at} is about"} for at in range(n)]
    return write_folder(folder, videos, [{"_id": "q0", "text": "What is it?"}], all=["q0\tv0\t1"])


def texts_of(n=400):
    return ["What is it?", *(text for at in range(n) for text in (f"Title {at}", f"What video {at} is about"))]


def held(folder):
    """Texts of a catalogue that are stored right now."""
    cache = VectorCache(folder / "cache", SPACE)
    missing = set(cache.missing(texts_of()))
    return {text for text in texts_of() if text not in missing}


def test_the_estimate_comes_first_and_a_dry_run_ends_there(tmp_path):
    folder = catalogue(tmp_path / "c")
    with Loopback() as server:
        done = embed(folder, *openai(server, "embedder.price=0.02"), "dry_run=true")
        assert server.requests == []
    assert (done.returncode, done.stderr) == (0, "")
    assert "801 distinct texts: 0 cached, 801 to embed; about " in done.stdout
    assert "less than 0.01 USD" in done.stdout
    assert not (folder / "cache").exists()


def test_a_run_through_openai_says_what_it_did_and_keeps_the_key_to_itself(tmp_path):
    folder = catalogue(tmp_path / "c")
    with Loopback() as server:
        done = embed(folder, *openai(server), call=dcdt_process, OPENAI_LOG="debug")
    assert done.returncode == 0, done.stderr
    assert "the server counted 5,607 tokens" in done.stdout
    assert "801 vectors of 1536 numbers" in done.stdout
    assert held(folder) == set(texts_of())
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(SECRET.encode() in path.read_bytes() for path in written)
    assert SECRET not in done.stdout + done.stderr


@SLOW
def test_kill_9_again_and_again_and_no_text_that_was_stored_is_asked_for_twice(tmp_path):
    folder, rng = catalogue(tmp_path / "c"), np.random.default_rng(0)
    with Loopback(latency=0.03) as server:
        for kills in range(1, 5):
            before = sum(server.answered.values())
            process = subprocess.Popen(
                command(folder, *openai(server, *SMALL_REQUESTS)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            wanted = before + int(rng.integers(60, 150))
            while sum(server.answered.values()) < wanted:
                time.sleep(0.002)
                assert process.poll() is None
            time.sleep(rng.uniform(0, 0.03))
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            time.sleep(0.1)  # the server ends what it is at
            stored = held(folder)
            lost = set(server.answered) - stored
            assert len(lost) <= kills * 4 * 8  # the requests in flight at each kill
            asked = {text: server.asked[text] for text in stored}
        assert 50 < len(stored) < 801
        done = embed(folder, *openai(server, *SMALL_REQUESTS))
        assert done.returncode == 0, done.stderr
        assert f"801 distinct texts: {len(stored)} cached" in done.stdout
        assert {text: server.asked[text] for text in stored} == asked
        embed(folder, *openai(server))
        assert {text: server.asked[text] for text in stored} == asked
    cache = VectorCache(folder / "cache", SPACE)
    np.testing.assert_allclose(cache.vectors(texts_of()), [vector_of(text) for text in texts_of()], atol=1e-3)
    assert embed(folder, *openai(server), "verify=true").returncode == 0


@SLOW
def test_two_processes_on_one_cache_pay_for_no_text_twice(tmp_path):
    folder = catalogue(tmp_path / "c")
    with Loopback(latency=0.02) as server:
        started = [
            subprocess.Popen(command(folder, *openai(server, *SMALL_REQUESTS)), stdout=-1, stderr=-1, text=True)
            for _ in range(2)
        ]
        ends = [process.communicate(timeout=120) for process in started]
        assert [process.returncode for process in started] == [0, 0]
    assert set(server.asked.values()) == {1}
    assert held(folder) == set(texts_of())
    assert any(
        f"process {started[0].pid} embeds" in err or f"process {started[1].pid} embeds" in err for _, err in ends
    )


@SLOW
def test_a_quota_that_ends_mid_way_says_what_is_kept_and_the_next_run_goes_on(tmp_path):
    def misbehave(server, number, payload):
        if number > 20:
            raise Trouble(429, "You exceeded your current quota", code="insufficient_quota")

    folder = catalogue(tmp_path / "c")
    with Loopback(misbehave) as server:
        done = embed(folder, *openai(server, *SMALL_REQUESTS))
        assert done.returncode == 2
        assert "quota of this key is used up" in done.stderr
        assert "What was answered is stored; the same command continues from there." in done.stderr
        assert "Traceback" not in done.stderr
        server.misbehave = None
        assert embed(folder, *openai(server, *SMALL_REQUESTS)).returncode == 0
    assert set(server.answered.values()) == {1}


@SLOW
@pytest.mark.parametrize(("options", "said"), [("size=2m", "No space left|MiB are free"), ("ro", "Read-only")])
def test_a_full_or_read_only_disk_ends_in_two_lines_and_keeps_what_it_held(tmp_path, options, said):
    folder, disk = catalogue(tmp_path / "c", 2000), tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a disk needs root")
    try:
        with Loopback() as server:
            done = embed(folder, *openai(server, *SMALL_REQUESTS), f"data.cache={disk}")
            assert done.returncode == 2
            assert "Traceback" not in done.stderr
            assert len(done.stderr.splitlines()) <= 2
            assert any(part in done.stderr for part in said.split("|"))
            assert "data.cache=FOLDER" in done.stderr
            assert len(server.requests) == 0  # found out before anything was paid for
    finally:
        subprocess.run(["umount", disk], check=True)


@SLOW
def test_a_disk_that_fills_up_mid_way_keeps_every_answer_before(tmp_path):
    """Another process takes the room that was free when the run started."""
    folder, disk = catalogue(tmp_path / "c"), tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a disk needs root")

    def misbehave(server, number, payload):
        if number == 30:
            with (disk / "other").open("wb") as file, contextlib.suppress(OSError):
                file.write(bytes(4 << 20))

    try:
        with Loopback(misbehave) as server:
            done = embed(folder, *openai(server, *SMALL_REQUESTS), f"data.cache={disk}")
            assert done.returncode == 2
            assert "cannot be written (No space left on device); what it held is kept" in done.stderr
            assert "Traceback" not in done.stderr
            stored = len(VectorCache(disk, SPACE))
            assert stored >= 25 * 8 - 4 * 8
            assert [path for path in disk.rglob("*.tmp")] == []
            (disk / "other").unlink()
            assert embed(folder, *openai(server, *SMALL_REQUESTS), f"data.cache={disk}").returncode == 0
        cache = VectorCache(disk, SPACE)
        np.testing.assert_allclose(cache.vectors(texts_of()), [vector_of(text) for text in texts_of()], atol=1e-3)
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("overrides", "changes", "said"),
    [
        (["embedder=openai"], {"OPENAI_API_KEY": ""}, "needs a key: export OPENAI_API_KEY=..."),
        pytest.param(["embedder=openai", "embedder.dimensions=4096"], {}, "has at most 1536", marks=SLOW),
        pytest.param(["embedder=openai", "embedder.model=x"], {}, "its width is not known", marks=SLOW),
        pytest.param(["embedder.package=/no/folder"], {}, "is neither a folder nor one of the known", marks=SLOW),
        pytest.param(["+embedder.api_key=x"], {}, "embedder.api_key", marks=SLOW),
    ],
)
def test_mistakes_end_in_a_line_or_two(tmp_path, overrides, changes, said):
    done = embed(catalogue(tmp_path / "c", 3), *overrides, **changes)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert not (tmp_path / "c" / "cache").exists()


@SLOW
def test_a_file_that_is_not_utf_8_and_an_empty_text_are_named_with_their_line(tmp_path):
    folder = catalogue(tmp_path / "c", 3)
    corpus = folder / "corpus.jsonl"
    corpus.write_bytes(corpus.read_bytes().replace(b"Title 1", b"Caf\xe9"))
    done = embed(folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "corpus.jsonl:2: not UTF-8" in done.stderr
    corpus.write_text('{"_id": "v0", "title": " ", "text": ""}\n')
    assert "corpus.jsonl holds no video with a word" in embed(folder).stderr


@SLOW
def test_a_cache_of_another_model_is_named_and_left_alone(tmp_path):
    folder = make_collection(tmp_path / "c", n_videos=5, n_queries=9)
    with Loopback() as server:
        done = embed(folder, *openai(server), f"data.cache={folder}/embeddings")
    assert done.returncode == 0
    assert "0 cached" in done.stdout  # the vectors of the other space do not count, and stay
    assert len(VectorCache(folder / "embeddings", space_of(EMBEDDER))) > 0
    manifest = folder / "embeddings" / space_of(EMBEDDER).folder / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "model": "another"}))
    done = embed(folder, f"data.cache={folder}/embeddings")
    assert done.returncode == 2
    assert "model is 'another', but the configuration asks for" in done.stderr


@SLOW
def test_a_run_embeds_what_is_missing_by_the_same_code(tmp_path):
    folder = make_collection(tmp_path / "c", n_videos=20, n_queries=60)
    with Loopback() as server:
        chosen = ["model=zero_shot", "logger=none", f"outputs={tmp_path}/out", "split.part=all", *openai(server)]
        done = dcdt("run", *fixed(folder), *chosen)
        assert done.returncode == 0, done.stderr
        again = dcdt("run", *fixed(folder), *chosen)
    assert again.returncode == 0, again.stderr
    assert "to embed; about" in done.stdout
    assert "HTTP Request" not in done.stdout + done.stderr  # the client's own lines would break the progress bar
    assert set(server.asked.values()) == {1}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(SECRET.encode() in path.read_bytes() for path in files)


def unit(n, width=1536):
    vectors = np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@SLOW
def test_vectors_that_are_there_already_are_imported(tmp_path):
    folder, vectors = catalogue(tmp_path / "c", 5), unit(5)
    np.save(tmp_path / "texts.npy", vectors)
    (tmp_path / "ids.txt").write_text("".join(f"v{at}\n" for at in range(5)))
    table = {"_id": [f"v{at}" for at in range(5)], "embedding": list(vectors[::-1])}
    pq.write_table(pa.table(table), tmp_path / "titles.parquet")
    np.save(tmp_path / "query.npy", 2 * vectors[:1])
    (tmp_path / "query.jsonl").write_text('{"text": "What is it?"}\n')
    chosen = ["embedder=openai"]
    done = embed(folder, *chosen, f"import.vectors={tmp_path}/texts.npy", f"import.names={tmp_path}/ids.txt")
    assert done.returncode == 0, done.stderr
    assert "5 vectors imported; 0 rows left out" in done.stdout
    embed(folder, *chosen, f"import.vectors={tmp_path}/titles.parquet", "import.field=title")
    query = [f"import.vectors={tmp_path}/query.npy", f"import.names={tmp_path}/query.jsonl"]
    refused = embed(folder, *chosen, *query)
    assert refused.returncode == 2
    assert "not of length 1; the first has length 2" in refused.stderr
    assert "1 vectors imported" in embed(folder, *chosen, *query, "import.normalise=true").stdout
    cache = VectorCache(folder / "cache", Space("openai", "text-embedding-3-small", 1536, "l2"))
    found = cache.vectors([*(f"What video {at} is about" for at in range(5)), *(f"Title {at}" for at in range(5))])
    np.testing.assert_allclose(found, np.concatenate([vectors, vectors[::-1]]), atol=1e-3)
    assert "11 distinct texts, all cached" in embed(folder, *chosen, OPENAI_API_KEY="").stdout


@SLOW
def test_real_openai_vectors_are_imported(tmp_path):
    root = os.environ.get("DCDT_COLLECTIONS")
    if not root:
        pytest.skip("$DCDT_COLLECTIONS is not set: the public collections are not here")
    source, folder = Path(root) / "openai_vectors", catalogue(tmp_path / "c", 5)
    given = [f"import.vectors={source}/vectors.npy", f"import.names={source}/texts.jsonl"]
    done = embed(folder, "embedder=openai", *given)
    assert done.returncode == 0, done.stderr
    cache = VectorCache(folder / "cache", Space("openai", "text-embedding-3-small", 1536, "l2"))
    texts = [json.loads(line)["text"].strip() for line in (source / "texts.jsonl").open(encoding="utf-8")]
    first = {text: row for row, text in reversed(list(enumerate(texts)))}
    wanted = np.load(source / "vectors.npy")[[first[text] for text in texts]]
    np.testing.assert_allclose(cache.vectors(texts), wanted, atol=1e-3)
