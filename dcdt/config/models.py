"""Schemas of the models, and what each reads of the settings of training."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcdt.config.checks import WIDEST, at_least, below_one, between, distinct, one_of
from dcdt.config.reading import typed
from dcdt.utils.errors import UserError

TRAINED = frozenset({"loss", "sampler", "batch_size", "optimizer", "train_queries"})
FITTED = frozenset(
    {"train_queries"}
)  # in closed form, or with a choice by validation queries, which go along with them
UNTRAINED: frozenset[str] = frozenset()


@dataclass
class DCDTConfig:
    """The paper's deep collaborative dual tower (eq. 3 to 6)."""

    reads: ClassVar[frozenset[str]] = TRAINED
    name: str = MISSING
    fields: list[str] = MISSING
    width: int = MISSING
    dropout: float = MISSING
    attention: str = MISSING
    fusion: str = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        between("model.width", self.width, 1, WIDEST)
        below_one("model.dropout", self.dropout)
        one_of("model.attention", self.attention, ("none", "query"))
        one_of("model.fusion", self.fusion, ("concat", "sum") if self.attention == "none" else ("concat",))
        distinct("model.fields", self.fields)


@dataclass
class DCDTResidualConfig:
    """DCDT whose towers start as the identity."""

    reads: ClassVar[frozenset[str]] = TRAINED
    name: str = MISSING
    fields: list[str] = MISSING
    rank: int = MISSING
    shared: str = MISSING
    dropout: float = MISSING
    attention: str = MISSING
    fusion: str = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        between("model.rank", self.rank, 1, WIDEST)
        one_of("model.shared", self.shared, ("all", "fields", "none"))
        below_one("model.dropout", self.dropout)
        one_of("model.attention", self.attention, ("none", "query"))
        one_of("model.fusion", self.fusion, ("sum", "concat") if self.attention == "none" else ("sum",))
        distinct("model.fields", self.fields)


@dataclass
class ZeroShotConfig:
    """Cosine of the frozen embeddings, field vectors summed."""

    reads: ClassVar[frozenset[str]] = UNTRAINED
    name: str = MISSING
    fields: list[str] = MISSING
    whiten: str = MISSING
    history: str = "none"

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        distinct("model.fields", self.fields)
        one_of("model.whiten", self.whiten, ("none", "soft"))
        one_of("model.history", self.history, ("none", "mean"))


@dataclass
class HistoryConfig:
    """The frozen question vector and a tower over what the learner watched before."""

    reads: ClassVar[frozenset[str]] = FITTED
    name: str = MISSING
    fields: list[str] = MISSING
    whiten: str = MISSING
    history: str = MISSING
    length: int = MISSING
    width: int = MISSING
    videos: str = MISSING
    epochs: int = MISSING
    lr: float = MISSING
    dropout: float = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        distinct("model.fields", self.fields)
        one_of("model.whiten", self.whiten, ("none", "soft"))
        one_of("model.history", self.history, ("none", "mean", "attention"))
        one_of("model.videos", self.videos, ("frozen", "learned"))
        for name, least in (("length", 1), ("width", 1), ("epochs", 0)):
            at_least(f"model.{name}", getattr(self, name), least)
        below_one("model.dropout", self.dropout)
        if not self.lr > 0:
            raise UserError(f"model.lr is {self.lr}; it must be above 0.")


@dataclass
class RidgeConfig:
    """Linear towers from the identity, fitted in closed form."""

    reads: ClassVar[frozenset[str]] = FITTED
    name: str = MISSING
    fields: list[str] = MISSING
    whiten: str = MISSING
    neighbours: int = MISSING
    neighbour_weight: float = MISSING
    fit_on: str = MISSING
    penalty: float | None = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        distinct("model.fields", self.fields)
        one_of("model.whiten", self.whiten, ("none", "soft"))
        at_least("model.neighbours", self.neighbours, 1)
        at_least("model.neighbour_weight", self.neighbour_weight, 0)
        one_of("model.fit_on", self.fit_on, ("train", "judged"))
        if self.penalty is not None and not self.penalty > 0:
            raise UserError(f"model.penalty is {self.penalty}; it must be above 0, or null to choose it by itself.")


