"""A transformer with its last layers pooled, shared by torch and ONNX Runtime."""

from typing import Any

import torch
from torch import Tensor, nn

from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers.local_models import check_length, check_weights, model_folder, pooling_of
from dcdt.utils.errors import UserError, is_out_of_memory, needs_extra
from dcdt.utils.text import one_line


class PooledLayers(nn.Module):
    """Compute the last layers of a model, each pooled over the tokens and normalised.

    Args:
        model: a transformer of the transformers library.
        layers: how many of its last layers.
        pooling: `mean` over the tokens that are not padding, or `cls`, the first token.
    """

    model: Any

    def __init__(self, model: nn.Module, layers: int, pooling: str) -> None:
        super().__init__()
        self.model, self.layers, self.pooling = model, layers, pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute layers (B, L, H) of token ids (B, T) and their mask (1 for tokens, 0 for padding)."""
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        hidden = out.hidden_states[-self.layers :]  # each (B, T, H)
        return torch.stack([pool(layer, attention_mask, self.pooling) for layer in hidden], dim=1)


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Pool a layer (B, T, H) over the tokens of a mask (B, T): (B, H), L2-normalised."""
    if pooling == "cls":
        pooled = hidden[:, 0]  # (B, H)
    else:
        keep = mask.unsqueeze(-1).to(hidden.dtype)  # (B, T, 1)
        pooled = (hidden * keep).sum(1) / keep.sum(1)  # (B, H)
    return nn.functional.normalize(pooled, dim=-1)


def load_model(config: LocalEmbedderConfig) -> tuple[PooledLayers, Any]:
    """Load model, on the CPU in float32, and tokenizer of a package or folder; no code of the folder runs.

    Raises:
        UserError: it is missing or invalid, or transformers is not installed.
    """
    folder = model_folder(config.package)
    with needs_extra("embedder=local", "local", "transformers"):
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    check_weights(config.package)
    check_length(config)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        options: Any = {"local_files_only": True, "trust_remote_code": False}  # no download, no code
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)  # nosec B615 # a folder of this machine
        options |= {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
        model, loaded = AutoModel.from_pretrained(folder, **options)  # nosec B615 # as above
    except Exception as error:  # those of safetensors, tokenizers and torch share no base
        if is_out_of_memory(error):
            raise
        reason = one_line(error, 200)
        raise UserError(f"{folder} is not a model that transformers can load: {reason}") from error
    if missing := sorted(name for name in loaded["missing_keys"] if "pooler" not in name):
        lacking = f"{folder} lacks {len(missing)} of the model's weights, such as {missing[0]}"
        raise UserError(f"{lacking}; they would be random.\nGive a folder that AutoModel.save_pretrained wrote.")
    layers = len(config.layer_weights)
    if layers > (available := model.config.num_hidden_layers):
        raise UserError(f"embedder.layer_weights has {layers} weights; {config.package} has {available} layers.")
    return PooledLayers(model, layers, pooling_of(config)).eval(), tokenizer
