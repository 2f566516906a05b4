"""How near is training to the arithmetic it does?

    python benchmarks/training.py [--queries 50000] [--videos 50000] [--width 1536] [--batch 1024] [--repeats 5]

One epoch through `dcdt.run`'s own Trainer (`setup.train`: drawing, gathering, callbacks, history; the validation at
its end is taken out) against three others, turn by turn in one process:

- compute only: forward, backward and optimizer step of the same model on one batch that was gathered before;
- a bare loop: the same with index batches and gathering, without Lightning;
- a DataLoader that gives single items (query, positive and negatives as vectors), as sentence-transformers has it,
  where every row is encoded.

Both ways of training: explicit negatives with the paper's loss, and in-batch negatives with InfoNCE.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from measured import RESULTS, Row, interleaved, median, ratio, row, write
from synthetic import WIDTH, collection_of, data_of, settings_of, split_of, tables_of
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dcdt import setup
from dcdt.callbacks.logger import RunLogger
from dcdt.config import Settings
from dcdt.data.datamodule import IndexBatches, RankingDataModule
from dcdt.data.tables import Tables
from dcdt.models.pairs import PairRecommender

WAYS = {
    "4 explicit negatives, contrastive": (["sampler=random", "loss=contrastive"], 0.9),
    "in-batch InfoNCE": (["sampler=in_batch", "loss=infonce"], 0.93),
}
CPU = torch.device("cpu")
HELD_OUT = 64  # validation queries: what a validation costs is another question (evaluation.py)


class EpochClock(L.Callback):
    """Seconds of the last epoch of a fit, without its validation."""

    def __init__(self) -> None:
        self.seconds = self._validation = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start."""
        self._started, self._validation = time.perf_counter(), 0.0

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """What follows is not training."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Go on."""
        self._validation = time.perf_counter() - self._paused

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self._started - self._validation


class Watch(RunLogger):
    """A run logger that looks on with a clock."""

    def __init__(self) -> None:
        self.clock = EpochClock()

    def callbacks(self, history: object) -> list[L.Callback]:
        """The clock."""
        return [self.clock]


