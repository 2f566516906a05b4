"""The schema of OpenAI's embedders, and the width and list price of its models."""

import os
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from omegaconf import MISSING

from dcdt.config.checks import WIDEST, at_least, between
from dcdt.utils.errors import UserError


class KnownModel(NamedTuple):
    """A model of OpenAI's."""

    width: int
    price: float  # USD per million tokens, the list price when this was written
    shortens: bool  # takes the parameter `dimensions`


BASE_URL_VARIABLE = "OPENAI_BASE_URL"
MODELS = {
    "text-embedding-3-small": KnownModel(1536, 0.02, True),
    "text-embedding-3-large": KnownModel(3072, 0.13, True),
    "text-embedding-ada-002": KnownModel(1536, 0.10, False),
}


@dataclass
class OpenAIEmbedderConfig:
    """A model behind OpenAI's API or a server that speaks it. The key is no setting: OPENAI_API_KEY alone holds it."""

    name: str = MISSING
    model: str = MISSING
    dimensions: int | None = MISSING
    shorten: bool = MISSING
    normalise: bool = MISSING
    base_url: str | None = MISSING
    max_tokens: int = MISSING
    request_inputs: int = MISSING
    request_tokens: int = MISSING
    concurrency: int = MISSING
    timeout: float = MISSING
    patience: float = MISSING
    price: float | None = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        for name in ("max_tokens", "request_inputs", "request_tokens", "concurrency"):
            at_least(f"embedder.{name}", getattr(self, name), 1)
        if self.dimensions is not None:
            between("embedder.dimensions", self.dimensions, 1, WIDEST)
        for name in ("timeout", "patience"):
            if not getattr(self, name) > 0:
                raise UserError(f"embedder.{name} is {getattr(self, name)}; it must be above 0 seconds.")
        if self.price is not None:
            at_least("embedder.price", self.price, 0)
        check_base_url(self.base_url)
        vector_width(self)


def vector_width(config: OpenAIEmbedderConfig) -> int:
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


def refuse_foreign_base_url(config: Any) -> None:  # noqa: ANN401 - any embedder's configuration
    """Refuse an address that only the files of a run name: questions, texts and the key would go there.

    Raises:
        UserError: it is neither OpenAI's nor the one in $OPENAI_BASE_URL.
    """
    url = getattr(config, "base_url", None)
    if url is not None and url != os.environ.get(BASE_URL_VARIABLE):
        raise UserError(
            f"this run's vectors come from {url}, to which what you ask and your key would be sent.\n"
            f"If that is yours: export {BASE_URL_VARIABLE}={url}"
        )
