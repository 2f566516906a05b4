"""Embedding spaces and dimensions of OpenAI's models, without a request."""

from dcdt.embeddings.cache import Space
from dcdt.embeddings.config import OPENAI_MODELS, OpenAIEmbedderConfig, vector_width


def openai_space(config: OpenAIEmbedderConfig) -> Space:
    """Return the space of a model behind the API; another server's vectors have another space than OpenAI's.

    Raises:
        UserError: the width of an unknown model is not configured, or a model cannot be shortened.
    """
    provider = "openai-compatible" if config.base_url else "openai"
    return Space(provider, config.model, vector_width(config), "l2")


def requested_dimensions(config: OpenAIEmbedderConfig) -> int | None:
    """Return the `dimensions` to request: None for the model's own width, since some servers refuse the parameter."""
    model = OPENAI_MODELS.get(config.model)
    if config.shorten or (model is not None and vector_width(config) != model.width):
        return vector_width(config)
    return None
