"""Typed schema of the whole configuration: names, types and limits. The values live in conf/.

Every option of a group names a schema here by its `name`; what a configuration says beyond its schema is an error.
No schema holds a class path: models, losses and samplers are looked up by name, so a stranger's run is data.
"""

import hashlib
import math
import os
import re
import secrets
import sys
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcdt.errors import UserError


@dataclass
class DCDTConfig:
    """The paper's deep collaborative dual tower (eq. 3 to 6)."""

    name: str = MISSING
    fields: list[str] = MISSING
    width: int = MISSING
    dropout: float = MISSING
    attention: str = MISSING
    fusion: str = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        at_least("model.width", self.width, 1)
        below_one("model.dropout", self.dropout)
        one_of("model.attention", self.attention, ("none", "query"))
        one_of("model.fusion", self.fusion, ("concat", "sum") if self.attention == "none" else ("concat",))
        distinct("model.fields", self.fields)


@dataclass
class DCDTResidualConfig:
    """DCDT whose towers start as the identity."""

    name: str = MISSING
    fields: list[str] = MISSING
    rank: int = MISSING
    shared: str = MISSING
    dropout: float = MISSING
    attention: str = MISSING
    fusion: str = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        at_least("model.rank", self.rank, 1)
        one_of("model.shared", self.shared, ("all", "fields", "none"))
        below_one("model.dropout", self.dropout)
        one_of("model.attention", self.attention, ("none", "query"))
        one_of("model.fusion", self.fusion, ("sum", "concat") if self.attention == "none" else ("sum",))
        distinct("model.fields", self.fields)


@dataclass
class ZeroShotConfig:
    """Cosine of the frozen embeddings, field vectors summed."""

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

    name: str = MISSING
    fields: list[str] = MISSING
    width: int = MISSING
    dropout: float = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        at_least("model.width", self.width, 1)
        below_one("model.dropout", self.dropout)
        distinct("model.fields", self.fields)


BM25_VARIANTS = {"rank_bm25": ("okapi", "l", "plus"), "bm25s": ("okapi", "l", "plus", "lucene", "atire")}


@dataclass
class BM25Config:
    """Lexical matching."""

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
            others = tuple(name for name in SCHEMAS["model"] if name != "bm25")
            self.lexical = typed_part("model.lexical", self.lexical, without=others)


@dataclass
class JointTwoStageConfig(TwoStageConfig):
    """The same with the joint network over query, title and description."""

    rank: int = MISSING
    width: int = MISSING
    dropout: float = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        super().check()
        at_least("model.rank", self.rank, 1)
        at_least("model.width", self.width, 1)
        below_one("model.dropout", self.dropout)


def typed_part(place: str, part: Any, without: tuple[str, ...]) -> Any:  # noqa: ANN401 - any model's schema
    """The schema of a model that stands at another place, such as model.first.

    Raises:
        UserError: it is no model, one of those `without`, or a value of it is out of range.
    """
    name = part.get("name") if isinstance(part, dict) else part
    one_of(f"{place}.name", name, tuple(other for other in SCHEMAS["model"] if other not in without))
    if not isinstance(part, dict):
        raise UserError(f"{place}={name} sets no model; choose a part as model@{place}={name}.")
    try:
        return typed(SCHEMAS["model"][str(name)], OmegaConf.create(part), place)
    except UserError as error:
        said = str(error)  # a check of the part alone says model.k1
        raise UserError(said if said.startswith(place) else re.sub(r"^model\.", f"{place}.", said)) from error


@dataclass
class ContrastiveConfig:
    """Contrastive loss (eq. 7)."""

    name: str = MISSING
    margin: float = MISSING
    squared: bool = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        if not 0 < self.margin <= 2:
            raise UserError(
                f"loss.margin is {self.margin}; it must be above 0 and at most 2, the largest distance of unit vectors."
            )


@dataclass
class InfoNCEConfig:
    """Softmax over a query's columns, with one positive or several."""

    name: str = MISSING
    positives: str = MISSING
    temperature: float = MISSING
    learned: bool = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        one_of("loss.positives", self.positives, ("each", "any"))
        if not 0.01 <= self.temperature <= 10:
            raise UserError(f"loss.temperature is {self.temperature}; it must be at least 0.01 and at most 10.")


@dataclass
class TripletConfig:
    """A positive is to be nearer than a negative by a margin."""

    name: str = MISSING
    margin: float = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        if not 0 < self.margin <= 2:
            raise UserError(
                f"loss.margin is {self.margin}; it must be above 0 and at most 2, the largest distance of unit vectors."
            )


