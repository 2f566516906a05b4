"""How close is training to the cost of its arithmetic?

    python benchmarks/training.py [--queries 50000] [--videos 50000] [--width 1536] [--batch 1024] [--repeats 3]

Epochs through `dcdt.run`'s own Trainer (`fit.train`: drawing, gathering, callbacks, history; the validation at their
end is taken out). After every few batches the Trainer is held up, and as many are computed by the others, so that what
else the machine does falls on all of them alike:

- compute only: forward, backward and optimizer step of the same model on one batch that was gathered before;
- a bare loop: the same with index batches and gathering, without Lightning;
- gathering alone: the vectors of the Trainer's batches, by the means of the Trainer, with nothing computed;
- a DataLoader that gives single items (query, positive and negatives as vectors), as sentence-transformers has it,
  where every row is encoded.

A ratio is the median over these turns. Both ways of training: explicit negatives with the paper's loss, and in-batch
negatives with InfoNCE.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import torch
from measured import RESULTS, Job, Row, median, ratio, row, write
from synthetic import WIDTH, collection_of, data_of, settings_of, split_of, tables_of
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dcdt.config import Settings
from dcdt.data.datamodule import IndexBatches, RankingDataModule
from dcdt.data.gather import Gather
from dcdt.data.tables import Tables
from dcdt.models.pairs import PairRecommender
from dcdt.training import build, fit
from dcdt.training.loggers.base import RunLogger

WAYS = {
    "4 explicit negatives, contrastive": (["sampler=random", "loss=contrastive"], 0.9),
    "in-batch InfoNCE": (["sampler=in_batch", "loss=infonce"], 0.93),
}
CPU, NO_CAST = torch.device("cpu"), nullcontext()
HELD_OUT = 64  # validation queries: what a validation costs is another question (evaluation.py)


class Turns(L.Callback):
    """Seconds a batch of the Trainer and, in turns, of other loops.

    Attributes:
        seconds: name to seconds a batch, one for each turn; `framework` is the Trainer.
        around: seconds of each epoch before its first and after its last batch, without the validation.
    """

    def __init__(self, others: dict[str, Job], every: int, wait: Callable[[], None] | None = None) -> None:
        self.others, self.every, self.wait = others, every, wait  # wait: for a device, at the end of a turn alone
        self.seconds: dict[str, list[float]] = {"framework": [], **{name: [] for name in others}}
        self.around: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clock of the epoch's opening, in which negatives are drawn."""
        self._validation, self._since = 0.0, time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: object, at: int) -> None:
        """Stop that clock at the first batch."""
        if at == 0:
            self._opening = time.perf_counter() - self._since
            self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: object, batch: object, at: int
    ) -> None:
        """After a turn, let the others have theirs."""
        turn = (at + 1) % self.every == 0
        if turn and self.wait is not None:
            self.wait()
        self._ended = time.perf_counter()
        if turn:
            self.seconds["framework"].append((self._ended - self._since) / self.every)
            for name, job in self.others.items():
                self.seconds[name].append(job())
            self._since = self._ended = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """What follows is not training."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Go on."""
        self._validation = time.perf_counter() - self._paused

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """The epoch is over."""
        self.around.append(self._opening + time.perf_counter() - self._ended - self._validation)


class Watch(RunLogger):
    """A run logger that adds a callback."""

    def __init__(self, callback: L.Callback) -> None:
        self.callback = callback

    def callbacks(self, history: object) -> list[L.Callback]:
        """The callback."""
        return [self.callback]


def turns(settings: Settings, tables: Tables, data: RankingDataModule, found: Turns) -> Turns:
    """Train as `dcdt.run` does, with turns of other loops in between."""
    with tempfile.TemporaryDirectory() as folder:
        fit.train(settings, tables, data, Watch(found), Path(folder) / "last.ckpt")
    return found


def fresh(settings: Settings, tables: Tables, device: torch.device = CPU) -> tuple[PairRecommender, Any, Any]:
    """Make a model with its optimizer and schedule."""
    model = build.make_model(settings, tables).to(device)
    build.set_threads(settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.optimizer.lr, weight_decay=0.01, fused=True)
    return model.train(), optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100_000)


