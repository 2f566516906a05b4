"""Schemas of the embedders, and of what `dcdt.embed` does beside filling a cache."""

import os
import shlex
from dataclasses import field
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from omegaconf import DictConfig, OmegaConf
from pydantic import BeforeValidator, Field, field_validator, model_validator

from dcdt.config.registry import GROUPS, Entry
from dcdt.config.validation import Count, Width, schema, validate
from dcdt.utils.errors import UserError

Seconds = Annotated[float, Field(gt=0, description="be above 0 seconds")]
BASE_URL_VARIABLE = "OPENAI_BASE_URL"


@schema
class LocalEmbedderConfig:
    """A sentence-embedding model that runs here."""

    name: str
    package: str
    layer_weights: list[float]
    batch_tokens: Count
    max_tokens: Annotated[int, Field(ge=2, le=1_000_000)]
    pooling: Literal["auto", "mean", "cls"] = "auto"
    prefix: str = ""
    backend: Literal["auto", "torch", "onnx"] = "auto"

    @field_validator("layer_weights")
    @classmethod
    def _check_weights(cls, values: list[float]) -> list[float]:
        if not values or min(values) < 0 or max(values) <= 0:
            raise ValueError("weights are at least 0, one above 0.")
        return values


@schema
class MultilingualEmbedderConfig:
    """Google's multilingual sentence encoder, run here."""

    name: str
    threads: Annotated[int, Field(ge=1, le=1024)]


class KnownModel(NamedTuple):
    """A model of OpenAI's."""

    width: int
    price: float  # USD per million tokens, the list price when this was written
    shortens: bool  # takes the parameter `dimensions`


OPENAI_MODELS = {
    "text-embedding-3-small": KnownModel(1536, 0.02, True),
    "text-embedding-3-large": KnownModel(3072, 0.13, True),
    "text-embedding-ada-002": KnownModel(1536, 0.10, False),
}


@schema
class OpenAIEmbedderConfig:
    """A model behind OpenAI's API or a server that speaks it. The key is no setting: OPENAI_API_KEY alone holds it."""

    name: str
    model: str
    dimensions: Width | None
    shorten: bool
    normalise: bool
    base_url: Annotated[str | None, BeforeValidator(lambda url: (url or "").strip() or None)]
    max_tokens: Count
    request_inputs: Count
    request_tokens: Count
    concurrency: Count
    timeout: Seconds
    patience: Seconds
    price: Annotated[float, Field(ge=0)] | None

    @model_validator(mode="after")
    def _check(self) -> "OpenAIEmbedderConfig":
        _check_base_url(self.base_url)
        vector_width(self)
        return self


def vector_width(config: OpenAIEmbedderConfig) -> int:
    """Numbers a vector."""
    known = OPENAI_MODELS.get(config.model)
    if known is None and config.dimensions is None:
        raise UserError(
            f"embedder.model '{config.model}' is none of OpenAI's ({', '.join(OPENAI_MODELS)}): "
            "its width is not known.\n"
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
    return OPENAI_MODELS[config.model].price if config.model in OPENAI_MODELS and not config.base_url else None


def _check_base_url(url: str | None) -> None:
    """Refuse an address that is none or that holds a secret, which would be written to every run's configuration.

    Raises:
        UserError: says what is wrong without repeating the address.
    """
    if url is None:
        return
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of brackets or the port
        is_address = False
    if not is_address:
        raise UserError("embedder.base_url must be an address such as http://127.0.0.1:8000/v1.")
    if parts.username or parts.password or dict(parse_qsl(parts.query)).keys() - {"api-version"}:
        raise UserError(
            "embedder.base_url holds a user, a password or a query beside api-version, and is in every run's files.\n"
            "Give the key in the environment instead: export OPENAI_API_KEY=..."
        )


def refuse_foreign_base_url(config: Any) -> None:  # noqa: ANN401 - any embedder's configuration
    """Refuse an address that only the files of a run name: questions, texts and the key would go there.

    Raises:
        UserError: it is neither OpenAI's nor the one in $OPENAI_BASE_URL.
    """
    url = getattr(config, "base_url", None)
    if url is not None and url != os.environ.get(BASE_URL_VARIABLE, "").strip():
        raise UserError(
            f"this run's vectors come from {url}, to which what you ask and your key would be sent.\n"
            f"If that is yours: export {BASE_URL_VARIABLE}={shlex.quote(url)}"
        )


@schema
class ClipConfig:
    """A model of texts and pictures that runs here."""

    name: str
    folder: str


@schema
class ImportConfig:
    """Vectors that are there already."""

    vectors: str | None = None
    names: str | None = None
    field: str = "text"
    normalise: bool = False


@schema
class EmbedJob:
    """Options of `dcdt.embed` beside those of the cache."""

    dry_run: bool = False
    verify: bool = False
    importing: ImportConfig = field(default_factory=ImportConfig)

    @model_validator(mode="after")
    def _check(self) -> "EmbedJob":
        if self.dry_run + self.verify + (self.importing.vectors is not None) > 1:
            raise UserError("dry_run, verify and import.vectors are three jobs; ask for one at a time.")
        return self


def take_embed_job(config: DictConfig) -> tuple[EmbedJob, DictConfig]:
    """The part of a configuration that only `dcdt.embed` knows, and the rest.

    Raises:
        UserError: a value of it is of another type or unknown.
    """
    own = {"dry_run": "dry_run", "verify": "verify", "import": "importing"}
    rest = OmegaConf.create({key: value for key, value in config.items_ex(resolve=False) if key not in own})
    given = OmegaConf.create({own[key]: config[key] for key in own if key in config})
    return validate(EmbedJob, given, "embed"), rest


EmbedderConfig = LocalEmbedderConfig | MultilingualEmbedderConfig | OpenAIEmbedderConfig | ClipConfig
GROUPS["image_embedder"].register("clip", Entry(ClipConfig))
GROUPS["embedder"].register("local", Entry(LocalEmbedderConfig))
GROUPS["embedder"].register("multilingual", Entry(MultilingualEmbedderConfig))
GROUPS["embedder"].register("openai", Entry(OpenAIEmbedderConfig))
