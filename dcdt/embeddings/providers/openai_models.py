"""What is known of OpenAI's embedding models without asking: width and list price."""

from dcdt.embeddings.cache import Space
from dcdt.embeddings.config import OPENAI_MODELS, OpenAIEmbedderConfig, vector_width


def openai_space(config: OpenAIEmbedderConfig) -> Space:
    """The space of a model behind the API; another server's vectors are kept apart from OpenAI's own.

    Raises:
        UserError: the width of an unknown model is not given, or a model cannot be shortened.
    """
    provider = "openai-compatible" if config.base_url else "openai"
    return Space(provider, config.model, vector_width(config), "l2")


def requested_dimensions(config: OpenAIEmbedderConfig) -> int | None:
    """What to send as `dimensions`: nothing for the model's own width, since some servers refuse the parameter."""
    known = OPENAI_MODELS.get(config.model)
    if config.shorten or (known is not None and vector_width(config) != known.width):
        return vector_width(config)
    return None
