"""What does Weights & Biases (offline) add to a run, beside logger=csv?

    python benchmarks/studies/logging_overhead.py [--epochs 200] [--repeats 5]

Runs `model=dcdt` on linear_algebra for all epochs in one process with one thread, turn by turn with logger=csv and
logger=wandb, after a first run of each that does not count. A run is all that `dcdt.training.experiment.run` does:
vectors, training, tests, every file, and the W&B run opened, fed with everything that is on by default, and closed.
Prints the ratio of
the medians, that of the pairs, and that of the processor time of this process (W&B's own process beside it not
counted), which a busy machine does not change much.

The file is not called logging.py: that name would hide Python's own module from every script of this folder.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dcdt.config import config_folder, parse, register_resolvers
from dcdt.runs.folder import RunFolder
from dcdt.training.experiment import run
from dcdt.training.loggers import choose_logger


def timed(config: DictConfig, folder: Path) -> tuple[float, float]:
    """Seconds of one run, by the clock and of the processor."""
    started, busy = time.perf_counter(), time.process_time()
    run_folder = RunFolder(folder)
    logger = choose_logger(config, run_folder, ["job"])
    run(parse(config), config, run_folder, logger)
    logger.close("finished")
    return time.perf_counter() - started, time.process_time() - busy


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    register_resolvers()
    torch.set_num_threads(1)
    outputs = Path(tempfile.mkdtemp())
    changes = ["callbacks.progress=false", f"outputs={outputs}", "trainer=cpu", "trainer.threads=1"]
    changes += [f"trainer.max_epochs={given.epochs}", f"callbacks.patience={given.epochs}"]
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        configs = {name: compose("config", [*changes, *extra]) for name, extra in LOGGERS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in configs}
    processor: dict[str, list[float]] = {name: [] for name in configs}
    for repeat in range(-1, given.repeats):
        for name, config in configs.items():
            found, busy = timed(config, outputs / f"{name}_{repeat}")
            if repeat >= 0:
                seconds[name].append(found)
                processor[name].append(busy)
    for name, found in seconds.items():
        print(f"{name}: {statistics.median(found):.2f} s a run ({min(found):.2f} to {max(found):.2f})")
    pairs = [one / other for one, other in zip(seconds["wandb"], seconds["csv"], strict=True)]
    ratio = statistics.median(seconds["wandb"]) / statistics.median(seconds["csv"])
    busy = statistics.median(processor["wandb"]) / statistics.median(processor["csv"])
    of_pairs = statistics.median(pairs)
    print(f"ratio {ratio:.2f}, of pairs {of_pairs:.2f}, of processor time {busy:.2f} (target: at most 1.20)")


LOGGERS = {"csv": ["logger=csv"], "wandb": ["logger=wandb", "logger.mode=offline"]}

if __name__ == "__main__":
    main()
