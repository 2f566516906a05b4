import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcdt.embeddings import shards
from dcdt.embeddings.cache import Space, VectorCache, _Index
from dcdt.embeddings.verification import verify
from dcdt.utils.errors import UserError

SPACE = Space("test", "m", 8, "l2")


def unit(n, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def names(n, start=0):
    return [f"text {at}" for at in range(start, start + n)]


def many(root, n_shards, size=3):
    """A cache of so many small shards, and its vectors."""
    cache, vectors = VectorCache(root, SPACE), unit(n_shards * size)
    for at in range(n_shards):
        cache.add(names(size, at * size), vectors[at * size : (at + 1) * size])
    return cache, vectors


def files(cache):
    return sorted(path.name for path in cache.folder.glob("*.safetensors"))


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=12), max_size=4),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), max_size=20),
)
def test_keys_are_found_by_all_their_bytes_even_where_the_first_eight_agree(held, wanted):
    index = _Index([np.array(part, dtype=np.uint64).reshape(-1, 2) for part in held])
    positions = index.find(np.array(wanted, dtype=np.uint64).reshape(-1, 2))
    flat = [key for part in held for key in part]
    for key, position in zip(wanted, positions, strict=True):
        assert (flat[position] == key) if key in flat else (position == -1)


def test_small_shards_are_merged_where_there_are_many(tmp_path):
    cache, vectors = many(tmp_path, 12)
    cache.add(["text 0"], vectors[:1])  # again
    reader = VectorCache(tmp_path, SPACE)
    assert cache.merge(min_shards=14) == 0
    assert cache.merge(min_shards=13) == 13
    assert len(files(cache)) == 1
    assert (len(cache), len(reader)) == (36, 37)
    for one in (cache, reader, VectorCache(tmp_path, SPACE)):  # the reader finds its files gone and looks again
        np.testing.assert_allclose(one.vectors(names(36)), vectors, atol=1e-3)
    assert verify(cache).bad == []
    assert cache.merge(min_shards=1) == 0  # a file merged alone stays what it is
    assert len(cache) == 36


def test_merged_shards_are_not_larger_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_SHARD_BYTES", 20 * 16)
    monkeypatch.setattr(shards, "MIN_SHARD_BYTES", 10 * 16)
    cache, vectors = many(tmp_path, 12)
    cache.merge(min_shards=2)
    assert max(len(shard.keys) for shard in cache.shards) <= 20
    assert len(files(cache)) == 2
    np.testing.assert_allclose(cache.vectors(names(36)), vectors, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["write_shard", "_sync", "Path.unlink"])
def test_a_kill_within_a_merge_loses_nothing(tmp_path, moment):
    _, vectors = many(tmp_path, 6)
    script = f"""
import os, signal, sys
import dcdt.embeddings.shards as shards
from dcdt.embeddings.cache import Space, VectorCache
cache = VectorCache(sys.argv[1], Space("test", "m", 8, "l2"))
shards.{moment} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
cache.merge(min_shards=2)
"""
    done = subprocess.run([sys.executable, "-c", script, tmp_path], timeout=60)
    assert done.returncode == -signal.SIGKILL
    again = VectorCache(tmp_path, SPACE)
    np.testing.assert_allclose(again.vectors(names(18)), vectors, atol=1e-3)
    again.merge(min_shards=2)
    np.testing.assert_allclose(again.vectors(names(18)), vectors, atol=1e-3)
    assert len(files(again)) == 1


def test_a_full_disk_within_a_merge_loses_nothing(tmp_path, monkeypatch):
    cache, vectors = many(tmp_path, 6)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dcdt.embeddings.shards.write_shard", full)
    with pytest.raises(UserError, match="cannot be written"):
        cache.merge(min_shards=2)
    np.testing.assert_allclose(VectorCache(tmp_path, SPACE).vectors(names(18)), vectors, atol=1e-3)


def test_no_file_stays_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    cache, vectors = many(tmp_path, 30)
    reader = VectorCache(tmp_path, SPACE)
    np.testing.assert_allclose(reader.vectors(names(90)), vectors, atol=1e-3)
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert len(cache.shards) == len(reader.shards) == 30


def test_a_check_finds_every_bad_file_and_no_other(tmp_path):
    cache, _ = many(tmp_path, 5)
    assert verify(cache) == (5, 15, 15, [])
    flipped, cut, *_ = (cache.folder / name for name in files(cache))
    content = bytearray(flipped.read_bytes())
    content[-20] ^= 1  # a key or a vector, by one bit
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-1])
    found = verify(VectorCache(tmp_path, SPACE, lazy=True))
    assert len(found.bad) == 2
    assert any(str(flipped) in line and "has changed since it was written" in line for line in found.bad)
    assert any(str(cut) in line and "is corrupt" in line for line in found.bad)
    assert found.texts == 9
