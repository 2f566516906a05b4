"""What does a rule of early stopping do to training, and how does it do on validation?

    python benchmarks/studies/stopping.py FOLDER [FOLDER ...]

Each FOLDER is a sweep with several values of callbacks.monitor. A row a rule, the mean over its runs (folds and seeds):
the epochs trained, the learning rate of a cosine schedule where training ended as a share of the first, the best epoch,
val/mrr there and in the last epoch, val/loss there and in the last epoch, and the last train/loss. Test takes no part.
"""

import argparse
import math
from pathlib import Path

import numpy as np

from dcdt.reporting.variants import make_variants
from dcdt.runs.reader import Run, read_runs

COLUMNS = {
    "runs": "",
    "epochs": ".1f",
    "learning rate at the end": ".3f",
    "best epoch": ".1f",
    "val/mrr, best": ".3f",
    "val/mrr, last": ".3f",
    "val/loss, best": ".4f",
    "val/loss, last": ".4f",
    "train/loss, last": ".4f",
}


def values(run: Run) -> list[float]:
    """Read the numbers of one run, in the order of the columns after `runs`."""
    epochs, planned = len(run.history), run.config["trainer"]["max_epochs"]
    best, last = run.history[run.cost["best_epoch"]], run.history[-1]
    rate = (1 + math.cos(math.pi * epochs / planned)) / 2
    return [
        *(epochs, rate, run.cost["best_epoch"] + 1),
        *(row[name] for name in ("val/mrr", "val/loss") for row in (best, last)),
        last["train/loss"],
    ]


def rule(run: Run) -> str:
    """Name the rule of a run: its monitor, and whether the checkpoint goes by it too."""
    callbacks = run.config["callbacks"]
    both = callbacks["checkpoint_by"] == "monitor"
    return f"{callbacks['monitor'] or run.config['primary_metric']}{', also for the checkpoint' if both else ''}"


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    print("|", " | ".join(["callbacks.monitor", *COLUMNS]), "|")
    print("|", " | ".join(["---", *["---:"] * len(COLUMNS)]), "|")
    for variant in make_variants(read_runs(parser.parse_args().folders)):
        table = np.array([values(run) for run in variant.runs if run.history])
        if len(table):
            numbers = [len(table), *table.mean(0)]
            cells = [f"{number:{form}}" for number, form in zip(numbers, COLUMNS.values(), strict=True)]
            print("|", " | ".join([rule(variant.runs[0]), *cells]), "|")


if __name__ == "__main__":
    main()
