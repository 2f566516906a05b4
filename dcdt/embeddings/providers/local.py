"""Embed texts with a local sentence model by torch: its last layers concatenated, 1536-d for MiniLM.

Each of the last layers is mean-pooled over the tokens, normalised, weighted and concatenated; the result is normalised.
Four layers of 384 give the width of text-embedding-3-small with retrieval close to the model's own 384-d output.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers.batching import LocalRunner, combine_layers, token_batches
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
        weights, hidden = self.config.layer_weights, self.model.model.config.hidden_size
        result = np.empty((len(texts), len(weights) * hidden), dtype=np.float32)
        if not len(texts):
            return result
        inputs = [self.config.prefix + text for text in texts]
        encoded = self.tokenizer(inputs, truncation=True, max_length=self.config.max_tokens)["input_ids"]
        for rows in token_batches([len(tokens) for tokens in encoded], self.config.batch_tokens):
            batch = self.tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt")
            batch = batch.to(self.device)
            layers = self.model(batch["input_ids"], batch["attention_mask"])  # (B, L, H)
            result[rows] = combine_layers(layers.cpu().numpy(), weights)
            if progress:
                progress(len(rows))
        return result
