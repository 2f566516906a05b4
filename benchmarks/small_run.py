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
from collections.abc import Iterator
from pathlib import Path

import torch
from measured import RESULTS, Row, interleaved, median, ratio, row, write
from synthetic import settings_of
from torch import Tensor

from dcdt.config import Settings
from dcdt.data.beir import load_collection
from dcdt.data.datamodule import IndexBatches, RankingDataModule
from dcdt.data.splits import make_split
from dcdt.data.tables import Tables
from dcdt.evaluation.ranking import judged_ranks, ranking_metrics, tie_order
from dcdt.losses.distances import euclidean
from dcdt.runs.folder import RunFolder
from dcdt.training import build, fit
from dcdt.training.loggers.base import RunLogger


def job(settings: Settings) -> tuple[Tables, RankingDataModule]:
    """Load the vectors and batches that both sides start from."""
    collection = load_collection(settings.data.path)
    tables = build.load_tables(settings, collection)
    return tables, build.make_datamodule(settings, collection, make_split(collection, settings.split), tables)


def train_raw(
    settings: Settings, tables: Tables, data: RankingDataModule
) -> tuple[torch.nn.Module, dict[str, Tensor], Tensor]:
    """Train in a plain loop; returns the model, its best weights by validation, and the order of ties."""
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
    """MRR of a side on the full ranking."""
    model.eval()
    side = data.sides[name]
    scores = model.encode_queries(model.tables.queries[side.queries]) @ model.encode_videos(model.tables.videos).T
    ranks = judged_ranks(scores, side.judged, ties, side.candidates)
    return float(ranking_metrics(ranks, side.grades, data.collection.positive_grade)["mrr"].mean())


def batches(data: RankingDataModule, settings: Settings, epoch: int) -> Iterator[dict[str, Tensor]]:
    """The batches of one epoch, as the DataModule makes them."""
    pairs, device = torch.from_numpy(data.split.pairs), torch.device("cpu")
    return iter(IndexBatches(pairs, data.sampler, settings.batch_size, settings.seed, lambda: epoch, device))


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
    """Measure one split."""
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
