"""Verify every file of a cache: its content hash and its vectors."""

from typing import NamedTuple

import numpy as np

from dcdt.embeddings.cache import VectorCache, check_vectors
from dcdt.embeddings.shards import open_shard
from dcdt.utils.errors import UserError


class VerificationResult(NamedTuple):
    """The result of a check: counts, and a line for each bad file."""

    files: int
    vectors: int
    texts: int
    bad: list[str]


def verify(cache: VectorCache) -> VerificationResult:
    """Check all files of a space one by one; the cache as a whole may be unreadable.

    Files that other processes merge meanwhile are left out.
    """
    bad: list[str] = []
    keys = [np.zeros((0, 2), np.uint64)]
    paths = sorted(cache.folder.glob("*.safetensors"))
    for path in paths:
        try:
            shard = open_shard(path, cache.space.dimensions, cache.remedy)
            vectors = shard.vectors()
            texts = [f"vector {row}" for row in range(len(vectors))]
            check_vectors(vectors.astype(np.float32), texts, cache.space, str(path), "")
            keys.append(shard.keys)
        except FileNotFoundError:
            continue
        except UserError as error:
            bad.append(str(error).splitlines()[0])
    all_keys = np.concatenate(keys)
    return VerificationResult(len(paths), len(all_keys), len(np.unique(all_keys, axis=0)), bad)
