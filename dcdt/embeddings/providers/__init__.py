"""Embedders: from texts to vectors."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dcdt.config.registry import GROUPS, look_up
from dcdt.embeddings.cache import Space
from dcdt.embeddings.config import ClipConfig, EmbedderConfig, LocalEmbedderConfig, OpenAIEmbedderConfig
from dcdt.embeddings.providers.local_models import clip_space, local_space
from dcdt.embeddings.providers.multilingual import MultilingualEmbedder, multilingual_space
from dcdt.embeddings.providers.openai_models import openai_space

Store = Callable[[list[str], NDArray[np.float32]], None]


class Embedder(Protocol):
    """The interface of all embedders.

    Attributes:
        shortened: number of texts cut to the token limit.
        refused: texts that a server refused, with its reason.
        tokens: counted by a server, if there is one.
    """

    shortened: int
    refused: list[tuple[str, str]]
    tokens: int

    def embed(self, texts: Sequence[str], progress: Callable[[int], None] | None = None) -> NDArray[np.float32]:
        """Embed n texts as (n, D) float32; `progress` is called with the number of texts of each batch."""

    def embed_each(self, texts: Sequence[str], store: Store, progress: Callable[[int], None] | None = None) -> None:
        """Embed texts and call `store` with texts and vectors of each part as soon as it is ready."""


class Provider(NamedTuple):
    """The functions of a kind of embedder: its space, and how to make it."""

    space: Callable[[EmbedderConfig], Space]
    make: Callable[[EmbedderConfig], Embedder]


def space_of(config: EmbedderConfig) -> Space:
    """Return the space of an embedder, without loading its model."""
    return _provider(config).space(config)


def make_embedder(config: EmbedderConfig) -> Embedder:
    """Make the embedder of a configuration with its model loaded; torch is imported only if needed.

    Raises:
        UserError: it cannot run here.
    """
    return _provider(config).make(config)


def _provider(config: EmbedderConfig) -> Provider:
    """Find the provider of an embedder: a built-in one, or the class of a plugin, which has `space` as a method."""
    if config.name in PROVIDERS:
        return PROVIDERS[config.name]
    plugin = look_up(GROUPS["embedder"], config.name)
    return Provider(plugin.space, plugin)


def _local(config: LocalEmbedderConfig) -> Embedder:
    from dcdt.embeddings.providers.onnx_export import backend_of, ensure_exported

    if backend_of(config) == "onnx":
        from dcdt.embeddings.providers.onnx import OnnxEmbedder

        return OnnxEmbedder(ensure_exported(config), config)
    from dcdt.embeddings.providers.local import LocalEmbedder

    return LocalEmbedder(config)


def _clip(config: ClipConfig) -> Embedder:
    from dcdt.embeddings.providers.clip import ClipEmbedder

    return ClipEmbedder(config)


def _openai(config: OpenAIEmbedderConfig) -> Embedder:
    from dcdt.embeddings.providers.openai import OpenAIEmbedder

    return OpenAIEmbedder(config)


PROVIDERS: dict[str, Provider] = {
    "clip": Provider(clip_space, _clip),  # type: ignore[arg-type]
    "local": Provider(local_space, _local),  # type: ignore[arg-type]
    "multilingual": Provider(multilingual_space, MultilingualEmbedder),  # type: ignore[arg-type]
    "openai": Provider(openai_space, _openai),  # type: ignore[arg-type]
}
