"""The files of an embedding cache: shards, written atomically, and their merging.

A shard is a safetensors file with `keys` (n, 16) uint8, the first half of the SHA-256 of each text, and `vectors`
(n, D) float16, named by a hash of its content. Keys are read at once; vectors through a memory map that lives as long
as one look-up, so that neither open files nor resident memory grow with the cache.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from dcdt.utils.errors import UserError, raise_system_error
from dcdt.utils.files import atomic_write, parse_json

Keys = NDArray[np.uint64]  # (n, 2)
Halves = NDArray[np.float16]  # (n, D)

MAX_SHARD_BYTES = 128 << 20  # of a merged shard
MIN_SHARD_BYTES = MAX_SHARD_BYTES // 2  # smaller shards are merged
MIN_SHARDS_TO_MERGE = 128


_VERIFIED: set[tuple[Path, int]] = set()  # files, with their times, that this process found to be as written


@dataclass(frozen=True)
class Shard:
    """A shard file: its keys, and the offset of its vectors."""

    path: Path
    keys: Keys
    width: int
    start: int
    remedy: str = "python -m dcdt.embed"

    def vectors(self) -> Halves:
        """Return all vectors (n, D), memory-mapped; delete them to close the file.

        Raises:
            UserError: at the first use in this process, the content is not what the file's name says.
        """
        vectors = np.memmap(self.path, "<f2", "r", self.start, (len(self.keys), self.width))
        version = self.path, self.path.stat().st_mtime_ns
        if version not in _VERIFIED:
            if content_name(self.keys, vectors) != self.path.stem:
                raise UserError(
                    f"{self.path} is corrupt: it has changed since it was written.\n"
                    f"Delete this file, then {self.remedy}; other vectors are kept."
                )
            _VERIFIED.add(version)
        return vectors

    @property
    def size(self) -> int:
        """Size of the vectors in bytes."""
        return 2 * self.width * len(self.keys)


def text_keys(texts: Iterable[str]) -> Keys:
    """Compute the keys of texts, (n, 2)."""
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in texts)
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2)


def open_shard(path: Path, width: int, remedy: str) -> Shard:
    """Read the header and the keys of a shard.

    Raises:
        FileNotFoundError: another process merged it.
        UserError: the file is corrupt or holds vectors of another width.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header_size = int.from_bytes(file.read(8), "little")
            if header_size > size:
                raise ValueError("the header is longer than the file")
            header = parse_json(file.read(header_size))
            keys_offset = _tensor_offset(header["keys"], "U8", 1, 8 + header_size, size)
            vectors_offset = _tensor_offset(header["vectors"], "F16", 2, 8 + header_size, size)
            shapes = tuple(header["keys"]["shape"]), tuple(header["vectors"]["shape"])
            n = shapes[1][0]
            if shapes != ((n, 16), (n, width)):
                raise ValueError(f"shapes {shapes[0]} and {shapes[1]}")
            file.seek(keys_offset)
            keys = np.frombuffer(file.read(16 * n), dtype="<u8").reshape(n, 2)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise_system_error(error)
        raise UserError(
            f"{path} is corrupt ({error}).\nDelete this file, then {remedy}; other vectors are kept."
        ) from error
    return Shard(path, keys, width, vectors_offset, remedy)


def write_shard(folder: Path, keys: Keys, vectors: Halves) -> Path:
    """Write keys (n, 2) and vectors (n, D) as one shard.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    content = save({"keys": keys.view(np.uint8).reshape(-1, 16), "vectors": vectors})
    path = folder / f"{content_name(keys, vectors)}.safetensors"
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


def content_name(keys: Keys, vectors: Halves) -> str:
    """Compute the name of a shard: a hash of its content."""
    digest = hashlib.sha256(np.ascontiguousarray(keys).data)
    digest.update(np.ascontiguousarray(vectors).data)
    return digest.hexdigest()[:16]


def merge_small(folder: Path, shards: Sequence[Shard], min_shards: int = MIN_SHARDS_TO_MERGE) -> int:
    """Merge small shards, if there are at least `min_shards`; equal keys are kept once.

    A source is deleted only after the file that holds its vectors is on disk, so a kill at any moment loses nothing,
    and readers that miss a shard read the folder again.

    Returns:
        The number of files removed.

    Raises:
        OSError: the disk is full or the folder cannot be written; the sources are still there.
    """
    small = sorted((shard for shard in shards if shard.size < MIN_SHARD_BYTES), key=lambda shard: shard.path.name)
    if len(small) < min_shards:
        return 0
    removed = 0
    group: list[Shard] = []
    for shard in [*small, None]:
        if group and (shard is None or sum(member.size for member in group) + shard.size > MAX_SHARD_BYTES):
            removed += _merge(folder, group)
            group = []
        if shard is not None:
            group.append(shard)
    return removed


def _merge(folder: Path, group: Sequence[Shard]) -> int:
    try:
        keys = np.concatenate([shard.keys for shard in group])
        _, first = np.unique(keys, axis=0, return_index=True)
        vectors = np.concatenate([shard.vectors() for shard in group])
    except FileNotFoundError:  # another process merges the same ones
        return 0
    written = write_shard(folder, keys[first], vectors[first])
    _sync(folder)
    sources = [shard.path for shard in group if shard.path.name != written.name]
    for path in sources:
        path.unlink(missing_ok=True)
    return len(sources)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _tensor_offset(entry: dict[str, Any], dtype: str, itemsize: int, start: int, size: int) -> int:
    """Return the offset of a tensor in the file."""
    first, last = entry["data_offsets"]
    if entry["dtype"] != dtype:
        raise ValueError(f"type {entry['dtype']}")
    if last - first != itemsize * int(np.prod(entry["shape"])) or start + last > size or first < 0:
        raise ValueError("the file is shorter than its header says")
    return int(start + first)
