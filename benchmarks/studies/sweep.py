"""What does a sweep cost beside raw training loops that do the same epochs, validations and saves?

    python benchmarks/studies/sweep.py [--jobs 4] [--epochs 30] [--repeats 3]

Runs `model=dcdt` on linear_algebra over several folds, once through `dcdt.run`'s own functions (Trainer, callbacks,
result files) and once through a plain loop of PyTorch with the same model, batches, validation and checkpoint, turn by
turn in one process with one thread. Prints the ratio of the medians and where the rest goes.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the modules that benchmarks share
from small_run import job, train_raw, validate

from dcdt.config import Settings, config_folder, parse, register_resolvers
from dcdt.runs.folder import RunFolder
from dcdt.runs.results import summarise, write_results
from dcdt.training import build, fit
from dcdt.training.loggers.base import RunLogger


def framework(settings: Settings, folder: Path) -> dict[str, float]:
    """One job as `dcdt.run` does it; seconds by part."""
    clock = Clock()
    tables, data = job(settings)
    clock("prepare")
    trained = fit.train(settings, tables, data, RunLogger(), folder / "last.ckpt")
    clock("train")
    fit.save(trained, settings, [{}], RunFolder(folder))
    reference = build.reference_results(tables, trained.trainer, data)
    clock("zero-shot")
    trained.trainer.test(trained.model, datamodule=data, verbose=False)
    clock("test")
    write_results(
        RunFolder(folder), trained.model.results, summarise(trained.model.results) | summarise(reference), data
    )
    clock("write")
    return clock.parts


def raw(settings: Settings, folder: Path) -> dict[str, float]:
    """The same epochs, validations and saves in a plain loop."""
    clock = Clock()
    tables, data = job(settings)
    clock("prepare")
    model, weights, ties = train_raw(settings, tables, data)
    clock("train")
    model.load_state_dict(weights)
    for side in data.sides:
        validate(model, data, ties, side)
    clock("test")
    torch.save(weights, folder / "raw.ckpt")
    clock("write")
    return clock.parts


class Clock:
    """Seconds since the last call, by name."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, name: str) -> None:
        """Give the time since the last call to `name`."""
        now = time.perf_counter()
        self.parts[name] = self.parts.get(name, 0.0) + now - self.last
        self.last = now


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    register_resolvers()
    torch.set_num_threads(1)
    outputs = Path(tempfile.mkdtemp())
    overrides = ["split=folds", "logger=csv", "callbacks.progress=false", f"outputs={outputs}", "trainer.threads=1"]
    overrides += [f"trainer.max_epochs={arguments.epochs}", f"callbacks.patience={arguments.epochs}"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        settings = parse(compose("config", overrides))
    build.prepare(settings)
    totals: dict[str, list[dict[str, float]]] = {"framework": [], "raw": []}
    for repeat in range(-1, arguments.repeats):  # the first round warms up
        for name, function in (("framework", framework), ("raw", raw)):
            parts: dict[str, float] = {}
            for fold in range(arguments.jobs):
                now = function(replace(settings, split=replace(settings.split, index=fold)), outputs)
                parts = {key: parts.get(key, 0.0) + now.get(key, 0.0) for key in parts | now}
            if repeat >= 0:
                totals[name].append(parts)
    medians = {name: statistics.median(sum(parts.values()) for parts in rounds) for name, rounds in totals.items()}
    for name, rounds in totals.items():
        shares = {key: statistics.median(parts[key] for parts in rounds) / arguments.jobs for key in rounds[0]}
        print(f"{name}: {medians[name] / arguments.jobs:.2f} s a job;", {key: round(v, 3) for key, v in shares.items()})
    print(f"ratio {medians['framework'] / medians['raw']:.2f} (target: at most 1.5)")


if __name__ == "__main__":
    main()