@dataclass
class MarginMSEConfig:
    """Distances between positives and negatives as a teacher has them."""

    name: str = MISSING
    teacher: Any = MISSING

    def check(self) -> None:
        """Turn the teacher into its schema; raise UserError where a value of it is out of its range."""
        if self.teacher is not None:
            self.teacher = typed_part("loss.teacher", self.teacher, without=("two_stage", "two_stage_joint"))


@dataclass
class RandomSamplerConfig:
    """Negatives drawn evenly from the unrelated videos."""

    name: str = MISSING
    negatives: int = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        at_least("sampler.negatives", self.negatives, 1)


@dataclass
class HardSamplerConfig:
    """Negatives drawn from the most similar unrelated videos."""

    name: str = MISSING
    negatives: int = MISSING
    pool_share: float = MISSING
    pool_limit: int = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        at_least("sampler.negatives", self.negatives, 1)
        at_least("sampler.pool_limit", self.pool_limit, 1)
        if not 0 < self.pool_share <= 1:
            raise UserError(f"sampler.pool_share is {self.pool_share}; it must be above 0 and at most 1.")


@dataclass
class InBatchSamplerConfig:
    """The positives of a batch's other queries."""

    name: str = MISSING
    logq: bool = MISSING
    gather: bool = True

    def check(self) -> None:
        """Nothing to check."""


@dataclass
class CatalogueSamplerConfig:
    """Every video of training in every batch."""

    name: str = MISSING

    def check(self) -> None:
        """Nothing to check."""


@dataclass
class WindowSamplerConfig:
    """A window of the frozen ranking, with a guard against unjudged positives."""

    name: str = MISSING
    negatives: int = MISSING
    start: int = MISSING
    size: int = MISSING
    guard: float = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        at_least("sampler.negatives", self.negatives, 1)
        at_least("sampler.start", self.start, 0)
        at_least("sampler.size", self.size, 1)
        if not 0 < self.guard <= 1:
            raise UserError(f"sampler.guard is {self.guard}; it must be above 0 and at most 1.")


@dataclass
class DynamicHardSamplerConfig(HardSamplerConfig):
    """Hard negatives, mined again with the current towers."""

    warm_up: int = MISSING
    every: int = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        super().check()
        at_least("sampler.warm_up", self.warm_up, 0)
        at_least("sampler.every", self.every, 1)


@dataclass
class MixedSamplerConfig(HardSamplerConfig):
    """Some hard negatives, some random ones."""

    hard_share: float = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        super().check()
        at_least("sampler.negatives", self.negatives, 2)
        if not 0 < self.hard_share < 1:
            raise UserError(f"sampler.hard_share is {self.hard_share}; it must be above 0 and below 1.")


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
        at_least("embedder.max_tokens", self.max_tokens, 2)
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
        from dcdt.embedders.openai_models import check_base_url, width

        for name in ("max_tokens", "request_inputs", "request_tokens", "concurrency"):
            at_least(f"embedder.{name}", getattr(self, name), 1)
        if self.dimensions is not None:
            at_least("embedder.dimensions", self.dimensions, 1)
        for name in ("timeout", "patience"):
            if not getattr(self, name) > 0:
                raise UserError(f"embedder.{name} is {getattr(self, name)}; it must be above 0 seconds.")
        if self.price is not None:
            at_least("embedder.price", self.price, 0)
        check_base_url(self.base_url)
        width(self)


@dataclass
class OptimizerConfig:
    """AdamW and its schedule."""

    lr: float = MISSING
    weight_decay: float = MISSING
    schedule: str = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        if not (self.lr > 0 and self.weight_decay >= 0):  # also where one is not a number
            raise UserError(
                f"optimizer.lr is {self.lr} and optimizer.weight_decay {self.weight_decay}; "
                "lr must be above 0 and weight_decay at least 0."
            )
        one_of("optimizer.schedule", self.schedule, ("cosine", "linear", "constant"))


@dataclass
class TrainerConfig:
    """What Lightning's Trainer is given."""

    name: str = MISSING
    accelerator: str = MISSING
    devices: int = MISSING
    precision: str = MISSING
    max_epochs: int = MISSING
    validate_every: int = MISSING
    threads: int = MISSING
    strategy: str = "auto"
    num_nodes: int = 1
    tables: str = "float32"
    mapped: bool = False
    compile: bool = False

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return self.devices * self.num_nodes

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        for name in ("max_epochs", "validate_every", "devices", "num_nodes"):
            at_least(f"trainer.{name}", getattr(self, name), 1)
        one_of("trainer.strategy", self.strategy, ("auto", "ddp"))
        one_of("trainer.tables", self.tables, ("float32", "float16", "bfloat16"))
        if self.mapped and self.tables == "float32":
            raise UserError("trainer.mapped=true holds vectors in half precision; choose trainer.tables=float16.")
        if self.world_size > 1 and self.strategy != "ddp":
            raise UserError(
                f"trainer.devices is {self.devices} and trainer.num_nodes {self.num_nodes}; trainer={self.name} takes "
                "one device: choose trainer=ddp for several."
            )
        at_least("trainer.threads", self.threads, 0)


