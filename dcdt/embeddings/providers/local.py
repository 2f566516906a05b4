"""Embed texts with a local sentence model by torch: its last layers concatenated, 1536-d for MiniLM.

Each of the last layers is mean-pooled over the tokens, normalised, weighted and concatenated; the result is normalised.
Four layers of 384 give the width of text-embedding-3-small with retrieval close to the model's own 384-d output.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers.batching import LocalRunner, combine_layers, embed_batches
from dcdt.embeddings.providers.pooling import load_model


class LocalEmbedder(LocalRunner):
    """Embed texts by an installed model package or a local model folder, on the GPU if there is one.

    Args:
        config: the package (a module with `get_model_path`) or a folder, the layer weights and the batch limits.

    Raises:
        UserError: the package or folder does not exist, or transformers is not installed.
    """

    def __init__(self, config: LocalEmbedderConfig) -> None:
        self.config = config
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model, self.tokenizer = load_model(config)
        self.model = model.to(self.device)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: n texts.
            progress: called with the number of texts done after each batch.

        Returns:
            (n, D) float32, L2-normalised, D = layers x hidden size.
        """
        width = len(self.config.layer_weights) * self.model.model.config.hidden_size
        if not len(texts):
            return np.empty((0, width), dtype=np.float32)
        inputs = [self.config.prefix + text for text in texts]
        token_ids = self.tokenizer(inputs, truncation=True, max_length=self.config.max_tokens)["input_ids"]
        return embed_batches(token_ids, width, self.config.batch_tokens, self._embed_batch, progress)

    def _embed_batch(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        batch = self.tokenizer.pad({"input_ids": token_ids}, return_tensors="pt").to(self.device)
        layers = self.model(batch["input_ids"], batch["attention_mask"])  # (B, L, H)
        return combine_layers(layers.cpu().numpy(), self.config.layer_weights)  # (B, D)
