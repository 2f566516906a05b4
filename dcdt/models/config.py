"""Schemas of the models, of their optimizer, and the values that tuning draws from."""

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dcdt.config import vector_fields
from dcdt.config.registry import FITTED, MODELS, OPTIMIZERS, Entry, SearchSpace, model_part
from dcdt.config.validation import Count, Dropout, Fields, Width, schema
from dcdt.utils.errors import UserError

Passages = Literal["max", "softmax", "mean"]  # how the passages of a transcript make one similarity
Penalty = Annotated[
    float, Field(gt=0, allow_inf_nan=True, description="be above 0, or null to choose it by itself")
]  # inf: no correction


@schema
class OptimizerConfig:
    """AdamW, and the schedule of every optimizer."""

    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Literal["cosine", "linear", "constant"]
    name: str = "adamw"
    warmup_steps: float = 0.0

    @field_validator("warmup_steps")
    @classmethod
    def _check_warmup(cls, value: float) -> float:
        if value < 0 or (value > 1 and value != int(value)):
            raise ValueError("it must be a whole number of at least 0, or a fraction below 1.")
        return value


@schema
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent."""

    momentum: Annotated[float, Field(ge=0, lt=1)] = field(kw_only=True)
    nesterov: bool = field(kw_only=True)

    @model_validator(mode="after")
    def _check_nesterov(self) -> "SGDConfig":
        if self.nesterov and not self.momentum:
            raise UserError("optimizer.nesterov=true needs optimizer.momentum above 0.")
        return self


@schema
class NAdamConfig(OptimizerConfig):
    """Adam with Nesterov momentum."""

    momentum_decay: Annotated[float, Field(ge=0)] = field(kw_only=True)


@schema
class DCDTConfig:
    """The paper's deep collaborative dual tower (eq. 3 to 6)."""

    name: str
    fields: Fields
    width: Width
    dropout: Dropout
    attention: Literal["none", "query", "candidates"]
    fusion: Literal["concat", "sum"]
    passages: Passages = "max"

    @field_validator("fusion")
    @classmethod
    def _check_fusion(cls, value: str, info: ValidationInfo) -> str:
        return _only_with_attention({"query": "concat", "candidates": "sum"}, value, info)


@schema
class DCDTResidualConfig:
    """DCDT whose towers start as the identity."""

    name: str
    fields: Fields
    rank: Width
    shared: Literal["all", "fields", "none"]
    dropout: Dropout
    attention: Literal["none", "query"]
    fusion: Literal["sum", "concat"]
    passages: Passages = "max"

    @field_validator("fusion")
    @classmethod
    def _check_fusion(cls, value: str, info: ValidationInfo) -> str:
        return _only_with_attention({"query": "sum"}, value, info)


def _only_with_attention(fusions: dict[str, str], value: str, info: ValidationInfo) -> str:
    """The fusion, which some kinds of attention leave no choice of: `fusions` has theirs."""
    attention = info.data.get("attention")
    choice = fusions.get(str(attention), value)
    if value != choice:
        raise ValueError(f"choose one of {choice}, which attention={attention} goes with.")
    return value


@schema
class EncoderConfig:
    """The sentence encoder itself, its last layers trained."""

    name: str
    fields: Fields
    trainable_layers: Count
    layer_decay: Annotated[float, Field(gt=0, le=1)]
    dropout: Dropout | None
    max_gigabytes: Annotated[float, Field(ge=0)]
    passages: Literal["max", "softmax"] = "max"


@schema
class HistoryConfig:
    """The frozen question vector and a tower over what the learner watched before."""

    name: str
    fields: Fields
    whiten: Literal["none", "soft"]
    history: Literal["none", "mean", "attention"]
    length: Count
    width: Count
    videos: Literal["frozen", "learned"]
    epochs: Annotated[int, Field(ge=0)]
    lr: Annotated[float, Field(gt=0)]
    dropout: Dropout


@schema
class HierarchicalConfig(HistoryConfig):
    """The same with attention within sessions or topics, then across them."""

    history: Literal["attention"]
    units: Literal["sessions", "topics"]
    gap_hours: Annotated[float, Field(gt=0)]
    topic_key: str | None
    n_topics: Count


@schema
class RidgeConfig:
    """Linear towers from the identity, fitted in closed form."""

    name: str
    fields: Fields
    whiten: Literal["none", "soft"]
    neighbours: Count
    neighbour_weight: Annotated[float, Field(ge=0)]
    fit_on: Literal["train", "judged"]
    penalty: Penalty | None
    passages: Passages = "max"