@dataclass
class LoggerConfig:
    """Where curves and tables are shown, beside the files of the run."""

    name: str = MISSING
    project: str = "dcdt"
    entity: str | None = None
    mode: str = "auto"
    samples: int = 20
    samples_every: int = 50
    artifacts: bool = False
    watch: str = "none"
    watch_steps: int = 100

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        one_of("logger.mode", self.mode, ("auto", "online", "offline"))
        one_of("logger.watch", self.watch, ("none", "gradients", "parameters", "all"))
        for name, least in (("samples", 0), ("samples_every", 0), ("watch_steps", 1)):
            at_least(f"logger.{name}", getattr(self, name), least)


@dataclass
class CallbacksConfig:
    """What happens around training."""

    patience: int = MISSING
    collapse_cosine: float = MISSING
    progress: bool = MISSING
    checkpoint_seconds: float | None = 60.0

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        at_least("callbacks.patience", self.patience, 1)
        if not 0 < self.collapse_cosine <= 1:
            raise UserError(f"callbacks.collapse_cosine is {self.collapse_cosine}; it must be above 0 and at most 1.")
        if self.checkpoint_seconds is not None:
            at_least("callbacks.checkpoint_seconds", self.checkpoint_seconds, 0)


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
LossConfig = ContrastiveConfig | InfoNCEConfig | TripletConfig | MarginMSEConfig
SamplerConfig = (
    RandomSamplerConfig | HardSamplerConfig | InBatchSamplerConfig | CatalogueSamplerConfig | WindowSamplerConfig
)
EmbedderConfig = LocalEmbedderConfig | MultilingualEmbedderConfig | OpenAIEmbedderConfig

SCHEMAS: dict[str, dict[str, type]] = {
    "model": {
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
    },
    "loss": {
        "contrastive": ContrastiveConfig,
        "infonce": InfoNCEConfig,
        "triplet": TripletConfig,
        "margin_mse": MarginMSEConfig,
    },
    "sampler": {
        "random": RandomSamplerConfig,
        "hard": HardSamplerConfig,
        "dynamic_hard": DynamicHardSamplerConfig,
        "window": WindowSamplerConfig,
        "mixed": MixedSamplerConfig,
        "in_batch": InBatchSamplerConfig,
        "catalogue": CatalogueSamplerConfig,
    },
    "data": {"linear_algebra": DataConfig, "files": DataConfig},
    "split": dict.fromkeys(("query", "folds", "video", "time", "paper"), SplitConfig),
    "embedder": {
        "local": LocalEmbedderConfig,
        "multilingual": MultilingualEmbedderConfig,
        "openai": OpenAIEmbedderConfig,
    },
    "trainer": dict.fromkeys(("auto", "cpu", "gpu", "ddp"), TrainerConfig),
    "logger": dict.fromkeys(("wandb", "csv", "none"), LoggerConfig),
}
SINGLE: dict[str, type] = {"optimizer": OptimizerConfig, "callbacks": CallbacksConfig}


@dataclass
class Settings:
    """One checked configuration, every part an instance of its schema."""

    model: ModelConfig
    loss: LossConfig
    sampler: SamplerConfig
    data: DataConfig
    split: SplitConfig
    embedder: EmbedderConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    optimizer: OptimizerConfig
    callbacks: CallbacksConfig
    seed: int
    trials: int
    batch_size: int
    primary_metric: str
    ks: list[int]
    outputs: str
    experiment_name: str | None = None
    resume: str | None = None

    @property
    def fields(self) -> list[str]:
        """Fields whose vectors the model reads; title and text where it reads none."""
        return list(getattr(self.model, "fields", ("title", "text")))


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


def take_embed_job(config: DictConfig) -> tuple[EmbedJob, DictConfig]:
    """The part of a configuration that only `dcdt.embed` knows, and the rest.

    Raises:
        UserError: a value of it is of another type or unknown.
    """
    own = {"dry_run": "dry_run", "verify": "verify", "import": "importing"}
    rest = OmegaConf.create({key: value for key, value in config.items_ex(resolve=False) if key not in own})
    given = OmegaConf.create({own[key]: config[key] for key in own if key in config})
    return typed(EmbedJob, given, "embed"), rest


