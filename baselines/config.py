"""Schemas of the baselines, and the values that tuning draws from."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from dcdt.config import vector_fields
from dcdt.config.registry import FITTED, MODELS, UNTRAINED, Entry, SearchSpace, model_part
from dcdt.config.validation import Count, Delta, Dropout, Epsilon, Fields, Width, schema
from dcdt.data.transcripts import TRANSCRIPT
from dcdt.models.config import ENCODER_SPACE, TOWERS_SPACE, Passages

Positive = Annotated[float, Field(gt=0)]
LINEAR = ("ease", "slim")  # kinds of collaborative filtering that weigh a learner's recent watches more
BM25_VARIANTS = {"rank_bm25": ("okapi", "l", "plus"), "bm25s": ("okapi", "l", "plus", "lucene", "atire")}


@schema
class ZeroShotConfig:
    """Cosine of the frozen embeddings, field vectors summed."""

    name: str
    fields: Fields
    whiten: Literal["none", "soft"]
    history: Literal["none", "mean"] = "none"
    passages: Passages = "max"


@schema
class ImageConfig:
    """Cosine with pictures, whose vectors are in tables of their own."""

    name: str

    @property
    def fields(self) -> list[str]:
        """Fields of texts: none."""
        return []


@schema
class SingleTowerConfig:
    """Joint towers over (query, field) pairs, one score a pair."""

    name: str
    fields: Fields
    width: Width
    dropout: Dropout


@schema
class BM25Config:
    """Lexical matching."""

    name: str
    fields: Fields
    backend: Literal["rank_bm25", "bm25s"]
    variant: str
    k1: Positive
    b: Annotated[float, Field(ge=0, le=1)]
    delta: Annotated[float, Field(ge=0)] | None
    stem: bool
    stop_words: bool
    formulas: bool = False
    passages: Literal["whole", "max"] = "whole"

    @property
    def vector_fields(self) -> list[str]:
        """Fields whose vectors are loaded, though none are read: transcripts would take hours to embed."""
        return [name for name in self.fields if name != TRANSCRIPT] or ["title", "text"]

    @field_validator("variant")
    @classmethod
    def _check_variant(cls, value: str, info: ValidationInfo) -> str:
        choices = BM25_VARIANTS.get(str(info.data.get("backend")), (value,))
        if value not in choices:
            raise ValueError(f"choose one of {', '.join(choices)}, which backend={info.data['backend']} has.")
        return value


@schema
class CollaborativeConfig:
    """Configuration of collaborative filtering: videos that learners with a similar history watched."""

    name: str
    kind: Literal["als", "bpr", "cosine", "tfidf", "bm25", "ease", "slim", "popularity"]
    factors: Count
    regularization: Annotated[float, Field(ge=0)]
    alpha: Positive
    learning_rate: Positive
    neighbours: Count
    l1: Annotated[float, Field(ge=0)] = 0.1
    l2: Positive = 200.0
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def recency(self) -> float:
        """Weight of a watch relative to the learner's next one; 1 for kinds that do not read `decay`."""
        return self.decay if self.kind in LINEAR else 1.0


class _TwoParts:
    """What two models inside another one read together."""

    first: Any
    second: Any

    @property
    def fields(self) -> list[str]:
        """Fields whose vectors either part reads."""
        parts = (getattr(part, "fields", ["title", "text"]) for part in (self.first, self.second))
        return list(dict.fromkeys(name for names in parts for name in names))

    @property
    def vector_fields(self) -> list[str]:
        """Fields whose vectors are loaded."""
        return list(dict.fromkeys(name for part in (self.first, self.second) for name in vector_fields(part)))


@schema
class HybridConfig(_TwoParts):
    """Fusion of the scores of two models, each with a configuration of its own."""

    name: str
    fusion: Literal["convex", "rrf"]
    tune_on: Literal["val", "judged"]
    k: Count
    first: Annotated[Any, model_part()]
    second: Annotated[Any, model_part()]
    weight: Annotated[float, Field(ge=0, le=1)] | None = None


@schema
class HybridEncoderConfig(_TwoParts):
    """Fusion of a model that needs no epochs with the trained encoder."""

    name: str
    first: Annotated[Any, model_part("dcdt_encoder", "hybrid_encoder")]
    second: Annotated[Any, model_part(only=("dcdt_encoder",))]
    fusion: Literal["convex"] = "convex"
    tune_on: Literal["val"] = "val"  # the encoder is trained on all other queries
    k: Count = 60  # no setting of the convex fusion
    weight: None = None


