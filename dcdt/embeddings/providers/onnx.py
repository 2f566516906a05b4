"""Embed texts with an exported sentence model by ONNX Runtime: the local embedder's vectors without torch.

Neither torch nor transformers nor lightning is imported, so that a process that only answers questions starts in a
fraction of a second. `dcdt.embeddings.providers.onnx_export` makes the folder.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcdt.config.validation import MAX_WHOLE, MAX_WIDTH
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers.batching import LocalRunner, combine_layers, embed_batches
from dcdt.utils.errors import UserError, is_out_of_memory, needs_extra
from dcdt.utils.files import checksum, parse_json, read_limited
from dcdt.utils.text import one_line

MODEL, TOKENIZER, RECIPE = "model.onnx", "tokenizer.json", "recipe.json"


class OnnxEmbedder(LocalRunner):
    """Embed texts by an exported model, on the CPU.

    Args:
        folder: of an exported model, as `dcdt.embeddings.providers.onnx_export.ensure_exported` returns it.
        config: layer weights, token limits and prefix; the same as for the torch path.
        threads: of ONNX Runtime; 0: $OMP_NUM_THREADS, or as many as there are cores.
        remedy: what replaces a folder that is corrupt.

    Raises:
        UserError: ONNX Runtime is not installed, the folder is not an export, or a file of it has changed.
    """

    def __init__(
        self,
        folder: str | Path,
        config: LocalEmbedderConfig,
        threads: int = 0,
        remedy: str = "Delete it; it is made again.",
    ) -> None:
        with needs_extra("embedder.backend=onnx", "onnx", "onnxruntime"):
            from onnxruntime import InferenceSession, SessionOptions
        with needs_extra("embedder=local", "local", "tokenizers"):
            from tokenizers import Tokenizer
        self.config, self.folder, self.remedy = config, Path(folder), remedy
        self.hidden, self.pad = self._check_files()
        options = SessionOptions()
        options.intra_op_num_threads = threads or _default_threads()
        options.log_severity_level = 3  # errors alone
        options.add_session_config_entry("session.force_spinning_stop", "1")  # else threads keep spinning after a text
        with self._library_errors():
            self.session = InferenceSession(str(self.folder / MODEL), options, providers=["CPUExecutionProvider"])
            self.tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER))
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

    def _check_files(self) -> tuple[int, int]:
        """Compare the files with the recipe beside them, as far as it names checksums; return hidden size and padding.

        Raises:
            UserError: the folder is no export, or a file has changed since it was written.
        """
        try:
            recipe = parse_json(read_limited(self.folder / RECIPE))
            for name, key in ((MODEL, "checksum"), (TOKENIZER, "tokenizer_checksum")):
                if recipe.get(key) not in (None, checksum(self.folder / name)):
                    raise ValueError(f"the checksum of {name} is wrong")
            hidden, pad = int(recipe["hidden_size"]), int(recipe["pad_token_id"])
            if not (0 < hidden <= MAX_WIDTH and 0 <= pad <= MAX_WHOLE):
                raise ValueError(f"hidden_size {hidden}, pad_token_id {pad}")
        except FileNotFoundError as error:
            name = Path(str(error.filename)).name
            raise UserError(f"{self.folder} is not an exported model: it has no {name}. {self.remedy}") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = one_line(f"{type(error).__name__} {error}", 120)
            raise UserError(
                f"{self.folder} holds an exported model that is corrupt ({reason}). {self.remedy}"
            ) from error
        return hidden, pad

    @contextmanager
    def _library_errors(self) -> Iterator[None]:
        """Convert errors of ONNX Runtime and tokenizers, which share no base; few of them are faults of the files."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # also a panic of tokenizers, at rules that contradict themselves
            if is_out_of_memory(error):
                raise
            reason = one_line(f"{type(error).__name__} {error}", 160)
            is_corrupt = type(error).__name__ == "InvalidProtobuf"
            remedy = f" It is corrupt. {self.remedy}" if is_corrupt else ""
            raise UserError(f"the exported model {self.folder} cannot be used ({reason}).{remedy}") from error

    def _embed_batch(self, token_ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        with self._library_errors():
            (layers,) = self.session.run(None, self._padded(token_ids))  # (B, L, H)
            return combine_layers(layers, self.config.layer_weights)  # (B, D)

    def _padded(self, rows: Sequence[Sequence[int]]) -> dict[str, NDArray[np.int64]]:
        """Pad token ids: `input_ids` and `attention_mask`, both (B, T), T of the longest row."""
        ids = np.full((len(rows), max(len(row) for row in rows)), self.pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return {"input_ids": ids, "attention_mask": mask}

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        with self._library_errors():
            return [item.ids for item in self.tokenizer.encode_batch(texts)]


def _default_threads() -> int:
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdigit() else 0
