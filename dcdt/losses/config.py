"""Schemas of the losses."""

from typing import Annotated, Any, Literal

from pydantic import Field

from dcdt.config.registry import LOSSES, Entry, model_part
from dcdt.config.validation import schema

Margin = Annotated[
    float, Field(gt=0, le=2, description="be above 0 and at most 2, the largest distance of unit vectors")
]


@schema
class ContrastiveConfig:
    """Contrastive loss (eq. 7)."""

    name: str
    margin: Margin
    squared: bool


@schema
class InfoNCEConfig:
    """Softmax over a query's columns, with one positive or several."""

    name: str
    positives: Literal["each", "any"]
    temperature: Annotated[float, Field(ge=0.01, le=10)]
    learn_temperature: bool


@schema
class TripletConfig:
    """A positive is to be nearer than a negative by a margin."""

    name: str
    margin: Margin


@schema
class MarginMSEConfig:
    """Distances between positives and negatives as a teacher has them: the frozen cosine, or a model without epochs."""

    name: str
    teacher: Annotated[Any, model_part("two_stage", "two_stage_joint")] | None


LOSSES.register("contrastive", Entry(ContrastiveConfig, "dcdt.losses.contrastive:ContrastiveLoss"))
LOSSES.register("infonce", Entry(InfoNCEConfig, "dcdt.losses.infonce:InfoNCELoss"))
LOSSES.register("triplet", Entry(TripletConfig, "dcdt.losses.triplet:TripletLoss"))
LOSSES.register("margin_mse", Entry(MarginMSEConfig, "dcdt.losses.margin_mse:MarginMSELoss"))