@schema
class FederatedConfig:
    """How schools that keep their queries fit a model together."""

    name: str
    fit: Literal["sums", "local", "fedavg", "fedadam"]
    epsilon: Epsilon | None
    delta: Delta
    clip: Count
    rounds: Count
    model: Annotated[Any, model_part("federated", "hybrid_encoder", "two_stage_joint")]

    @property
    def fields(self) -> list[str]:
        """Fields that the model reads."""
        return list(getattr(self.model, "fields", ["title", "text"]))


SINGLE_TOWER_SPACE: SearchSpace = {**TOWERS_SPACE, "loss.margin": [1.0, 0.7, 0.4]}  # 1 - s never passes 1
BM25_SPACE: SearchSpace = {
    "model.variant": ["okapi", "l", "plus"],
    "model.k1": [1.5, 0.8, 1.2, 2.0],
    "model.b": [0.75, 0.4, 0.9],
    "model.stop_words": [True, False],
}
NEIGHBOURS_SPACE: SearchSpace = {"model.neighbours": [20, 5, 10, 50, 100, 200, 400, 800]}
COLLABORATIVE_SPACES: dict[str, SearchSpace] = {  # by model.kind
    "als": {
        "model.factors": [32, 8, 16, 64, 128],
        "model.regularization": [0.1, 0.01, 1.0],
        "model.alpha": [10.0, 1.0, 40.0],
    },
    "bpr": {
        "model.factors": [32, 8, 16, 64, 128],
        "model.regularization": [0.1, 0.01, 1.0],
        "model.learning_rate": [0.01, 0.03, 0.1],
    },
    "cosine": NEIGHBOURS_SPACE,
    "tfidf": NEIGHBOURS_SPACE,
    "bm25": NEIGHBOURS_SPACE,
    "ease": {"model.l2": [200.0, 50.0, 100.0, 500.0, 1000.0], "model.decay": [1.0, 0.8, 0.6, 0.4]},
    "slim": {
        "model.l1": [0.1, 0.02, 0.5],
        "model.l2": [200.0, 50.0, 100.0, 500.0],
        "model.decay": [1.0, 0.8, 0.6, 0.4],
    },
    "popularity": {},
}
HYBRID_SPACE: SearchSpace = {  # beside the weight of fusion=convex, which every trial chooses for itself
    "model.fusion": ["convex", "rrf"],
    "model.first.variant": ["okapi", "l", "plus"],
    "model.first.k1": [1.5, 0.8],
    "model.first.b": [0.75, 0.4, 0.9],
}


def collaborative_space(model: Mapping[str, Any]) -> SearchSpace:
    """Return the search space of collaborative of this kind."""
    return COLLABORATIVE_SPACES[model.get("kind", "als")]


def hybrid_space(model: Mapping[str, Any]) -> SearchSpace:
    """Return the search space of a hybrid of these components."""
    first = model.get("first")
    if not isinstance(first, Mapping) or first.get("name") != "collaborative":
        return HYBRID_SPACE
    return {
        "model.fusion": ["convex", "rrf"],
        **{key.replace("model.", "model.first."): values for key, values in collaborative_space(first).items()},
        "model.second.epochs": [5, 3, 8],
        "model.second.dropout": [0.3, 0.1, 0.5],
    }


MODELS.register("zero_shot", Entry(ZeroShotConfig, "baselines.zero_shot:ZeroShot", depends_on=UNTRAINED))
MODELS.register("image", Entry(ImageConfig, "baselines.zero_shot:Image", depends_on=UNTRAINED))
MODELS.register("single_tower", Entry(SingleTowerConfig, "baselines.single_tower:SingleTower", SINGLE_TOWER_SPACE))
MODELS.register("bm25", Entry(BM25Config, "baselines.bm25:BM25", BM25_SPACE, UNTRAINED, depends_on_tuned=FITTED))
MODELS.register(
    "collaborative", Entry(CollaborativeConfig, "baselines.collaborative:Collaborative", collaborative_space, FITTED)
)
MODELS.register("hybrid", Entry(HybridConfig, "baselines.hybrid:Hybrid", hybrid_space, FITTED))
MODELS.register("federated", Entry(FederatedConfig, "baselines.federated:Federated", depends_on=FITTED))
MODELS.register(
    "hybrid_encoder",
    Entry(
        HybridEncoderConfig,
        "baselines.hybrid_encoder:HybridEncoder",
        {key.replace("model.", "model.second."): values for key, values in ENCODER_SPACE.items()},
    ),
)
