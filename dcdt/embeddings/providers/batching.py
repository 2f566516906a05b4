"""Batches of texts by padded tokens, and the combination of a model's layers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

MAX_STORED_TEXTS = 512  # texts stored at a time: a kill loses at most these


class LocalRunner(ABC):
    """Base class of embedders that run on this machine: they embed any text, a long list part by part."""

    shortened = tokens = 0
    refused: list[tuple[str, str]] = []

    @abstractmethod
    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """Embed n texts as (n, D) float32."""

    def embed_each(
        self,
        texts: Sequence[str],
        store: Callable[[list[str], NDArray[np.float32]], None],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Embed texts and call `store` with each part; `progress` is called after every batch."""
        for start in range(0, len(texts), MAX_STORED_TEXTS):
            batch = list(texts[start : start + MAX_STORED_TEXTS])
            store(batch, self.embed(batch, progress))


def token_batches(lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Divide rows, from the shortest to the longest text, into batches of at most `limit` padded tokens.

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


def embed_batches(
    token_ids: Sequence[Sequence[int]],
    width: int,
    limit: int,
    embed_batch: Callable[[list[Sequence[int]]], NDArray[np.float32]],
    progress: Callable[[int], None] | None,
) -> NDArray[np.float32]:
    """Embed tokenized texts batch by batch.

    Args:
        token_ids: of n texts.
        width: D of the vectors.
        limit: padded tokens a batch.
        embed_batch: makes vectors (B, D) of B texts.
        progress: called with the number of texts done after each batch.

    Returns:
        (n, D) float32.
    """
    result = np.empty((len(token_ids), width), dtype=np.float32)
    for rows in token_batches([len(tokens) for tokens in token_ids], limit):
        result[rows] = embed_batch([token_ids[row] for row in rows])
        if progress:
            progress(len(rows))
    return result


def combine_layers(layers: NDArray[np.float32], weights: Sequence[float]) -> NDArray[np.float32]:
    """Weight pooled layers and concatenate them.

    Args:
        layers: (B, L, H), every layer L2-normalised.
        weights: one weight a layer.

    Returns:
        (B, L x H), L2-normalised.
    """
    weighted = layers * np.asarray(weights, dtype=np.float32)[:, None]  # (B, L, H)
    weighted = weighted.reshape(len(layers), -1)  # (B, L * H)
    normalised: NDArray[np.float32] = weighted / np.linalg.norm(weighted, axis=1, keepdims=True)
    return normalised


def round_to_float16(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round vectors (n, D) to float16 and L2-normalise them, as the cache does; zeros become NaN."""
    halves = vectors.astype(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        return np.asarray(halves / np.linalg.norm(halves, axis=1, keepdims=True), dtype=np.float32)
