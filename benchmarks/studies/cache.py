"""Which container for the embedding cache? A million vectors of 1536 half floats in each, opened by a fresh process.

    python benchmarks/studies/cache.py [--n 1000000] [--folder /tmp] [safetensors parquet arrow lance lmdb]

For each: seconds to write, size, seconds to open, memory that opening adds, seconds to find 100,000 texts, seconds to
have their vectors as float32. Keys and vectors are the same; a container without an index of its own gets the cache's.
The files are deleted afterwards. Lance and LMDB are not needed by the project: `pip install pylance lmdb` to compare.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from dcdt.embeddings.cache import Space, VectorCache, _Index
from dcdt.embeddings.shards import text_keys, write_shard

WIDTH = 1536
SPACE = Space("benchmark", "random", WIDTH, "l2")
BLOCK = 40_000
LOOKUPS = 100_000


def blocks(n: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys and unit vectors of texts 0 to n, a block at a time."""
    vectors = np.random.default_rng(0).standard_normal((BLOCK, WIDTH), dtype=np.float32)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    for start in range(0, n, BLOCK):
        size = min(BLOCK, n - start)
        yield text_keys(f"text {at}" for at in range(start, start + size)), np.roll(vectors[:size], start // BLOCK, 1)


def write_safetensors(folder: Path, n: int) -> None:
    """The cache's own shards."""
    cache = VectorCache(folder, SPACE)
    cache.prepare()
    for keys, vectors in blocks(n):
        write_shard(cache.folder, keys, vectors)


def read_safetensors(folder: Path) -> tuple[Callable, Callable]:
    """The cache itself."""
    cache = VectorCache(folder, SPACE)
    cache.find([])
    return cache.find, cache.vectors


def arrow_batches(n: int) -> Iterator[object]:
    """The same as record batches of Arrow."""
    import pyarrow as pa

    for keys, vectors in blocks(n):
        held = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), WIDTH)
        raw = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(keys.tobytes())])
        yield pa.record_batch({"key": raw, "vector": held})


def keys_in(columns: list) -> np.ndarray:
    """Keys (n, 2) of binary columns, without a copy of each value."""
    return np.concatenate(
        [np.frombuffer(part.buffers()[1], "<u8", 2 * len(part), 16 * part.offset) for part in columns]
    )


def indexed(keys: np.ndarray, take: Callable) -> tuple[Callable, Callable]:
    """Look-ups of a container that only gives rows: the cache's index before it."""
    index = _Index([keys.reshape(-1, 2)])
    index_of = lambda texts: index.find(text_keys(texts))  # noqa: E731
    return index_of, lambda texts: take(index_of(texts)).astype(np.float32)


def write_arrow(folder: Path, n: int) -> None:
    """One Arrow IPC file."""
    import pyarrow as pa

    batches = arrow_batches(n)
    first = next(batches)
    with pa.ipc.new_file(str(folder / "cache.arrow"), first.schema) as file:
        for batch in (first, *batches):
            file.write_batch(batch)


def read_arrow(folder: Path) -> tuple[Callable, Callable]:
    """Mapped."""
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(folder / "cache.arrow"))).read_all()
    parts = [part.values.to_numpy().reshape(-1, WIDTH) for part in table["vector"].chunks]
    starts = np.cumsum([0, *map(len, parts)])

    def take(rows: np.ndarray) -> np.ndarray:
        result = np.empty((len(rows), WIDTH), np.float16)
        part_of = np.searchsorted(starts, rows, side="right") - 1
        for at, part in enumerate(parts):
            chosen = np.flatnonzero(part_of == at)
            result[chosen] = part[rows[chosen] - starts[at]]
        return result

    return indexed(keys_in(table["key"].chunks), take)


def write_parquet(folder: Path, n: int) -> None:
    """One Parquet file in small row groups, uncompressed."""
    import pyarrow.parquet as pq

    batches = arrow_batches(n)
    first = next(batches)
    with pq.ParquetWriter(folder / "cache.parquet", first.schema, compression="none", use_dictionary=False) as file:
        for batch in (first, *batches):
            file.write_batch(batch, row_group_size=2048)


