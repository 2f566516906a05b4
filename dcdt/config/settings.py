"""The whole configuration, checked once."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import Annotated, Any, Protocol, runtime_checkable

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationInfo, field_validator, model_validator

from dcdt.config.options import flatten, model_option
from dcdt.config.registry import GROUPS, SINGLE, choose, expand_images
from dcdt.config.renames import normalise
from dcdt.config.validation import schema, validate
from dcdt.utils.errors import UserError

METRICS = ("mrr", "map", "recall", "precision", "hit", "ndcg")


@runtime_checkable
class Named(Protocol):
    """The configuration of an option of a group, an instance of the schema registered under its name."""

    name: str


@schema
class Settings:
    """One checked configuration; every group is an instance of its registered schema."""

    model: Named
    loss: Named
    sampler: Named
    data: Any
    split: Any
    embedder: Any
    trainer: Any
    logger: Any
    optimizer: Any
    callbacks: Any
    sweep: Any
    seed: Annotated[int, Field(ge=0, lt=2**32, description=f"be a whole number from 0 to {2**32 - 1}")]
    trials: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    ks: Annotated[
        list[Annotated[int, Field(strict=True, ge=1)]],
        Field(min_length=1, description="be a list of whole numbers of at least 1, such as [1,5,10]"),
    ]
    primary_metric: str
    outputs: Annotated[str, Field(min_length=1, description="name a folder")]
    experiment_name: str | None = None
    resume: str | None = None
    image_embedder: Any = None

    @field_validator("primary_metric")
    @classmethod
    def _check_metric(cls, value: str, info: ValidationInfo) -> str:
        names = validation_metrics(info.data.get("ks", ()))
        if "ks" in info.data and value not in names:
            raise ValueError(f"choose one of {', '.join(names)}.")
        return value

    @model_validator(mode="after")
    def _check_monitor(self) -> "Settings":
        known, monitor = [*validation_metrics(self.ks), "val/loss", "none"], self.callbacks.monitor
        if monitor is not None and monitor not in known:
            raise UserError(f"callbacks.monitor is {monitor!r}; choose one of {', '.join(known)}, or null.")
        if monitor == "none" and self.callbacks.checkpoint_by == "monitor":
            raise UserError("callbacks.checkpoint_by=monitor needs one; callbacks.monitor is 'none'.")
        return self

    @model_validator(mode="after")
    def _check_sealed(self) -> "Settings":
        if self.split.part == "sealed" and self.experiment_name != "final":
            raise UserError(
                "split.part is 'sealed': only experiment=final scores the sealed quarter, once for a release.\n"
                "Choose split.part=open to compare and tune, or all where nothing is compared any more."
            )
        return self

    @property
    def monitor(self) -> str:
        """What stops training early: a validation metric, val/loss, or none."""
        return str(self.callbacks.monitor or self.primary_metric)

    @property
    def option(self) -> str:
        """Name of the option of conf/model that the model is, or is nearest to; `model.name` is its class."""
        return model_option(asdict(self.model))  # type: ignore[call-overload]

    @property
    def reads_images(self) -> bool:
        """Whether the model, or a part of it, reads pictures."""
        return self.image_embedder is not None and "image" in flatten(asdict(self.model)).values()  # type: ignore[call-overload]

    @property
    def fields(self) -> list[str]:
        """Fields that the model reads; title and text where it reads none."""
        return list(getattr(self.model, "fields", ("title", "text")))


def validation_metrics(ks: Iterable[int]) -> list[str]:
    """Return the names of the metrics of the validation side.

    >>> validation_metrics([5])
    ['val/mrr', 'val/map', 'val/recall@5', 'val/precision@5', 'val/hit@5', 'val/ndcg@5']
    """
    suffixes = [f"@{k}" for k in ks]
    return [f"val/{name}{end}" for name in METRICS for end in ([""] if name in ("mrr", "map") else suffixes)]


def vector_fields(model: Named) -> list[str]:
    """Return the fields of a model whose vectors are loaded: all but transcripts that are read as words."""
    return list(getattr(model, "vector_fields", getattr(model, "fields", ("title", "text"))))


def parse(config: DictConfig) -> Settings:
    """Check a composed configuration against its schemas.

    Raises:
        UserError: a value is missing, has another type, is out of its limits, or is not in the schema.
    """
    try:
        values: Any = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {str(error).splitlines()[0]}") from error
    normalise(values)
    if values.get("image_embedder") is not None:
        values["model"] = expand_images(values.get("model"))
    for group, registry in GROUPS.items():
        part = values.get(group)
        if group == "image_embedder" and part is None:
            continue
        entry = choose(registry, part.get("name") if isinstance(part, dict) else None, group)
        values[group] = validate(entry.schema, part, group)
    values.setdefault("sweep", {})  # which older configurations lack
    for group, entry in SINGLE.items():
        if not isinstance(values.get(group), dict):
            raise UserError(f"{group} is {values.get(group)!r}; give its values as {group}.NAME=VALUE.")
        values[group] = validate(entry.schema, values[group], group)
    return validate(Settings, values, "")
