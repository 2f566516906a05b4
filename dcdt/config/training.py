"""Schemas of losses, samplers, optimizer and trainer."""

import re
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from dcdt.config.checks import at_least, below_one, one_of
from dcdt.config.models import typed_part
from dcdt.utils.errors import UserError


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
class OptimizerConfig:
    """AdamW, and the schedule of every optimizer."""

    lr: float = MISSING
    weight_decay: float = MISSING
    schedule: str = MISSING
    name: str = "adamw"
    warmup_steps: float = 0.0

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        if not (self.lr > 0 and self.weight_decay >= 0):  # also where one is not a number
            raise UserError(
                f"optimizer.lr is {self.lr} and optimizer.weight_decay {self.weight_decay}; "
                "lr must be above 0 and weight_decay at least 0."
            )
        one_of("optimizer.schedule", self.schedule, ("cosine", "linear", "constant"))
        if self.warmup_steps < 0 or (self.warmup_steps > 1 and self.warmup_steps != int(self.warmup_steps)):
            raise UserError(
                f"optimizer.warmup_steps is {self.warmup_steps}; it must be a whole number of at least 0, or a "
                "fraction below 1."
            )


@dataclass
class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent."""

    momentum: float = MISSING
    nesterov: bool = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        super().check()
        below_one("optimizer.momentum", self.momentum)
        if self.nesterov and not self.momentum:
            raise UserError("optimizer.nesterov=true needs optimizer.momentum above 0.")


@dataclass
class NAdamConfig(OptimizerConfig):
    """Adam with Nesterov momentum."""

    momentum_decay: float = MISSING

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        super().check()
        at_least("optimizer.momentum_decay", self.momentum_decay, 0)


@dataclass
class TrainerConfig:
    """What Lightning's Trainer is given."""

    name: str = MISSING
    accelerator: str = MISSING
    devices: Any = MISSING
    precision: str = MISSING
    max_epochs: int = MISSING
    validate_every: int = MISSING
    threads: int = MISSING
    strategy: str = "auto"
    num_nodes: int = 1
    tables: str = "float32"
    mapped: bool = False
    compile: bool = False
    extra: dict[str, Any] | None = None

    def check(self) -> None:
        """Bring precision and devices to one form; raise UserError where a value is out of its range."""
        for name in ("max_epochs", "validate_every", "num_nodes"):
            at_least(f"trainer.{name}", getattr(self, name), 1)
        one_of("trainer.accelerator", self.accelerator, ("auto", "cpu", "gpu", "cuda", "mps"))
        one_of("trainer.precision", self.precision, (*PRECISIONS.values(), *PRECISIONS))
        self.precision = PRECISIONS.get(self.precision, self.precision)
        self.devices = device_choice(self.devices)
        one_of("trainer.strategy", self.strategy, ("auto", "ddp"))
        one_of("trainer.tables", self.tables, ("float32", "float16", "bfloat16"))
        if self.mapped and self.tables == "float32":
            raise UserError("trainer.mapped=true holds vectors in half precision; choose trainer.tables=float16.")
        several = len(self.devices) > 1 if isinstance(self.devices, list) else self.devices not in (1, "auto")
        if self.strategy != "ddp" and (self.num_nodes > 1 or several):
            raise UserError(
                f"trainer.devices is {self.devices} and trainer.num_nodes {self.num_nodes}; trainer={self.name} takes "
                "one device: choose trainer=ddp for several."
            )
        at_least("trainer.threads", self.threads, 0)


PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}  # short names


def device_choice(value: Any) -> int | str | list[int]:  # noqa: ANN401 - what a configuration holds
    """What Lightning takes as `devices`, as a number, a list of device numbers, or `auto` for every device.

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


LossConfig = ContrastiveConfig | InfoNCEConfig | TripletConfig | MarginMSEConfig


SamplerConfig = (
    RandomSamplerConfig | HardSamplerConfig | InBatchSamplerConfig | CatalogueSamplerConfig | WindowSamplerConfig
)


LOSSES: dict[str, type] = {
    "contrastive": ContrastiveConfig,
    "infonce": InfoNCEConfig,
    "triplet": TripletConfig,
    "margin_mse": MarginMSEConfig,
}


OPTIMIZERS: dict[str, type] = {"adamw": OptimizerConfig, "nadam": NAdamConfig, "sgd": SGDConfig}


SAMPLERS: dict[str, type] = {
    "random": RandomSamplerConfig,
    "hard": HardSamplerConfig,
    "dynamic_hard": DynamicHardSamplerConfig,
    "window": WindowSamplerConfig,
    "mixed": MixedSamplerConfig,
    "in_batch": InBatchSamplerConfig,
    "catalogue": CatalogueSamplerConfig,
}
