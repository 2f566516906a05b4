"""Schema of what `dcdt.federate` reads beside the configuration of a run."""

from typing import Annotated

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from dcdt.config.validation import Count, schema, validate

Epsilon = Annotated[float, Field(ge=0.01, le=1000)]
Delta = Annotated[float, Field(gt=0, lt=0.1)]


@schema
class NoiseConfig:
    """Noise on the sums that leave a school: (epsilon, delta)-differential privacy of each learner."""

    epsilon: Epsilon | None = None
    delta: Delta = 1e-5
    clip: Count = 1


@schema
class FederateJob:
    """Options of `dcdt.federate` beside those of a run."""

    out: Annotated[str, Field(min_length=1, description="name a file or a folder")]
    min_queries: Count
    included: bool
    noise: NoiseConfig


def take_federate_job(config: DictConfig) -> tuple[FederateJob, DictConfig]:
    """The part of a configuration that only `dcdt.federate` knows, and the rest.

    Raises:
        UserError: a value of it is of another type or unknown.
    """
    own = FederateJob.__dataclass_fields__
    values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    rest = OmegaConf.create({key: value for key, value in config.items_ex(resolve=False) if key not in own})
    return validate(FederateJob, {key: values[key] for key in own if key in values}, ""), rest