def gathered(tables: Tables, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """Gather the inputs of a step: vectors of queries and videos, positions, labels and weights."""
    queries = tables.queries[batch["query"]]
    if "columns" in batch:
        return queries, tables.videos[:, batch["columns"]], None, batch["label"], batch["weight"]
    label = torch.zeros(batch["position"].shape)
    label[:, 0] = 1
    return queries, tables.videos[:, batch["distinct"]], batch["position"], label, None


def step(
    model: PairRecommender,
    optimizer: Any,  # noqa: ANN401
    schedule: Any,  # noqa: ANN401
    held: tuple,
    cast: AbstractContextManager = NO_CAST,
) -> None:
    """Forward, backward, update; `cast` is the autocast of forward and loss."""
    queries, videos, place, label, weight = held
    with cast:
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


def item_batches(
    settings: Settings, tables: Tables, rows: Tensor, device: torch.device = CPU
) -> Iterator[tuple[Tensor, Tensor, Tensor | None, Tensor, None]]:
    """Endless batches of a DataLoader with single items, as `step` takes them: every row is encoded."""
    items = Items(tables.queries.cpu(), tables.videos.cpu(), rows)
    loader = DataLoader(items, settings.batch_size, shuffle=True, drop_last=True)
    while True:
        for queries, videos in loader:
            n, k = videos.shape[:2]
            fields = videos.flatten(0, 1).transpose(0, 1).to(device)  # (F, B (1 + K), D)
            explicit = k > 1
            place = torch.arange(n * k, device=device).reshape(n, k) if explicit else None
            label = torch.zeros(n, k, device=device) if explicit else torch.eye(n, device=device)
            if explicit:
                label[:, 0] = 1
            yield queries.to(device), fields, place, label, None


def endless(settings: Settings, data: RankingDataModule) -> Iterator[dict[str, Tensor]]:
    """Complete index batches, epoch after epoch."""
    while True:
        yield from (batch for batch in batches(settings, data) if len(batch["query"]) == settings.batch_size)


def measure(name: str, given: argparse.Namespace, collection: Any, split: Any, tables: Tables) -> list[Row]:  # noqa: ANN401
    """Measure one way of training."""
    overrides, target = WAYS[name]
    settings = settings_of(*overrides, f"batch_size={given.batch}", f"trainer.max_epochs={given.repeats}")
    data = data_of(settings, collection, split, tables)
    held = gathered(tables, next(batches(settings, data)))
    drawn = torch.cat([data.sampler.pairs, data.sampler.draw(torch.Generator().manual_seed(0))], dim=1)
    model, optimizer, schedule = fresh(settings, tables)
    streams = {
        "compute": itertools.repeat(held),
        "bare": map(lambda batch: gathered(tables, batch), endless(settings, data)),
        "items": item_batches(settings, tables, drawn),
    }

    def job(stream: Iterator[tuple], count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            step(model, optimizer, schedule, next(stream))
        return (time.perf_counter() - started) / count

    gather, indices = Gather(), endless(settings, data)

    def gathering() -> float:
        started = time.perf_counter()
        for batch in itertools.islice(indices, given.every):
            gather(tables.videos, batch["columns"] if "columns" in batch else batch["distinct"])
            tables.queries[batch["query"]]
        return (time.perf_counter() - started) / given.every

    counts = {"compute": given.every, "bare": given.every, "items": 1}
    others = {kind: lambda kind=kind: job(streams[kind], counts[kind]) for kind in streams} | {"gathering": gathering}
    for other in others.values():
        other()  # warm
    found = turns(settings, tables, data, Turns(others, given.every))
    steps = len(data.sampler.pairs) / given.batch
    around = median(found.around) / steps  # of an epoch, shared among its batches
    seconds = {**found.seconds, "framework": [one + around for one in found.seconds["framework"]]}
    speed = {kind: given.batch / median(values) for kind, values in seconds.items()}
    size = f"{len(data.sampler.pairs):,} x {len(collection.videos):,}, {tables.width}-d, batch {given.batch}"
    share, loop = ratio(seconds, "compute", "framework"), ratio(seconds, "compute", "bare")
    items = ratio(seconds, "items", "framework")
    what = f"training, {name}, {size}"
    limit, peer = f"compute only, {speed['compute']:.0f} samples/s", f"{speed['items']:.0f} samples/s"
    alone, whole = (1000 * median(seconds[kind]) for kind in ("gathering", "framework"))
    return [
        row(what, speed["framework"], "samples/s", limit, share, f">= {target}", share >= target),
        row(f"{what}: a bare loop", speed["bare"], "samples/s", limit, loop),
        row(f"{what}: gathering alone", alone, "ms", f"a step of {whole:.1f} ms", alone / whole),
        row(what, speed["framework"], "samples/s", f"DataLoader of single items, {peer}", items),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--videos", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3, help="epochs")
    parser.add_argument("--every", type=int, default=6, help="batches of a turn")
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
