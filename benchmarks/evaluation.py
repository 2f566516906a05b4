"""How close is full-ranking evaluation to the cost of its matrix product and top-k?

    python benchmarks/evaluation.py [--queries 10000] [--videos 100000] [--portions 10]

Every query is ranked among all videos: all metrics, the rate of ties, the best 100 for run.trec. The vectors of the
catalogue (`model=dcdt`, 256-d) are computed before the clock starts, on both sides. Turn by turn, a portion of the
queries each time, so that what else the machine does falls on all alike; ratios are medians over the portions:

- test: the test steps of a run on one side, with what they keep;
- validation: the validation steps, which need no best 100;
- product and top-k: chunks of scores and `torch.topk`, of 100 and of the 10 that the largest cut-off needs.
"""

import argparse

import torch
from measured import RESULTS, Row, interleaved, ratio, row, write
from synthetic import WIDTH, collection_of, data_of, settings_of, split_of, tables_of

from dcdt.data.datamodule import Positions, RankingDataModule
from dcdt.models.ranking import TREC_DEPTH
from dcdt.models.recommender import Recommender
from dcdt.training import build

Chunks = list[torch.Tensor]


@torch.inference_mode()
def test_side(model: Recommender, data: RankingDataModule, chunks: Chunks) -> None:
    """Run the test steps of some queries of the first side."""
    model.on_test_epoch_start()
    for at, positions in enumerate(chunks):
        model.test_step(positions, at, 0)
    model.on_test_epoch_end()


@torch.inference_mode()
def validate(model: Recommender, data: RankingDataModule, chunks: Chunks) -> None:
    """Run the validation steps; the means are computed and not logged."""
    model.on_validation_epoch_start()
    for at, positions in enumerate(chunks):
        model.validation_step(positions, at)
    model._metrics.compute()


@torch.inference_mode()
def product(model: Recommender, data: RankingDataModule, chunks: Chunks, k: int) -> None:
    """Compute the scores and their top k, nothing else."""
    side = data.sides["val"]
    for positions in chunks:
        asked = model.encode_queries(model.tables.queries[side.queries[positions]])
        (asked @ model.video_vectors().T).topk(k)


def ready(n_queries: int, n_videos: int, width: int) -> tuple[Recommender, RankingDataModule]:
    """Make a model with an encoded catalogue and a trainer, and data with `n_queries` validation queries."""
    settings = settings_of("sampler=random")
    collection = collection_of(2 * n_queries + 2, n_videos)
    split = split_of(collection, n_queries)
    tables = tables_of(len(collection.queries), n_videos, width)
    data = data_of(settings, collection, split, tables)
    model = build.make_model(settings, tables)
    trainer = build.make_trainer(settings, [])
    trainer.datamodule = data  # what trainer.test does
    model.trainer = trainer
    model.log_dict = lambda *_, **__: None  # no loop of the trainer runs, which would receive the means
    model.setup("test")
    model.eval()
    with torch.inference_mode():
        model.video_vectors()
    return model, data


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--portions", type=int, default=10)
    parser.add_argument("--out", default=str(RESULTS / "evaluation.json"))
    given = parser.parse_args()
    model, data = ready(given.queries, given.videos, given.width)
    depth, k = min(TREC_DEPTH, given.videos), max(data.ks)
    chunks = list(Positions(data.sides["val"]))
    portions = [chunks[at :: given.portions] for at in range(min(given.portions, len(chunks)))]
    seconds: dict[str, list[float]] = {}
    for portion in [portions[0], *portions]:  # the first one warms up
        jobs = {
            "test": lambda portion=portion: test_side(model, data, portion),
            "validation": lambda portion=portion: validate(model, data, portion),
            "top 100": lambda portion=portion: product(model, data, portion, depth),
            "top 10": lambda portion=portion: product(model, data, portion, k),
        }
        for name, found in interleaved(jobs, 1, warm=0).items():
            seconds.setdefault(name, []).extend(found)
    seconds = {name: found[1:] for name, found in seconds.items()}
    whole = {name: sum(found) for name, found in seconds.items()}
    rows: list[Row] = []
    for name, peer, size in (("test", "top 100", depth), ("validation", "top 10", k)):
        found = ratio(seconds, name, peer)
        what = f"full ranking, {given.queries:,} queries x {given.videos:,} videos, all metrics: {name}"
        against = f"matrix product and torch.topk of {size}, {whole[peer]:.2f} s"
        rows.append(row(what, whole[name], "s", against, found, "<= 1.3", found <= 1.3))
    write(given.out, rows, given.videos)


if __name__ == "__main__":
    main()
