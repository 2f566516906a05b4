"""What does a sweep cost beside raw training loops that do the same epochs, validations and saves?

    python benchmarks/sweep.py [--jobs 4] [--epochs 30] [--repeats 3]

Runs `model=dcdt` on linear_algebra over several folds, once through `dcdt.run`'s own functions (Trainer, callbacks,
result files) and once through a plain loop of PyTorch with the same model, batches, validation and checkpoint, turn by
turn in one process with one thread. Prints the ratio of the medians and where the rest goes.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from dcdt.config import Settings, config_folder, parse, register_resolvers
from dcdt.data.beir import load_collection
from dcdt.data.datamodule import IndexBatches, RankingDataModule
from dcdt.data.splits import make_split
from dcdt.data.tables import Tables
from dcdt.evaluation.ranking import judged_ranks, ranking_metrics, tie_order
from dcdt.losses.measures import euclidean
from dcdt.runs.folder import RunFolder
from dcdt.runs.results import summarise, write_results
from dcdt.training import build, fit
from dcdt.training.loggers.base import RunLogger


def job(settings: Settings) -> tuple[Tables, RankingDataModule]:
    """What both sides start from: vectors and batches."""
    collection = load_collection(settings.data.path)
    tables = build.load_tables(settings, collection)
    return tables, build.make_datamodule(settings, collection, make_split(collection, settings.split), tables)


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


def train_raw(
    settings: Settings, tables: Tables, data: RankingDataModule
) -> tuple[torch.nn.Module, dict[str, Tensor], Tensor]:
    """A plain loop: the model, its best weights by validation after every epoch, and how ties are broken."""
    torch.set_num_threads(1)
    model = build.make_model(settings, tables)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.optimizer.lr, weight_decay=0.01, fused=True)
    steps = -(-len(data.split.pairs) // settings.batch_size) * settings.trainer.max_epochs
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    best, weights, ties = -1.0, {}, tie_order(data.collection.videos.ids)
    for epoch in range(settings.trainer.max_epochs):
        model.train()
        for batch in batches(data, settings, epoch):
            rows = torch.cat([batch["video"].unsqueeze(1), batch["negatives"]], dim=1)
            queries = model.encode_queries(tables.queries[batch["query"]]).unsqueeze(1)
            distinct, place = torch.unique(rows, return_inverse=True)
            videos = model.encode_videos(tables.videos[:, distinct])[place]
            label = torch.zeros_like(rows, dtype=torch.float32)
            label[:, 0] = 1
            loss = model.loss(euclidean(queries, videos), label).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        value = validate(model, data, ties, "val")
        if value > best:
            best, weights = value, {name: weight.detach().clone() for name, weight in model.state_dict().items()}
    return model, weights, ties


@torch.no_grad()
def validate(model: torch.nn.Module, data: RankingDataModule, ties: Tensor, name: str) -> float:
    """MRR of a side, full ranking."""
    model.eval()
    side = data.sides[name]
    scores = model.encode_queries(model.tables.queries[side.queries]) @ model.encode_videos(model.tables.videos).T
    ranks = judged_ranks(scores, side.judged, ties, side.candidates)
    return float(ranking_metrics(ranks, side.grades, data.collection.positive_grade)["mrr"].mean())


def batches(data: RankingDataModule, settings: Settings, epoch: int) -> Iterator[dict[str, Tensor]]:
    """The batches of one epoch, as the DataModule makes them."""
    pairs, device = torch.from_numpy(data.split.pairs), torch.device("cpu")
    return iter(IndexBatches(pairs, data.sampler, settings.batch_size, settings.seed, lambda: epoch, device))


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
