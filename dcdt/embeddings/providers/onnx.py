"""Embed texts with an exported sentence model by ONNX Runtime: the local embedder's vectors without torch.

Neither torch nor transformers nor lightning is imported, so that a process that only answers questions starts in a
fraction of a second. `dcdt.embeddings.providers.onnx_export` makes the folder.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcdt.config.validation import MAX_WHOLE, MAX_WIDTH
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers.batching import LocalRunner, combine_layers, embed_batches
from dcdt.utils.errors import UserError, raise_system_error
from dcdt.utils.files import checksum, read_json
from dcdt.utils.text import one_line

MODEL, TOKENIZER, RECIPE = "model.onnx", "tokenizer.json", "recipe.json"


class OnnxEmbedder(LocalRunner):
    """Embed texts by an exported model, on the CPU.

    Args:
        folder: of an exported model, as `dcdt.embeddings.providers.onnx_export.ensure_exported` returns it.
        config: layer weights, token limits and prefix; the same as for the torch path.
        threads: of ONNX Runtime; 0: $OMP_NUM_THREADS, or as many as there are cores.

    Raises:
        UserError: ONNX Runtime is not installed, or the folder is not an export.
    """

    def __init__(self, folder: str | Path, config: LocalEmbedderConfig, threads: int = 0) -> None:
        try:
            from onnxruntime import InferenceSession, SessionOptions
            from tokenizers import Tokenizer
        except ImportError as error:
            raise UserError("embedder.backend=onnx needs the extra 'onnx': pip install 'dcdt[onnx]'.") from error
        self.config = config
        recipe = read_json(Path(folder) / RECIPE)
        if not recipe:
            raise UserError(f"{folder} is not an exported model: it has no {RECIPE}. Delete it; it is made again.")
        options = SessionOptions()
        options.intra_op_num_threads = threads or _default_threads()
        options.log_severity_level = 3  # errors alone
        options.add_session_config_entry("session.force_spinning_stop", "1")  # else threads keep spinning after a text
        path = str(Path(folder) / MODEL)
        try:
            if recipe.get("checksum") not in (None, checksum(Path(path))):
                raise ValueError(f"the checksum of {MODEL} is wrong")
            self.hidden, self.pad = int(recipe["hidden_size"]), int(recipe["pad_token_id"])
            if not (0 < self.hidden <= MAX_WIDTH and 0 <= self.pad <= MAX_WHOLE):
                raise ValueError(f"hidden_size {self.hidden}, pad_token_id {self.pad}")
            self.session = InferenceSession(path, options, providers=["CPUExecutionProvider"])
            self.tokenizer = Tokenizer.from_file(str(Path(folder) / TOKENIZER))
        except Exception as error:  # neither library's errors share a base but Exception
            raise_system_error(error)
            reason = one_line(f"{type(error).__name__} {error}", 120)
            raise UserError(f"{folder} holds an exported model that is corrupt ({reason}). Delete it.") from error
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(config.max_tokens)

    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """Embed texts.

        Args:
            texts: n texts.
            progress: called with the number of texts done after each batch.

        Returns:
            (n, D) float32, L2-normalised, D = layers x hidden size.
        """
        token_ids = self._encoded([self.config.prefix + text for text in texts])
        width = len(self.config.layer_weights) * self.hidden
        return embed_batches(token_ids, width, self.config.batch_tokens, self._embed_batch, progress)

    def _embed_batch(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        try:
            (layers,) = self.session.run(None, self._padded(token_ids))  # (B, L, H)
            return combine_layers(layers, self.config.layer_weights)  # (B, D)
        except Exception as error:  # of onnxruntime and numpy: a graph that is not the one we export
            reason = one_line(error, 120)
            raise UserError(f"the exported embedder cannot be run ({reason}). Delete it.") from error

    def _padded(self, rows: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int64]]:
        """Pad token ids: `input_ids` and `attention_mask`, both (B, T), T of the longest row."""
        ids = np.full((len(rows), max(len(row) for row in rows)), self.pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [item.ids for item in self.tokenizer.encode_batch(texts)]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of tokenizers, at rules that contradict themselves, is no Exception
            reason = one_line(error, 120)
            raise UserError(f"the exported tokenizer cannot be used ({reason}). Delete it.") from error


def _default_threads() -> int:
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() else 0
