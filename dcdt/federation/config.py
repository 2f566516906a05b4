"""Schema of what `dcdt.federate` reads beside the configuration of a run."""

from typing import Annotated

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from dcdt.config.validation import Count, Delta, Epsilon, schema, validate


@schema
class FederateJob:
    """Options of `dcdt.federate` beside those of a run."""

    out: Annotated[str, Field(min_length=1, description="name a file or a folder")]
    min_queries: Count
    included: bool
    epsilon: Epsilon | None
    delta: Delta
    clip: Count


def take_federate_job(config: DictConfig) -> tuple[FederateJob, DictConfig]:
    """The part of a configuration that only `dcdt.federate` knows, and the rest."""
    values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    own = {key: values.pop(key) for key in FederateJob.__dataclass_fields__ if key in values}
    return validate(FederateJob, own, ""), OmegaConf.create(values)