@dataclass
class SingleTowerConfig:
    """Joint towers over (query, field) pairs, one score a pair."""

    reads: ClassVar[frozenset[str]] = TRAINED
    name: str = MISSING
    fields: list[str] = MISSING
    width: int = MISSING
    dropout: float = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        between("model.width", self.width, 1, WIDEST)
        below_one("model.dropout", self.dropout)
        distinct("model.fields", self.fields)


BM25_VARIANTS = {"rank_bm25": ("okapi", "l", "plus"), "bm25s": ("okapi", "l", "plus", "lucene", "atire")}


@dataclass
class BM25Config:
    """Lexical matching."""

    reads: ClassVar[frozenset[str]] = UNTRAINED
    reads_tuned: ClassVar[frozenset[str]] = FITTED
    name: str = MISSING
    fields: list[str] = MISSING
    backend: str = MISSING
    variant: str = MISSING
    k1: float = MISSING
    b: float = MISSING
    delta: float | None = MISSING
    stem: bool = MISSING
    stop_words: bool = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        one_of("model.backend", self.backend, tuple(BM25_VARIANTS))
        one_of(f"model.variant (backend={self.backend})", self.variant, BM25_VARIANTS[self.backend])
        if not self.k1 > 0:
            raise UserError(f"model.k1 is {self.k1}; it must be above 0.")
        if not 0 <= self.b <= 1:
            raise UserError(f"model.b is {self.b}; it must be at least 0 and at most 1.")
        if self.delta is not None:
            at_least("model.delta", self.delta, 0)
        distinct("model.fields", self.fields)


@dataclass
class CollaborativeConfig:
    """What learners with a similar history watched."""

    reads: ClassVar[frozenset[str]] = FITTED
    name: str = MISSING
    kind: str = MISSING
    factors: int = MISSING
    regularization: float = MISSING
    alpha: float = MISSING
    learning_rate: float = MISSING
    neighbours: int = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        one_of("model.kind", self.kind, ("als", "bpr", "cosine", "tfidf", "bm25", "popularity"))
        at_least("model.factors", self.factors, 1)
        at_least("model.neighbours", self.neighbours, 1)
        at_least("model.regularization", self.regularization, 0)
        for name in ("alpha", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"model.{name} is {getattr(self, name)}; it must be above 0.")


@dataclass
class HybridConfig:
    """Fusion of the scores of two models, each with a configuration of its own."""

    reads: ClassVar[frozenset[str]] = FITTED
    name: str = MISSING
    fusion: str = MISSING
    weight_on: str = MISSING
    k: int = MISSING
    first: Any = MISSING
    second: Any = MISSING

    @property
    def fields(self) -> list[str]:
        """Fields whose vectors either part reads."""
        parts = (getattr(part, "fields", ["title", "text"]) for part in (self.first, self.second))
        return list(dict.fromkeys(name for names in parts for name in names))

    def check(self) -> None:
        """Turn the parts into their schemas; raise UserError where a value is out of its range."""
        one_of("model.fusion", self.fusion, ("convex", "rrf"))
        one_of("model.weight_on", self.weight_on, ("val", "judged"))
        at_least("model.k", self.k, 1)
        for place in ("first", "second"):
            setattr(self, place, typed_part(f"model.{place}", getattr(self, place), without=(self.name,)))