@schema
class TwoStageConfig:
    """A recall, and a rank head over its first videos that weighs evidence."""

    name: str
    recall: Annotated[Any, model_part("two_stage", "two_stage_joint")]
    lexical: Annotated[Any, model_part(only=("bm25",))] | None
    depth: Annotated[int, Field(ge=2)]
    whiten: Literal["none", "soft"]
    fit_on: Literal["train", "judged"]
    penalty: Penalty | None

    @property
    def fields(self) -> list[str]:
        """Fields whose vectors the parts read."""
        parts = (getattr(part, "fields", []) for part in (self.recall, self.lexical))
        return list(dict.fromkeys(name for names in parts for name in names))

    @property
    def vector_fields(self) -> list[str]:
        """Fields whose vectors are loaded."""
        parts = (vector_fields(part) for part in (self.recall, self.lexical) if part is not None)
        return list(dict.fromkeys(name for names in parts for name in names))


@schema
class JointTwoStageConfig(TwoStageConfig):
    """The same with the joint network over query, title and description."""

    rank: Width
    width: Width
    dropout: Dropout


TOWERS_SPACE: SearchSpace = {
    "optimizer.lr": [1e-3, 3e-4, 3e-3],
    "loss.margin": [1.0, 0.7, 1.4],
    "loss.temperature": [0.05, 0.02, 0.1],  # of each, the losses without it draw none
    "model.dropout": [0.2, 0.0, 0.5],
    "optimizer.weight_decay": [0.01, 0.1],
}
RESIDUAL_SPACE: SearchSpace = {
    **TOWERS_SPACE,
    "optimizer.lr": [3e-4, 1e-4, 1e-3],
    "model.dropout": [0.0, 0.1, 0.3],
    "model.rank": [64, 16, 256],
}
RIDGE_SPACE: SearchSpace = {  # beside its penalty, which every trial chooses for itself
    "model.whiten": ["soft", "none"],
    "model.neighbour_weight": [0.3, 0.0],
}
ENCODER_SPACE: SearchSpace = {
    "optimizer.lr": [1e-4, 5e-5, 2e-4],
    "loss.temperature": [0.05, 0.03, 0.1],
    "model.layer_decay": [0.9, 0.7, 1.0],
}
HISTORY_SPACE: SearchSpace = {
    "model.epochs": [5, 3, 8],
    "model.lr": [2e-3, 1e-3, 4e-3],
    "model.dropout": [0.3, 0.1, 0.5],
}
HIERARCHICAL_SPACE: SearchSpace = {**HISTORY_SPACE, "model.units": ["sessions", "topics"]}
TWO_STAGE_SPACE: SearchSpace = {  # beside its penalty, which every trial chooses for itself
    "model.depth": [50, 20, 100],
    "model.whiten": ["soft", "none"],
}
JOINT_SPACE: SearchSpace = {
    "optimizer.lr": [3e-4, 1e-4, 1e-3],
    "model.rank": [16, 8, 32],
    "model.dropout": [0.5, 0.2],
    "optimizer.weight_decay": [1.0, 0.1],
}

OPTIMIZERS.register("adamw", Entry(OptimizerConfig, "dcdt.models.optimizers:adamw"))
OPTIMIZERS.register("nadam", Entry(NAdamConfig, "dcdt.models.optimizers:nadam"))
OPTIMIZERS.register("sgd", Entry(SGDConfig, "dcdt.models.optimizers:sgd"))
MODELS.register("dcdt", Entry(DCDTConfig, "dcdt.models.dual_tower:DualTower", TOWERS_SPACE))
MODELS.register("dcdt_ridge", Entry(RidgeConfig, "dcdt.models.ridge_towers:RidgeTowers", RIDGE_SPACE, FITTED))
MODELS.register("dcdt_residual", Entry(DCDTResidualConfig, "dcdt.models.residual:ResidualTowers", RESIDUAL_SPACE))
MODELS.register("dcdt_encoder", Entry(EncoderConfig, "dcdt.models.encoder:EncoderTowers", ENCODER_SPACE))
MODELS.register("dcdt_history", Entry(HistoryConfig, "dcdt.models.history:HistoryTowers", HISTORY_SPACE, FITTED))
MODELS.register(
    "dcdt_hierarchical",
    Entry(HierarchicalConfig, "dcdt.models.hierarchical:HierarchicalTowers", HIERARCHICAL_SPACE, FITTED),
)
MODELS.register("two_stage", Entry(TwoStageConfig, "dcdt.models.two_stage:TwoStage", TWO_STAGE_SPACE, FITTED))
MODELS.register("two_stage_joint", Entry(JointTwoStageConfig, "dcdt.models.two_stage:JointTwoStage", JOINT_SPACE))