LONGEST_KEY = 200  # characters
METRICS = ("mrr", "map", "recall", "precision", "hit", "ndcg")


def parse(config: DictConfig) -> Settings:
    """Check a composed configuration against its schemas.

    Raises:
        UserError: a value is missing, has another type, is out of its range, or is not in the schema.
    """
    try:
        config = DictConfig(OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {str(error).splitlines()[0]}") from error
    values: dict[str, Any] = {}
    for group, schemas in SCHEMAS.items():
        name = OmegaConf.select(config, f"{group}.name")
        one_of(f"{group}.name", name, tuple(schemas))
        values[group] = typed(schemas[name], config[group], group)
    for key, schema in SINGLE.items():
        if not isinstance(config.get(key), DictConfig):
            raise UserError(f"{key} is {config.get(key)!r}; give its values as {key}.NAME=VALUE.")
        values[key] = typed(schema, config[key], key)
    plain = {item.name for item in fields(Settings)} - values.keys()
    unknown = {str(key) for key in config} - plain - values.keys()
    if unknown:
        raise UserError(f"unknown setting {', '.join(sorted(unknown))}; see python -m dcdt.run --help.")
    given = {item.name for item in fields(Settings) if item.default is not NO_DEFAULT}
    for key in plain - (given - config.keys()):  # an older configuration may lack what has a default
        value = config[key]
        values[key] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    settings = Settings(**values)
    _check_plain(settings)
    if settings.split.part == "sealed" and settings.experiment_name != "final":
        raise UserError(
            "split.part is 'sealed': only experiment=final scores the sealed quarter, once for a release.\n"
            "Choose split.part=open to compare and tune, or all where nothing is compared any more."
        )
    return settings


T = TypeVar("T")


def typed(schema: type[T], values: DictConfig, place: str) -> T:
    """An instance of `schema` holding `values`, checked.

    Raises:
        UserError: a value is missing, of another type, out of range or unknown.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        missing = sorted(str(key) for key in OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{place}.{missing[0]} is not set; give it as {place}.{missing[0]}=VALUE.")
        part = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        key = f".{error.full_key}" if error.full_key else ""
        raise UserError(f"{place}{key}: {reason}") from error
    for name, value in vars(part).items():
        numbers = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, float)]
        wrong = math.isnan if name == "penalty" else lambda number: not math.isfinite(number)  # inf: no correction
        if any(map(wrong, numbers)):
            raise UserError(f"{place}.{name} is {value}; it must be a finite number.")
    part.check()  # type: ignore[union-attr]
    return part  # type: ignore[return-value]


def _check_plain(settings: Settings) -> None:
    for name in ("batch_size", "trials"):
        if not isinstance(getattr(settings, name), int):
            raise UserError(f"{name} is {getattr(settings, name)!r}; it must be a whole number of at least 1.")
        at_least(name, getattr(settings, name), 1)
    if not isinstance(settings.outputs, str) or not settings.outputs:
        raise UserError(f"outputs is {settings.outputs!r}; it must name a folder.")
    if isinstance(settings.seed, bool) or not isinstance(settings.seed, int) or not 0 <= settings.seed < 2**32:
        raise UserError(f"seed is {settings.seed!r}; it must be a whole number from 0 to {2**32 - 1}.")
    if (
        not isinstance(settings.ks, list)
        or not settings.ks
        or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in settings.ks)
    ):
        raise UserError(f"ks is {settings.ks}; it must be a list of whole numbers of at least 1, such as [1,5,10].")
    known = [f"val/{name}{suffix}" for name in METRICS for suffix in _suffixes(name, settings.ks)]
    one_of("primary_metric", settings.primary_metric, tuple(known))


def _suffixes(metric: str, ks: list[int]) -> list[str]:
    return [""] if metric in ("mrr", "map") else [f"@{k}" for k in ks]


def at_least(name: str, value: float, limit: float) -> None:
    """Raise UserError where a value is below its limit."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < limit:
        raise UserError(f"{name} is {value!r}; it must be a number of at least {limit}.")


def below_one(name: str, value: float) -> None:
    """Raise UserError where a value is not in [0, 1)."""
    if not 0 <= value < 1:
        raise UserError(f"{name} is {value}; it must be at least 0 and below 1.")


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise UserError where a value is not among its choices."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")


def distinct(name: str, values: list[str]) -> None:
    """Raise UserError where a list is empty or holds a value twice."""
    if not values or len(set(values)) != len(values):
        raise UserError(f"{name} is {list(values)}; it must name at least one field, each once.")


