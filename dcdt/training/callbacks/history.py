"""Loss and validation per epoch, collected in memory and written as history.csv."""

import csv
import io
from pathlib import Path
from typing import Any

import lightning as L

from dcdt.utils.files import write_text


class History(L.Callback):
    """One row an epoch: epoch, train/loss and, where the epoch was validated, every validation metric."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Add what this epoch logged; the hook runs after the epoch's validation."""
        validated = (trainer.current_epoch + 1) % (trainer.check_val_every_n_epoch or 1) == 0
        metrics = {name: value for name, value in trainer.callback_metrics.items() if validated or name == "train/loss"}
        values = {name: float(value) for name, value in metrics.items()}
        self.rows.append({"epoch": trainer.current_epoch, **values})

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, for a run that is resumed."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them from a state."""
        self.rows = state_dict["rows"]


def write_history(path: Path, rows: list[dict[str, float]]) -> None:
    """Write rows as CSV, atomically; nothing where there is no row."""
    if not rows:
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
