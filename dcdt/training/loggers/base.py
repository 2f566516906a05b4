"""The interface of a run's logger: started, given curves while the model trains, closed on every path."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning import Callback

    from dcdt.training.callbacks.history import History
    from dcdt.training.outcome import Outcome


class RunLogger:
    """A logger that logs nothing: the run leaves its files alone."""

    def start(self, simulated: list[str], resuming: bool) -> None:
        """Open the run on the logger."""

    def callbacks(self, history: "History") -> "list[Callback]":
        """Callbacks that log each epoch."""
        return []

    def curves(self, history: list[dict[str, float]]) -> None:
        """Log the rows of a whole training, one an epoch."""

    def finish(self, outcome: "Outcome") -> None:
        """Log the results of a finished run."""

    def close(self, status: str, reason: str = "") -> None:
        """Close the run on the logger, with its status and the reason of a failure."""