def read_parquet(folder: Path) -> tuple[Callable, Callable]:
    """A row group is read as a whole."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(folder / "cache.parquet", memory_map=True)
    starts = np.cumsum([0, *(file.metadata.row_group(at).num_rows for at in range(file.num_row_groups))])

    def take(rows: np.ndarray) -> np.ndarray:
        result = np.empty((len(rows), WIDTH), np.float16)
        group_of = np.searchsorted(starts, rows, side="right") - 1
        for at in np.unique(group_of):
            chosen = np.flatnonzero(group_of == at)
            column = file.read_row_group(int(at), columns=["vector"])["vector"].combine_chunks()
            result[chosen] = column.values.to_numpy().reshape(-1, WIDTH)[rows[chosen] - starts[at]]
        return result

    return indexed(keys_in(file.read(columns=["key"])["key"].chunks), take)


def write_lance(folder: Path, n: int) -> None:
    """A Lance data set."""
    import lance
    import pyarrow as pa

    batches = arrow_batches(n)
    first = next(batches)
    reader = pa.RecordBatchReader.from_batches(first.schema, iter([first, *batches]))
    lance.write_dataset(reader, str(folder / "cache.lance"))


def read_lance(folder: Path) -> tuple[Callable, Callable]:
    """Rows by Lance's own take."""
    import lance

    data = lance.dataset(str(folder / "cache.lance"))

    def take(rows: np.ndarray) -> np.ndarray:
        column = data.take(rows, columns=["vector"])["vector"].combine_chunks()
        return column.values.to_numpy(zero_copy_only=False).reshape(-1, WIDTH)

    return indexed(keys_in(data.to_table(columns=["key"])["key"].chunks), take)


def write_lmdb(folder: Path, n: int) -> None:
    """One LMDB file, a value a text."""
    import lmdb

    env = lmdb.open(str(folder), map_size=16 << 30)
    for keys, vectors in blocks(n):
        with env.begin(write=True) as transaction:
            for key, vector in zip(keys, vectors, strict=True):
                transaction.put(key.tobytes(), vector.tobytes())
    env.close()


def read_lmdb(folder: Path) -> tuple[Callable, Callable]:
    """LMDB finds keys by itself."""
    import lmdb

    env = lmdb.open(str(folder), readonly=True, map_size=16 << 30, readahead=False)

    def find(texts: list[str]) -> np.ndarray:
        with env.begin(buffers=True) as transaction:
            return np.array([transaction.get(key.tobytes()) is not None for key in text_keys(texts)]) - 1

    def vectors(texts: list[str]) -> np.ndarray:
        result = np.empty((len(texts), WIDTH), np.float32)
        with env.begin(buffers=True) as transaction:
            for at, key in enumerate(text_keys(texts)):
                result[at] = np.frombuffer(transaction.get(key.tobytes()), np.float16)
        return result

    return find, vectors


CONTAINERS = {
    "safetensors": (write_safetensors, read_safetensors),
    "arrow": (write_arrow, read_arrow),
    "parquet": (write_parquet, read_parquet),
    "lance": (write_lance, read_lance),
    "lmdb": (write_lmdb, read_lmdb),
}


def resident() -> int:
    """Bytes in memory, file pages included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def read(name: str, folder: Path, n: int) -> dict[str, float]:
    """Open and look up, in this process."""
    if name == "lance":
        import lance  # noqa: F401 - importing is not opening
    if name != "lmdb":
        import pyarrow.parquet  # noqa: F401
    texts = [f"text {at}" for at in np.random.default_rng(1).integers(0, n, LOOKUPS)]
    before, started = resident(), time.perf_counter()
    find, vectors = CONTAINERS[name][1](folder)
    opened, added = time.perf_counter() - started, resident() - before
    started = time.perf_counter()
    assert (find(texts) >= 0).all()
    found = time.perf_counter() - started
    started = time.perf_counter()
    held = vectors(texts)
    fetched = time.perf_counter() - started
    assert np.allclose(np.linalg.norm(held[:1000], axis=1), 1, atol=1e-3)
    return {"open": opened, "added": added / 2**20, "find": found, "vectors": fetched}


def measure(name: str, n: int, parent: str) -> dict[str, float]:
    """Write in this process, read in a fresh one (twice: the second time the file is in the page cache for sure)."""
    folder = Path(tempfile.mkdtemp(prefix="cache-", dir=parent))
    try:
        started = time.perf_counter()
        CONTAINERS[name][0](folder, n)
        written = time.perf_counter() - started
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
        command = [sys.executable, __file__, "--read", name, "--n", str(n), "--folder", str(folder)]
        runs = [
            json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(3)
        ]
        best = {key: min(run[key] for run in runs) for key in runs[0]}
        return {"write": written, "size": size, **best}
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """One row a container."""
    parser = argparse.ArgumentParser()
    parser.add_argument("containers", nargs="*", default=list(CONTAINERS))
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--folder", default="/tmp")
    parser.add_argument("--read")
    given = parser.parse_args()
    if given.read:
        print(json.dumps(read(given.read, Path(given.folder), given.n)))
        return
    print(f"{given.n:,} x {WIDTH} float16; best of three fresh processes\n")
    print("| container | write, s | size, MiB | open, s | open adds, MiB | find 100,000, s | vectors of 100,000, s |")
    print("|---|---|---|---|---|---|---|")
    for name in given.containers:
        found = measure(name, given.n, given.folder)
        keys = ("write", "size", "open", "added", "find", "vectors")
        print(
            f"| {name} | "
            + " | ".join(f"{found[key]:.3g}" if found[key] < 100 else f"{found[key]:,.0f}" for key in keys)
            + " |",
            flush=True,
        )


if __name__ == "__main__":
    main()
