"""What does Lightning add to a small run?

    python benchmarks/small_run.py [--epochs 200] [--repeats 5]

`model=dcdt` on the 46 linear-algebra videos, one thread, with all pairs of the default division (some twenty batches an
epoch) and with the 32 samples of the paper's division (two batches an epoch, so that almost all is overhead):
`fit.train` and `fit.save` (Trainer, early stopping, best weights, collapse alarm, history.csv, checkpoint) against
a plain loop of PyTorch with the same model, batches, validation after every epoch, copy of the weights at every
improvement, and one file at the end. Turn by turn.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from measured import RESULTS, Row, interleaved, median, ratio, row, write
from sweep import job, train_raw
from synthetic import settings_of

from dcdt.config import Settings
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.tables import Tables
from dcdt.runs.folder import RunFolder
from dcdt.training import build, fit
from dcdt.training.loggers.base import RunLogger


def framework(settings: Settings, tables: Tables, data: RankingDataModule, folder: Path) -> None:
    """Train and save as `dcdt.run` does."""
    trained = fit.train(settings, tables, data, RunLogger(), folder / "last.ckpt")
    assert len(trained.history) == settings.trainer.max_epochs
    fit.save(trained, settings, [{}], RunFolder(folder))


def raw(settings: Settings, tables: Tables, data: RankingDataModule, folder: Path) -> None:
    """Train and save in a plain loop."""
    torch.save(train_raw(settings, tables, data)[1], folder / "raw.ckpt")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default=str(RESULTS / "small_run.json"))
    given = parser.parse_args()
    rows = [measure(name, given.epochs, given.repeats) for name in ("query", "paper")]
    write(given.out, rows, 46)


def measure(split: str, epochs: int, repeats: int) -> Row:
    """The row of one division."""
    settings = settings_of(
        f"split={split}", f"trainer.max_epochs={epochs}", f"callbacks.patience={epochs}", "trainer.threads=1"
    )
    build.prepare(settings)
    tables, data = job(settings)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        jobs = {
            "framework": lambda: framework(settings, tables, data, folder),
            "raw": lambda: raw(settings, tables, data, folder),
        }
        seconds = interleaved(jobs, repeats)
    found = ratio(seconds, "framework", "raw")
    batches = -(-len(data.sampler.pairs) // settings.batch_size)
    what = f"small run, split={split}: {epochs} epochs of {batches} batches, {len(data.collection.videos)} videos"
    against = f"a raw loop with the same validations and saves, {median(seconds['raw']):.2f} s"
    return row(what, median(seconds["framework"]), "s", against, found, "<= 2", found <= 2)


if __name__ == "__main__":
    main()
