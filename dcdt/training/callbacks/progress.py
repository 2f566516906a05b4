"""A progress bar over the epochs of a run."""

import lightning as L
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class EpochProgress(L.Callback):
    """A bar over epochs with the latest loss and validation; one update an epoch costs nothing beside training.

    Args:
        monitor: metric to show, such as `val/mrr`.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Open the bar."""
        columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
        self.bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn())
        self.bar.start()
        self.task = self.bar.add_task("", total=trainer.max_epochs, completed=trainer.current_epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Show this epoch's loss and validation."""
        names = {"loss": "train/loss", self.monitor: self.monitor}
        values = {label: trainer.callback_metrics.get(name) for label, name in names.items()}
        text = "  ".join(f"{label} {value:.4f}" for label, value in values.items() if value is not None)
        self.bar.update(self.task, advance=1, description=text)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Close the bar."""
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the terminal is as before."""
        if hasattr(self, "bar"):
            self.bar.stop()
