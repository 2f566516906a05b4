"""The order of equal scores: a seeded hash of the video id."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def tie_positions(video_ids: Sequence[str], seed: int = 0) -> NDArray[np.int64]:
    """Compute the position of each video in a seeded-hash order, (N,); see `dcdt.evaluation.ranking.tie_order`.

    Raises:
        ValueError: an id occurs twice.
    """
    if len(set(video_ids)) != len(video_ids):
        raise ValueError(
            f"{len(video_ids)} video ids, only {len(set(video_ids))} of them distinct: each id must be unique"
        )
    hashes = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in video_ids]
    positions = np.empty(len(hashes), dtype=np.int64)
    positions[sorted(range(len(hashes)), key=hashes.__getitem__)] = np.arange(len(hashes))
    return positions