def framework(settings: Settings, tables: Tables, data: RankingDataModule) -> float:
    """Seconds a sample of an epoch as `dcdt.run` trains."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        setup.train(settings, tables, data, watch, Path(folder) / "last.ckpt")
    return watch.clock.seconds / len(data.sampler.pairs)


def fresh(settings: Settings, tables: Tables, device: torch.device = CPU) -> tuple[PairRecommender, Any, Any]:
    """A model with its optimizer and its schedule."""
    model = setup.make_model(settings, tables).to(device)
    setup.use_threads(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.optimizer.lr, weight_decay=0.01, fused=True)
    return model.train(), optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100_000)


def gathered(tables: Tables, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """What a step computes with: vectors of queries and videos, places, labels and weights."""
    queries = tables.queries[batch["query"]]
    if "columns" in batch:
        return queries, tables.videos[:, batch["columns"]], None, batch["label"], batch["weight"]
    label = torch.zeros(batch["place"].shape)
    label[:, 0] = 1
    return queries, tables.videos[:, batch["distinct"]], batch["place"], label, None


def step(model: PairRecommender, optimizer: Any, schedule: Any, held: tuple) -> None:  # noqa: ANN401
    """Forward, backward, update."""
    queries, videos, place, label, weight = held
    loss = model.loss(model.match(queries, videos, place), label, weight, None).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


def batches(settings: Settings, data: RankingDataModule) -> Iterator[dict[str, Tensor]]:
    """The batches of one epoch."""
    sampler = data.sampler
    return iter(IndexBatches(sampler.pairs, sampler, settings.batch_size, 0, lambda: 0, torch.device("cpu")))


class Items(Dataset):
    """Single training items as vectors: query (D,), its positive and negatives (1 + K, F, D)."""

    def __init__(self, queries: Tensor, videos: Tensor, rows: Tensor) -> None:
        self.queries, self.videos, self.rows = queries, videos, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        query, *videos = self.rows[at].tolist()
        found = torch.stack([self.videos[:, video] for video in videos])
        return self.queries[query].float(), found.float()


def per_item(settings: Settings, tables: Tables, rows: Tensor, steps: int, device: torch.device = CPU) -> float:
    """Seconds a sample with a DataLoader of single items; every row of a batch is encoded."""
    items = Items(tables.queries.cpu(), tables.videos.cpu(), rows)
    model, optimizer, schedule = fresh(settings, tables, device)
    loader = DataLoader(items, settings.batch_size, shuffle=True, drop_last=True)
    started, seen = time.perf_counter(), 0
    for at, (queries, videos) in enumerate(loader):
        if at == steps:
            break
        n, k = videos.shape[:2]
        queries, videos = queries.to(device), videos.to(device)
        fields = videos.flatten(0, 1).transpose(0, 1)  # (F, B (1 + K), D)
        explicit = k > 1
        place = torch.arange(n * k, device=device).reshape(n, k) if explicit else None
        label = torch.zeros(n, k, device=device) if explicit else torch.eye(n, device=device)
        if explicit:
            label[:, 0] = 1
        step(model, optimizer, schedule, (queries, fields, place, label, None))
        seen += n
    return (time.perf_counter() - started) / seen


def measure(name: str, given: argparse.Namespace, collection: Any, split: Any, tables: Tables) -> list[Row]:  # noqa: ANN401
    """The rows of one way of training."""
    overrides, target = WAYS[name]
    settings = settings_of(*overrides, f"batch_size={given.batch}", "trainer.max_epochs=1", f"seed={given.seed}")
    data = data_of(settings, collection, split, tables)
    n, steps = len(data.sampler.pairs), -(-len(data.sampler.pairs) // given.batch)
    first = next(batches(settings, data))
    held = gathered(tables, first)
    drawn = torch.cat([data.sampler.pairs, data.sampler.draw(torch.Generator().manual_seed(0))], dim=1)

    def compute() -> float:
        model, optimizer, schedule = fresh(settings, tables)
        started = time.perf_counter()
        for _ in range(steps):
            step(model, optimizer, schedule, held)
        return (time.perf_counter() - started) / (steps * len(held[0]))

    def bare() -> float:
        model, optimizer, schedule = fresh(settings, tables)
        started = time.perf_counter()
        for batch in batches(settings, data):
            step(model, optimizer, schedule, gathered(tables, batch))
        return (time.perf_counter() - started) / n

    jobs = {
        "compute": compute,
        "bare": bare,
        "framework": lambda: framework(settings, tables, data),
        "items": lambda: per_item(settings, tables, drawn, max(2, steps // 5)),
    }
    seconds = interleaved(jobs, given.repeats)
    speed = {job: 1 / median(found) for job, found in seconds.items()}
    size = f"{len(collection.queries):,} x {len(collection.videos):,}, {tables.width}-d, batch {given.batch}"
    share, loop, items = (
        ratio(seconds, *pair) for pair in (("compute", "framework"), ("compute", "bare"), ("items", "framework"))
    )
    what = f"training, {name}, {size}"
    limit, peer = (
        f"{name}, {speed[job]:.0f} samples/s"
        for name, job in (("compute only", "compute"), ("DataLoader of single items", "items"))
    )
    return [
        row(what, speed["framework"], "samples/s", limit, share, f">= {target}", share >= target),
        row(f"{what}: a bare loop", speed["bare"], "samples/s", limit, loop),
        row(what, speed["framework"], "samples/s", peer, items),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--videos", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="*", type=int, default=[0, 1], help="0: explicit negatives, 1: in-batch")
    parser.add_argument("--out", default=str(RESULTS / "training.json"))
    given = parser.parse_args()
    held_out = min(HELD_OUT, given.queries // 10)
    collection = collection_of(given.queries + 2 * held_out, given.videos)
    split = split_of(collection, held_out)
    tables = tables_of(len(collection.queries), given.videos, given.width)
    rows = [found for at in given.ways for found in measure(list(WAYS)[at], given, collection, split, tables)]
    write(given.out, rows, given.videos)


if __name__ == "__main__":
    main()
