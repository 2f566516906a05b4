"""What a run tells a logger: opened, curves while it trains, closed on every path."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning import Callback

    from dcdt.training.callbacks.history import History
    from dcdt.training.outcome import Outcome


class RunLogger:
    """No logger beside the files of the run."""

    def start(self, simulated: list[str], resuming: bool) -> None:
        """Nothing to open."""

    def callbacks(self, history: "History") -> "list[Callback]":
        """Nothing looks on while the model trains."""
        return []

    def curves(self, history: list[dict[str, float]]) -> None:
        """Nowhere to send curves."""

    def finish(self, outcome: "Outcome") -> None:
        """Nothing to send."""

    def close(self, status: str, reason: str = "") -> None:
        """Nothing to close."""
