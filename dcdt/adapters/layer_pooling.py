"""Pool several layers of a transformer; `python -m dcdt.export` copies this file, which needs no other of dcdt."""

from typing import Any

import torch
from sentence_transformers.base.modules.module import Module
from torch import nn


class LayerPooling(Module):
    """Concatenate the last layers, each pooled (`mean` or `cls`), normalised and weighted; `width` is that of one."""

    config_keys = ["layer_weights", "pooling", "width"]

    def __init__(self, layer_weights: list[float], pooling: str, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layer_weights, self.pooling, self.width = layer_weights, pooling, width

    def forward(self, features: dict[str, Any], **options: Any) -> dict[str, Any]:  # noqa: ANN401
        """Add the sentence embedding (B, L * H) to the features."""
        keep, pooled = features["attention_mask"].unsqueeze(-1).float(), []  # (B, T, 1)
        layers = features["all_layer_embeddings"][-len(self.layer_weights) :]  # each (B, T, H)
        for weight, layer in zip(self.layer_weights, layers, strict=True):
            mean = layer[:, 0] if self.pooling == "cls" else (layer * keep).sum(1) / keep.sum(1)
            pooled.append(weight * nn.functional.normalize(mean, dim=-1))
        features["sentence_embedding"] = nn.functional.normalize(torch.cat(pooled, dim=-1), dim=-1)
        return features

    def get_embedding_dimension(self) -> int:
        """Return L * H."""
        return self.width * len(self.layer_weights)

    def save(self, output_path: str, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        """Write the configuration."""
        self.save_config(output_path)
