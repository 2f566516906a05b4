"""Schemas of the trainer, the logger, the callbacks and what ends a sweep."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from dcdt.config.registry import GROUPS, SINGLE, Entry
from dcdt.config.validation import Count, schema
from dcdt.utils.errors import UserError

Amount = Annotated[int, Field(ge=0)]
Project = Annotated[
    str,
    Field(pattern=r"^[^/\\#?%:]{1,128}$", description="be a name of at most 128 characters without any of /\\#?%:"),
]
PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}  # short names


@schema
class TrainerConfig:
    """Options of Lightning's Trainer, and of what it trains with."""

    name: str
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"]
    devices: Any
    precision: Literal["32-true", "bf16-mixed", "16-mixed"]
    max_epochs: Count
    validate_every: Count
    threads: Annotated[int, Field(ge=0, le=1024)]
    strategy: Literal["auto", "ddp"] = "auto"
    num_nodes: Count = 1
    embedding_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    mapped: bool = False
    compile: bool = False
    extra: dict[str, Any] | None = None

    @field_validator("precision", mode="before")
    @classmethod
    def _read_precision(cls, value: Any) -> Any:  # noqa: ANN401
        return PRECISIONS.get(str(value), str(value))

    @field_validator("devices")
    @classmethod
    def _read_devices(cls, value: Any) -> int | str | list[int]:  # noqa: ANN401
        return device_choice(value)

    @model_validator(mode="after")
    def _check(self) -> "TrainerConfig":
        if self.mapped and self.embedding_dtype == "float32":
            raise UserError(
                "trainer.mapped=true holds vectors in half precision; choose trainer.embedding_dtype=float16."
            )
        several = len(self.devices) > 1 if isinstance(self.devices, list) else self.devices not in (1, "auto")
        if self.strategy != "ddp" and (self.num_nodes > 1 or several):
            raise UserError(
                f"trainer.devices is {self.devices} and trainer.num_nodes {self.num_nodes}; trainer={self.name} takes "
                "one device: choose trainer=ddp for several."
            )
        return self


def device_choice(value: Any) -> int | str | list[int]:  # noqa: ANN401 - what a configuration holds
    """Convert `devices` to a number, a list of device numbers, or `auto` for every device.

    Raises:
        UserError: it is something else.

    >>> [device_choice(value) for value in (2, "2", "auto", -1, "0,2", [1, 0])]
    [2, 2, 'auto', 'auto', [0, 2], [1, 0]]
    """
    choice = value
    if isinstance(value, str) and re.fullmatch(r"\s*\d+\s*(,\s*\d+\s*)*,?\s*", value):
        parts = [int(part) for part in value.split(",") if part.strip()]
        choice = parts if "," in value else parts[0]
    if choice in (-1, "-1"):
        choice = "auto"
    numbers = choice if isinstance(choice, list) else [choice]
    valid = bool(numbers) and all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in numbers)
    if choice != "auto" and (not valid or choice == 0 or len(set(numbers)) < len(numbers)):
        raise UserError(
            f"trainer.devices is {value!r}; it must be auto, a whole number of at least 1, or a list of distinct "
            "device numbers such as [0,1]."
        )
    return choice  # type: ignore[no-any-return]


@schema
class LoggerConfig:
    """Options of a logger of curves and tables."""

    name: str
    project: Project = "dcdt"
    entity: str | None = None
    mode: Literal["auto", "online", "offline"] = "auto"
    samples: Amount = 20
    samples_every: Amount = 50
    artifacts: bool = False
    watch: Literal["none", "gradients", "parameters", "all"] = "none"
    watch_steps: Count = 100


@schema
class CallbacksConfig:
    """Options of the callbacks: early stopping, collapse check, progress, checkpoints, and those of the user."""

    patience: Count
    collapse_cosine: Annotated[float, Field(gt=0, le=1)]
    progress: bool
    checkpoint_seconds: Annotated[float, Field(ge=0)] | None = 60.0
    monitor: str | None = None
    checkpoint_by: Literal["primary_metric", "monitor"] = "primary_metric"
    extra: list[dict[str, Any]] = Field(default_factory=list)


@schema
class SweepConfig:
    """Options of a sweep."""

    report: bool = True


for trainer in ("auto", "cpu", "gpu", "ddp"):
    GROUPS["trainer"].register(trainer, Entry(TrainerConfig))
for logger in ("wandb", "csv", "none"):
    GROUPS["logger"].register(logger, Entry(LoggerConfig))
SINGLE.register("callbacks", Entry(CallbacksConfig))
SINGLE.register("sweep", Entry(SweepConfig))
