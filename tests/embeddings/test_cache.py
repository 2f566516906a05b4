import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcdt.embeddings.cache import Space, VectorCache
from dcdt.embeddings.shards import content_name, open_shard
from dcdt.utils.errors import UserError

SPACE = Space("test", "seeded/v1", 8, "l2")
REMEDY = "python -m dcdt.embed data=files data.path=X"


def unit(n, width=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def names(n, start=0):
    return [f"text {at} é" for at in range(start, start + n)]


@pytest.fixture
def cache(tmp_path):
    """A cache with two shards of three vectors."""
    made = VectorCache(tmp_path, SPACE, REMEDY)
    made.add(names(3), unit(3))
    made.add(names(3, start=3), unit(3, seed=1))
    return made


def shards(cache):
    return sorted(cache.folder.glob("*.safetensors"))


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 5), st.sampled_from([2, 8, 384, 3072]), st.integers(0, 100))
def test_what_is_added_is_found_again_in_any_order(tmp_path_factory, n, n_shards, width, seed):
    root = tmp_path_factory.mktemp("cache")
    space = Space("test", "m", width, "l2")
    texts, vectors = names(n), unit(n, width, seed)
    cache = VectorCache(root, space)
    for part in np.array_split(np.arange(n), n_shards):
        cache.add([texts[at] for at in part], vectors[part])
    asked = np.random.default_rng(seed).integers(0, n, 50)
    for reader in (cache, VectorCache(root, space)):
        assert len(reader) == n
        found = reader.vectors([texts[at] for at in asked])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, vectors[asked], atol=5e-4)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_a_vector_loses_fp16_rounding_and_no_more(cache):
    given_cosines = unit(3) @ unit(3).T
    read = cache.vectors(names(3))
    np.testing.assert_allclose(read @ read.T, given_cosines, atol=1e-3)
    assert not np.array_equal(read, unit(3))


def test_missing_texts_are_listed_once_in_order(cache):
    assert cache.missing(["new", *names(2), "other", "new"]) == ["new", "other"]
    assert cache.missing([]) == []
    assert VectorCache(cache.root / "empty", SPACE).missing(["a", "a"]) == ["a"]


def test_reading_a_missing_text_says_how_many_and_what_to_run(cache):
    with pytest.raises(UserError, match="2 of 4 texts have no vector") as caught:
        cache.vectors([*names(2), "new", "other"])
    assert f"Run: {REMEDY}" in str(caught.value)
    assert "other spaces" not in str(caught.value)


def test_reading_a_missing_text_names_the_other_spaces_of_the_cache(cache):
    other = Space("openai", "text-embedding-3-small", 1536, "l2")
    with pytest.raises(UserError, match=f"The cache holds other spaces: {SPACE.folder}"):
        VectorCache(cache.root, other, REMEDY).vectors(names(1))


@pytest.mark.parametrize("key", ["provider", "model", "dimensions", "normalisation"])
def test_another_space_has_another_folder(key):
    assert Space(**{**vars(SPACE), key: 9 if key == "dimensions" else "x"}).folder != SPACE.folder
    assert "/" not in SPACE.folder


def test_texts_of_one_batch_may_repeat_and_come_again(cache):
    vectors = unit(2, seed=5)
    cache.add(["twice", "twice"], vectors[[0, 0]])
    cache.add(["twice"], vectors[:1])
    np.testing.assert_allclose(cache.vectors(["twice", "twice"]), vectors[[0, 0]], atol=5e-4)


def test_adding_nothing_changes_nothing(cache):
    cache.add([], np.zeros((0, 8), dtype=np.float32))
    assert len(VectorCache(cache.root, SPACE)) == 6


@pytest.mark.parametrize("vectors", [unit(2, 7), unit(3, 8), unit(2)[0], unit(2, 8)[None]])
def test_a_vector_of_another_width_is_refused(cache, vectors):
    with pytest.raises(UserError, match=r"vectors of shape .*; \(2, 8\) is expected"):
        cache.add(["a", "b"], vectors)
    assert len(VectorCache(cache.root, SPACE)) == 6


def spoilt(value):
    vectors = unit(2)
    vectors[1] *= value
    return vectors


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, 1.01, 0.99, 2])
def test_a_vector_that_is_not_of_length_one_is_refused(cache, value):
    with pytest.raises(UserError, match="1 of 2 vectors are zero, not finite or not of length 1") as caught:
        cache.add(["good", "bad"], spoilt(value))
    assert "(text 'bad')" in str(caught.value)
    assert cache.missing(["good"]) == ["good"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0, 1.01])
def test_a_stored_vector_that_is_not_of_length_one_is_refused(cache, value):
    path = shards(cache)[0]
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")  # of the first vector: safetensors puts the wider type first
    vector = np.frombuffer(bytes(data[start : start + 16]), "<f2")
    assert np.linalg.norm(vector.astype(float)) == pytest.approx(1, abs=1e-3)
    data[start : start + 16] = (vector * np.float16(value)).tobytes()
    path.write_bytes(data)
    shard = open_shard(path, 8, REMEDY)  # written so: its name is that of its content
    path.rename(
        path.with_stem(content_name(shard.keys, np.memmap(path, "<f2", "r", shard.start, (len(shard.keys), 8))))
    )
    with pytest.raises(UserError, match=r"1 of 6 vectors .*not of length 1") as caught:
        VectorCache(cache.root, SPACE, REMEDY).vectors(names(6))
    assert REMEDY in str(caught.value)


def test_a_space_without_normalisation_keeps_lengths(tmp_path):
    cache = VectorCache(tmp_path, Space("test", "m", 8, "none"))
    vectors = unit(4) * np.array([[0.5], [2], [1], [100]], dtype=np.float32)
    cache.add(names(4), vectors)
    np.testing.assert_allclose(cache.vectors(names(4)), vectors, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="not finite"):
        cache.add(["x"], np.full((1, 8), np.nan))


