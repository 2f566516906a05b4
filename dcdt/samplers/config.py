"""Schemas of the samplers."""

from typing import Annotated

from pydantic import Field

from dcdt.config.registry import SAMPLERS, Entry
from dcdt.config.validation import Count, schema

Share = Annotated[float, Field(gt=0, le=1)]


@schema
class RandomSamplerConfig:
    """Negatives drawn evenly from the unrelated videos."""

    name: str
    negatives: Count


@schema
class HardSamplerConfig:
    """Negatives drawn from the most similar unrelated videos."""

    name: str
    negatives: Count
    pool_fraction: Share
    pool_limit: Count


@schema
class InBatchSamplerConfig:
    """The positives of a batch's other queries."""

    name: str
    logq: bool
    gather: bool = True


@schema
class CatalogueSamplerConfig:
    """Every video of training in every batch."""

    name: str


@schema
class WindowSamplerConfig:
    """A window of the frozen ranking, with a guard against unjudged positives."""

    name: str
    negatives: Count
    start: Annotated[int, Field(ge=0)]
    size: Count
    guard: Share


@schema
class DynamicHardSamplerConfig(HardSamplerConfig):
    """Hard negatives, mined again with the current towers."""

    warm_up: Annotated[int, Field(ge=0)]
    every: Count


@schema
class MixedSamplerConfig(HardSamplerConfig):
    """Some hard negatives, some random ones."""

    negatives: Annotated[int, Field(ge=2)]
    hard_share: Annotated[float, Field(gt=0, lt=1)]


SAMPLERS.register("random", Entry(RandomSamplerConfig, "dcdt.samplers.random:RandomSampler"))
SAMPLERS.register("hard", Entry(HardSamplerConfig, "dcdt.samplers.hard:HardSampler"))
SAMPLERS.register("dynamic_hard", Entry(DynamicHardSamplerConfig, "dcdt.samplers.dynamic_hard:DynamicHardSampler"))
SAMPLERS.register("window", Entry(WindowSamplerConfig, "dcdt.samplers.window:WindowSampler"))
SAMPLERS.register("mixed", Entry(MixedSamplerConfig, "dcdt.samplers.mixed:MixedSampler"))
SAMPLERS.register("in_batch", Entry(InBatchSamplerConfig, "dcdt.samplers.in_batch:InBatchSampler"))
SAMPLERS.register("catalogue", Entry(CatalogueSamplerConfig, "dcdt.samplers.catalogue:CatalogueSampler"))
