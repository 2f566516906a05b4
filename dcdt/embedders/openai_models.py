"""What is known of OpenAI's embedding models without asking: width and list price."""

import os
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dcdt.config import OpenAIEmbedderConfig
from dcdt.data.embeddings import Space
from dcdt.errors import UserError


class Known(NamedTuple):
    """A model of OpenAI's."""

    width: int
    price: float  # USD per million tokens, the list price when this was written
    shortens: bool  # takes the parameter `dimensions`


ADDRESS = "OPENAI_BASE_URL"
MODELS = {
    "text-embedding-3-small": Known(1536, 0.02, True),
    "text-embedding-3-large": Known(3072, 0.13, True),
    "text-embedding-ada-002": Known(1536, 0.10, False),
}


def openai_space(config: OpenAIEmbedderConfig) -> Space:
    """The space of a model behind the API; another server's vectors are kept apart from OpenAI's own.

    Raises:
        UserError: the width of an unknown model is not given, or a model cannot be shortened.
    """
    provider = "openai-compatible" if config.base_url else "openai"
    return Space(provider, config.model, width(config), "l2")


def width(config: OpenAIEmbedderConfig) -> int:
    """Numbers a vector."""
    known = MODELS.get(config.model)
    if known is None and config.dimensions is None:
        raise UserError(
            f"embedder.model '{config.model}' is none of OpenAI's ({', '.join(MODELS)}): its width is not known.\n"
            "Give it as embedder.dimensions=N."
        )
    wanted = config.dimensions or known.width  # type: ignore[union-attr]
    if known and wanted != known.width and (not known.shortens or wanted > known.width):
        limit = f"at most {known.width}" if known.shortens else f"{known.width} and no other"
        raise UserError(f"embedder.dimensions is {wanted}; {config.model} has {limit}.")
    return wanted


def asked_dimensions(config: OpenAIEmbedderConfig) -> int | None:
    """What to send as `dimensions`: nothing for the model's own width, since some servers refuse the parameter."""
    known = MODELS.get(config.model)
    if config.shorten or (known is not None and width(config) != known.width):
        return width(config)
    return None


def price(config: OpenAIEmbedderConfig) -> float | None:
    """USD per million tokens; None where it is not known, as for another server."""
    if config.price is not None:
        return config.price
    return MODELS[config.model].price if config.model in MODELS and not config.base_url else None


def check_base_url(url: str | None) -> None:
    """Refuse an address that is none or that holds a secret, which would be written to every run's configuration.

    Raises:
        UserError: says what is wrong without repeating the address.
    """
    if url is None:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("embedder.base_url must be an address such as http://127.0.0.1:8000/v1.")
    if parts.username or parts.password or parts.query:
        raise UserError(
            "embedder.base_url holds a user, a password or a query, and is written to every run's files.\n"
            "Give the key in the environment instead: export OPENAI_API_KEY=..."
        )


def check_address(config: Any) -> None:  # noqa: ANN401 - any embedder's configuration
    """Refuse an address that only the files of a run name: questions, texts and the key would go there.

    Raises:
        UserError: it is neither OpenAI's nor the one in $OPENAI_BASE_URL.
    """
    url = getattr(config, "base_url", None)
    if url is not None and url != os.environ.get(ADDRESS):
        raise UserError(
            f"this run's vectors come from {url}, to which what you ask and your key would be sent.\n"
            f"If that is yours: export {ADDRESS}={url}"
        )
