"""Schemas of loggers, callbacks and what ends a sweep."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from dcdt.config.checks import at_least, one_of
from dcdt.utils.errors import UserError


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
    extra: list[dict[str, Any]] = field(default_factory=list)

    def check(self) -> None:
        """Raise UserError where a value is out of its range."""
        at_least("callbacks.patience", self.patience, 1)
        if not 0 < self.collapse_cosine <= 1:
            raise UserError(f"callbacks.collapse_cosine is {self.collapse_cosine}; it must be above 0 and at most 1.")
        if self.checkpoint_seconds is not None:
            at_least("callbacks.checkpoint_seconds", self.checkpoint_seconds, 0)


@dataclass
class SweepConfig:
    """What a sweep does beside its jobs."""

    report: bool = True

    def check(self) -> None:
        """Nothing to check."""