def config_folder() -> Path:
    """Folder of the configuration files: conf/ of the checkout, or the copy inside an installed package."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "conf"
    return checkout if (checkout / "config.yaml").is_file() else package / "conf"


def project_root() -> Path:
    """Folder that relative paths of shipped configurations start from: the checkout, or where the user stands."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "conf" / "config.yaml").is_file() else Path.cwd()


def model_presets() -> dict[str, dict[str, Any]]:
    """The values of every option of conf/model by its name, which is what a user chose; `model.name` is its class."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    options = sorted(path.stem for path in (config_folder() / "model").glob("*.yaml"))
    GlobalHydra.instance().clear()
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        found = {name: compose("config", overrides=[f"model={name}"]).model for name in options}
    return {name: cast(dict[str, Any], OmegaConf.to_container(values, resolve=True)) for name, values in found.items()}


def demo_collection() -> Path:
    """Folder of the linear-algebra videos: in the checkout, or the copy inside an installed package."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "data" / "linear_algebra"
    return checkout if checkout.is_dir() else package / "demo" / "linear_algebra"


def check_choices(arguments: list[str]) -> None:
    """Refuse on the command line what Hydra would answer with a traceback: a number where an option is chosen.

    Raises:
        UserError: names the choice.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Sweep
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for text in arguments:
        try:
            override = parser.parse_override(text)
        except HydraException:  # an option of the command, or something that Hydra itself refuses in words
            continue
        group, value = override.key_or_group, override.value()
        if len(group) > LONGEST_KEY:
            raise UserError(f"{group[:40]}... is no key of the configuration; see python -m dcdt.run --help.")
        if (config_folder() / group).is_dir() and not isinstance(value, str | list | Sweep | None):
            options = ", ".join(sorted(path.stem for path in (config_folder() / group).glob("*.yaml")))
            raise UserError(f"{group}={value} chooses no option; choose one of {options}.")


def register_resolvers() -> None:
    """Make the resolvers of conf/ known to OmegaConf."""
    resolvers: dict[str, Any] = {
        "project_root": lambda: str(project_root()),
        "demo_collection": lambda: str(demo_collection()),
        "cache_root": lambda: str(cache_root()),
        "outputs_root": lambda: str(outputs_root()),
        "vectors_of": _vectors_of,
        "stem": lambda path: _plain(Path(path).name),
        "job_name": job_name,
        "run_folder": lambda resumed, new: resumed or new,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    once: dict[str, Any] = {"unique": lambda: secrets.token_hex(2), "sweep_name": lambda: _sweep_name(sys.argv[1:])}
    for name, resolver in once.items():  # cached: all jobs of a sweep see the parent's value
        OmegaConf.register_new_resolver(name, resolver, use_cache=True, replace=True)


def cache_home() -> Path:
    """Folder of what can be made again: $DCDT_CACHE, or dcdt in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcdt"
    return Path(os.environ.get("DCDT_CACHE") or default)


def cache_root() -> Path:
    """Folder of cached vectors: $DCDT_CACHE, or dcdt/embeddings in the user's cache folder."""
    return Path(os.environ.get("DCDT_CACHE") or cache_home() / "embeddings")


def outputs_root() -> Path:
    """Folder of runs: $DCDT_OUTPUTS, or outputs/ of the checkout, or where the user stands."""
    return Path(os.environ.get("DCDT_OUTPUTS") or project_root() / "outputs")


def _vectors_of(path: str) -> str:
    """Cache of a collection: the vectors it brings, else the user's cache."""
    own = Path(path) / "embeddings"
    return str(own if os.path.isdir(own) else cache_root())  # false also for what no path can be


ELSEWHERE = ("outputs=", "logger=", "logger.", "callbacks.progress=")  # where results go decides no result


def _sweep_name(arguments: list[str]) -> str:
    """Folder of a sweep: its experiment and a hash of the command line, so that the same command finds it again."""
    overrides = [item for item in arguments if not item.startswith(("-", "hydra", *ELSEWHERE))]
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    path = Path(given.get("data.path", given.get("data", "linear_algebra"))).name
    return f"{_plain(given.get('experiment', 'sweep'))}_{_plain(path)}_{_digest(sorted(overrides))}"


def job_name(overrides: list[str]) -> str:
    """Folder of one job of a sweep: the choices in words, as far as they fit, and a hash of all of them."""
    deciding = [item for item in overrides if not item.startswith(ELSEWHERE)]
    shown = [item for item in deciding if not item.startswith(("experiment=", "data=", "data.path=", "data.cache="))]
    return f"{_plain(','.join(shown))[:90]}_{_digest(sorted(deciding))}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9=.,_-]+", "-", text)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
