"""Schemas of what is read: collections, splits, embedders, vectors that are there already."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from dcdt.config.checks import at_least, between, one_of
from dcdt.config.openai import OpenAIEmbedderConfig
from dcdt.utils.errors import UserError


@dataclass
class DataConfig:
    """Where the collection and its vectors are."""

    name: str = MISSING
    path: str = MISSING
    cache: str = MISSING

    def check(self) -> None:
        """Nothing to check before the folder is read."""


@dataclass
class SplitConfig:
    """How queries are divided; `index` picks the fold (or the repeat)."""

    name: str = MISSING
    index: int = MISSING
    n_folds: int = MISSING
    part: str = MISSING
    train_queries: int | None = None
    train_on: str = "all"

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        at_least("split.n_folds", self.n_folds, 2 if self.name == "folds" else 1)
        one_of("split.part", self.part, ("open", "sealed", "all"))
        one_of("split.train_on", self.train_on, ("all", "judged", "weak"))
        if self.train_queries is not None:
            at_least("split.train_queries", self.train_queries, 1)


@dataclass
class LocalEmbedderConfig:
    """A sentence-embedding model that runs here."""

    name: str = MISSING
    package: str = MISSING
    layer_weights: list[float] = MISSING
    batch_tokens: int = MISSING
    max_tokens: int = MISSING
    pooling: str = "auto"
    prefix: str = ""
    backend: str = "auto"

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        one_of("embedder.pooling", self.pooling, ("auto", "mean", "cls"))
        one_of("embedder.backend", self.backend, ("auto", "torch", "onnx"))
        at_least("embedder.batch_tokens", self.batch_tokens, 1)
        between("embedder.max_tokens", self.max_tokens, 2, 1_000_000)
        if not self.layer_weights or min(self.layer_weights) < 0 or max(self.layer_weights) <= 0:
            raise UserError(
                f"embedder.layer_weights is {list(self.layer_weights)}; weights are at least 0, one above 0."
            )


@dataclass
class MultilingualEmbedderConfig:
    """Google's multilingual sentence encoder, run here."""

    name: str = MISSING
    threads: int = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        at_least("embedder.threads", self.threads, 1)


EmbedderConfig = LocalEmbedderConfig | MultilingualEmbedderConfig | OpenAIEmbedderConfig


EMBEDDERS: dict[str, type] = {
    "local": LocalEmbedderConfig,
    "multilingual": MultilingualEmbedderConfig,
    "openai": OpenAIEmbedderConfig,
}


@dataclass
class ImportConfig:
    """Vectors that are there already."""

    vectors: str | None = None
    names: str | None = None
    field: str = "text"
    normalise: bool = False


@dataclass
class EmbedJob:
    """What `dcdt.embed` does beside filling a cache."""

    dry_run: bool = False
    verify: bool = False
    importing: ImportConfig = field(default_factory=ImportConfig)

    def check(self) -> None:
        """Raise UserError where two things are asked for at once."""
        if self.dry_run + self.verify + (self.importing.vectors is not None) > 1:
            raise UserError("dry_run, verify and import.vectors are three jobs; ask for one at a time.")
