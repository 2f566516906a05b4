"""Embed texts and pictures in one space, by a CLIP or SigLIP model in a folder of this machine."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdt.data.pictures import Picture, open_picture
from dcdt.embeddings.config import ClipConfig
from dcdt.embeddings.providers.batching import LocalRunner
from dcdt.embeddings.providers.local_models import model_folder
from dcdt.utils.errors import UserError, is_out_of_memory, needs_extra
from dcdt.utils.text import one_line

BATCH_SIZE = 32


class ClipEmbedder(LocalRunner):
    """Embed by sentence-transformers, on the GPU if there is one; no code of the folder runs.

    Raises:
        UserError: the folder holds no model of texts and pictures, or sentence-transformers is not installed.
    """

    def __init__(self, config: ClipConfig) -> None:
        folder = model_folder(config.folder)
        with needs_extra("image_embedder=clip", "local", "sentence_transformers"):
            from sentence_transformers import SentenceTransformer
            from transformers.utils.logging import disable_progress_bar
        disable_progress_bar()  # type: ignore[no-untyped-call]
        logging.getLogger("sentence_transformers").setLevel(logging.WARNING)
        try:
            options = {"use_safetensors": True, "dtype": "float32"}
            self.model = SentenceTransformer(str(folder), local_files_only=True, model_kwargs=options)
            described: Any = self.model[0].config
            length = described.text_config.max_position_embeddings
        except Exception as error:  # of transformers, safetensors and tokenizers, which share no base
            if is_out_of_memory(error):
                raise
            reason = one_line(error, 200)
            raise UserError(f"{folder} is no CLIP or SigLIP that sentence-transformers can load: {reason}") from error
        self.options = {"text": {"padding": "max_length", "max_length": length}}  # as SigLIP was trained

    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """Embed texts and pictures, (n, D) float32, L2-normalised."""
        vectors: dict[str, NDArray[np.float32]] = {}
        pictures = [text for text in texts if isinstance(text, Picture)]
        for kind in (pictures, [text for text in texts if not isinstance(text, Picture)]):  # a batch is of one
            for start in range(0, len(kind), BATCH_SIZE):
                batch = kind[start : start + BATCH_SIZE]
                inputs = [open_picture(text.path) if isinstance(text, Picture) else text for text in batch]
                encoded = self.model.encode(
                    inputs, normalize_embeddings=True, show_progress_bar=False, processing_kwargs=self.options
                )
                vectors |= zip(batch, encoded, strict=True)
                if progress:
                    progress(len(batch))
        return np.array([vectors[text] for text in texts], dtype=np.float32)