@dataclass
class TwoStageConfig:
    """A recall, and a rank head over its first videos that weighs evidence."""

    reads: ClassVar[frozenset[str]] = FITTED
    name: str = MISSING
    recall: Any = MISSING
    lexical: Any = MISSING
    depth: int = MISSING
    whiten: str = MISSING
    fit_on: str = MISSING
    penalty: float | None = MISSING

    @property
    def fields(self) -> list[str]:
        """Fields whose vectors the parts read."""
        parts = (getattr(part, "fields", []) for part in (self.recall, self.lexical))
        return list(dict.fromkeys(name for names in parts for name in names))

    def check(self) -> None:
        """Turn the parts into their schemas; raise UserError where a value is out of its range."""
        at_least("model.depth", self.depth, 2)
        one_of("model.whiten", self.whiten, ("none", "soft"))
        one_of("model.fit_on", self.fit_on, ("train", "judged"))
        if self.penalty is not None and not self.penalty > 0:
            raise UserError(f"model.penalty is {self.penalty}; it must be above 0, or null to choose it by itself.")
        self.recall = typed_part("model.recall", self.recall, without=("two_stage", "two_stage_joint"))
        if self.lexical is not None:
            others = tuple(name for name in MODELS if name != "bm25")
            self.lexical = typed_part("model.lexical", self.lexical, without=others)


@dataclass
class JointTwoStageConfig(TwoStageConfig):
    """The same with the joint network over query, title and description."""

    reads: ClassVar[frozenset[str]] = TRAINED
    rank: int = MISSING
    width: int = MISSING
    dropout: float = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        super().check()
        between("model.rank", self.rank, 1, WIDEST)
        between("model.width", self.width, 1, WIDEST)
        below_one("model.dropout", self.dropout)


def typed_part(place: str, part: Any, without: tuple[str, ...]) -> Any:  # noqa: ANN401 - any model's schema
    """The schema of a model that stands at another place, such as model.first.

    Raises:
        UserError: it is no model, one of those `without`, or a value of it is out of range.
    """
    name = part.get("name") if isinstance(part, dict) else part
    one_of(f"{place}.name", name, tuple(other for other in MODELS if other not in without))
    if not isinstance(part, dict):
        raise UserError(f"{place}={name} sets no model; choose a part as model@{place}={name}.")
    try:
        return typed(MODELS[str(name)], OmegaConf.create(part), place)
    except UserError as error:
        said = str(error)  # a check of the part alone says model.k1
        raise UserError(said if said.startswith(place) else re.sub(r"^model\.", f"{place}.", said)) from error


ModelConfig = (
    DCDTConfig
    | DCDTResidualConfig
    | RidgeConfig
    | ZeroShotConfig
    | SingleTowerConfig
    | BM25Config
    | CollaborativeConfig
    | HybridConfig
    | TwoStageConfig
    | HistoryConfig
)


MODELS: dict[str, type] = {
    "dcdt": DCDTConfig,
    "dcdt_ridge": RidgeConfig,
    "dcdt_residual": DCDTResidualConfig,
    "dcdt_history": HistoryConfig,
    "zero_shot": ZeroShotConfig,
    "single_tower": SingleTowerConfig,
    "bm25": BM25Config,
    "collaborative": CollaborativeConfig,
    "hybrid": HybridConfig,
    "two_stage": TwoStageConfig,
    "two_stage_joint": JointTwoStageConfig,
}


def reads(model: object, trials: object = 1) -> frozenset[str]:
    """Which of loss, sampler, batch_size, optimizer and train_queries (split.train_queries) a model's scores depend on.

    Args:
        model: its configuration; what is no model known here reads all of them.
        trials: how many configurations are compared, by the validation queries.

    >>> sorted(reads({"name": "dcdt_ridge"})), sorted(reads({"name": "bm25"})), sorted(reads({"name": "bm25"}, 2))
    (['train_queries'], [], ['train_queries'])
    """
    try:
        schema = MODELS.get(str(model.get("name"))) if isinstance(model, Mapping) else None
    except OmegaConfBaseException:  # said where the configuration is checked
        schema = None
    declared: frozenset[str] = getattr(schema, "reads", TRAINED)
    tuned: frozenset[str] = getattr(schema, "reads_tuned", declared)
    return tuned if isinstance(trials, int) and trials > 1 else declared