def test_a_shard_cut_anywhere_is_named(cache):
    path = shards(cache)[0]
    whole = path.read_bytes()
    for size in [0, 1, 7, 8, 9, 40, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="is corrupt") as caught:
            VectorCache(cache.root, SPACE, REMEDY)
        assert str(path) in str(caught.value)
        assert f"Delete this file, then {REMEDY}" in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        [1],
        {},
        {"keys": 1, "vectors": 2},
        {"keys": {"dtype": "F16", "shape": [3, 16], "data_offsets": [0, 96]}, "vectors": {}},
        {
            "keys": {"dtype": "U8", "shape": [3, 16], "data_offsets": [0, 48]},
            "vectors": {"dtype": "F32", "shape": [3, 8], "data_offsets": [48, 144]},
        },
        {
            "keys": {"dtype": "U8", "shape": [3, 16], "data_offsets": [0, 48]},
            "vectors": {"dtype": "F16", "shape": [6, 4], "data_offsets": [48, 96]},
        },
        {
            "keys": {"dtype": "U8", "shape": [2, 16], "data_offsets": [0, 32]},
            "vectors": {"dtype": "F16", "shape": [3, 8], "data_offsets": [48, 96]},
        },
    ],
)
def test_a_shard_with_another_header_is_refused(cache, header):
    text = json.dumps(header).encode()
    shards(cache)[0].write_bytes(len(text).to_bytes(8, "little") + text + bytes(96))
    with pytest.raises(UserError, match="is corrupt"):
        VectorCache(cache.root, SPACE)


def test_the_other_shards_survive_the_deletion_of_a_corrupt_one(cache):
    first = shards(cache)[0]
    first.write_bytes(first.read_bytes()[:-1])
    first.unlink()
    assert len(VectorCache(cache.root, SPACE)) == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [("format", 2), ("provider", "openai"), ("model", "x"), ("dimensions", 9), ("normalisation", "none")],
)
def test_the_manifest_of_another_model_is_refused(cache, key, value):
    path = cache.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, key: value}))
    with pytest.raises(UserError, match=f"manifest.json: {key} is {value!r}, but the configuration asks for") as caught:
        VectorCache(cache.root, SPACE, REMEDY)
    assert REMEDY in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_an_unreadable_manifest_is_refused(cache, text):
    (cache.folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="not a readable manifest"):
        VectorCache(cache.root, SPACE)


def test_a_reader_takes_in_what_others_write(cache):
    reader = VectorCache(cache.root, SPACE)
    cache.add(["new"], unit(1))
    assert reader.missing(["new"]) == ["new"]
    reader.refresh()
    assert reader.missing(["new"]) == []


def test_writers_that_do_not_know_of_each_other_keep_both_shards(tmp_path):
    one, other = VectorCache(tmp_path, SPACE), VectorCache(tmp_path, SPACE)
    one.add(["one"], unit(1))
    other.add(["other"], unit(1, seed=1))
    assert VectorCache(tmp_path, SPACE).missing(["one", "other"]) == []


WRITER = """
import sys
import numpy as np
from dcdt.embeddings.cache import Space, VectorCache

root, start, n_shards = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
cache = VectorCache(root, Space("test", "seeded/v1", 8, "l2"))
for shard in range(n_shards):
    texts = [f"text {at} \\u00e9" for at in range(start + 50 * shard, start + 50 * shard + 50)]
    vectors = np.eye(8)[np.arange(50) % 8]
    print("ready", flush=True)
    cache.add(texts, vectors)
"""


def writer(root, start, n_shards):
    command = [sys.executable, "-c", WRITER, str(root), str(start), str(n_shards)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_writers_do_not_harm_each_other(tmp_path):
    writers = [writer(tmp_path, 0, 6), writer(tmp_path, 200, 6)]  # texts 200 to 299 are written by both
    assert [process.wait(timeout=60) for process in writers] == [0, 0]
    cache = VectorCache(tmp_path, SPACE)
    np.testing.assert_array_equal(cache.vectors(names(500)), np.eye(8)[[at % 50 % 8 for at in range(500)]])


def test_a_killed_writer_leaves_whole_shards_only(tmp_path):
    process = writer(tmp_path, 0, 10_000)
    for _ in range(20):
        process.stdout.readline()
    time.sleep(0.003)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    cache = VectorCache(tmp_path, SPACE)
    assert len(cache) >= 19 * 50
    assert len(cache) % 50 == 0
    cache.vectors(names(len(cache)))
    cache.add(["after"], unit(1))
    assert len(VectorCache(tmp_path, SPACE)) % 50 == 1


def test_a_kill_within_a_write_leaves_the_old_shards(tmp_path):
    """Killed while the file is half written: the shard in the making is lost, nothing else."""
    script = WRITER.replace(
        "cache = VectorCache(",
        """
import os, signal
import dcdt.embeddings.shards as module
def die(path, content):
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
module.Path.write_bytes = die
cache = VectorCache(""",
    )
    VectorCache(tmp_path, SPACE).add(["old"], unit(1))
    done = subprocess.run([sys.executable, "-c", script, tmp_path, "0", "1"], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
    cache = VectorCache(tmp_path, SPACE)
    assert cache.missing(["old", *names(2)]) == names(2)
    np.testing.assert_allclose(cache.vectors(["old"]), unit(1), atol=5e-4)


def test_vectors_without_a_manifest_are_refused(cache):
    (cache.folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"holds vectors but no manifest.json, which names their model.\nPut it back"):
        VectorCache(cache.root, SPACE, REMEDY)
