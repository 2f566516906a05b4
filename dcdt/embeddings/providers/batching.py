"""Texts in batches: by tokens with their padding, and what a model's layers become."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

MAX_STORED_TEXTS = 512  # texts handed on at a time: what a kill can lose


class LocalRunner(ABC):
    """What the embedders that run here share: they take any text, and embed a long list part by part."""

    shortened = tokens = 0
    refused: list[tuple[str, str]] = []

    @abstractmethod
    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """(n, D) float32 vectors of n texts."""

    def embed_each(
        self,
        texts: Sequence[str],
        store: Callable[[list[str], NDArray[np.float32]], None],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Hand texts and vectors to `store`, a part at a time; `progress` is told of every batch within it."""
        for start in range(0, len(texts), MAX_STORED_TEXTS):
            part = list(texts[start : start + MAX_STORED_TEXTS])
            store(part, self.embed(part, progress))


def token_batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Rows from the shortest to the longest text, in batches of at most `limit` padded tokens (one row at least).

    >>> list(token_batches([5, 1, 2, 2], 6))
    [[1, 2, 3], [0]]
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and lengths[row] * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def combine_layers(layers: NDArray[np.float32], weights: Sequence[float]) -> NDArray[np.float32]:
    """Weight pooled layers and put them side by side.

    Args:
        layers: (B, L, H), every layer L2-normalised.
        weights: one weight a layer.

    Returns:
        (B, L x H), L2-normalised.
    """
    joined = layers * np.asarray(weights, dtype=np.float32)[:, None]  # (B, L, H)
    joined = joined.reshape(len(layers), -1)  # (B, L * H)
    normalised: NDArray[np.float32] = joined / np.linalg.norm(joined, axis=1, keepdims=True)
    return normalised


def round_to_float16(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors (n, D) as the cache gives them back: through float16, then L2-normalised; zeros become NaN."""
    halves = vectors.astype(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        return np.asarray(halves / np.linalg.norm(halves, axis=1, keepdims=True), dtype=np.float32)
