"""How do costs grow from a thousand videos to a million?

    python benchmarks/studies/growth.py [--sizes 1000 10000 100000 1000000] [--width 1536]

Synthetic clustered vectors in half precision (`trainer.embedding_dtype=float16`), a process: seconds of a step (batch
1024, four negatives drawn from the whole catalogue), of mining pools of 200 for 256 queries, of a validation of 256
queries (the catalogue is encoded, then every query ranked among all videos), and of building the index that serving
searches (faiss, over the towers' 256-d vectors). Medians of a few repeats one after the other; the index is built
once. Writes docs/images/growth.png beside the result file; a slope is that of a line through the logarithms from 10,000
videos on (1: as the catalogue grows).
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the modules that benchmarks share
from evaluation import validate
from measured import RESULTS, Row, median, row, write
from synthetic import WIDTH, collection_of, data_of, half_tables, settings_of, split_of

from dcdt.data.datamodule import IndexBatches, Positions
from dcdt.models.recommender import Recommender
from dcdt.samplers.mining import mine_hard_negatives
from dcdt.serving.catalogue.approximate import ApproximateIndex
from dcdt.training import build

BATCH, ASKED, POOL = 1024, 256, 200
FROM = 10_000  # below it fixed costs are larger than what grows
NAMES = {
    "train step": "training step of 1024 queries",
    "mining": "mining for 256 queries",
    "evaluation": "validation of 256 queries",
    "index": "building the serving index",
}


def costs(n: int, width: int, repeats: int, index: bool) -> dict[str, float]:
    """Seconds of each part with so many videos."""
    n_queries = 8 * BATCH + 2 * ASKED
    settings = settings_of("sampler=random", f"batch_size={BATCH}", "trainer.embedding_dtype=float16")
    collection = collection_of(n_queries, n)
    tables = half_tables(n_queries, n, width)
    data = data_of(settings, collection, split_of(collection, ASKED), tables)
    model = build.make_model(settings, tables)
    model.trainer = build.make_trainer(settings, [])
    model.trainer.datamodule = data
    model.setup("fit")
    found = {"train step": train_steps(model, data, repeats)}
    asked, everything = tables.queries[:ASKED], torch.arange(n)
    forbidden = (torch.arange(ASKED) % n).unsqueeze(1)
    found["mining"] = timed(lambda: mine_hard_negatives(asked, tables.frozen, everything, forbidden, POOL), repeats)

    def validation() -> None:
        model.train().eval()  # forgets the catalogue's vectors
        validate(model, data, list(Positions(data.sides["val"])))

    found["evaluation"] = timed(validation, repeats)
    if index:
        with torch.inference_mode():
            vectors = model.video_vectors().numpy()
        found["index"] = timed(lambda: ApproximateIndex.build(vectors), 1, warm=0)
    return found


def timed(job: object, repeats: int, warm: int = 1) -> float:
    """Median seconds."""
    seconds = []
    for turn in range(-warm, repeats):
        started = time.perf_counter()
        job()
        if turn >= 0:
            seconds.append(time.perf_counter() - started)
    return median(seconds)


def train_steps(model: Recommender, data: object, repeats: int) -> float:
    """Median seconds of a step with its gathering, after a first epoch that does not count."""
    optimizer, seconds = torch.optim.AdamW(model.parameters(), fused=True), []
    sampler = data.sampler
    model.train()
    model.record_loss = lambda loss, n: None  # which asks a running trainer for the epoch
    for epoch in range(1 + repeats):
        batches = IndexBatches(sampler.pairs, sampler, BATCH, 0, lambda epoch=epoch: epoch, torch.device("cpu"))
        for batch in batches:
            started = time.perf_counter()
            optimizer.zero_grad()
            model.training_step(batch, 0).backward()
            optimizer.step()
            seconds += [time.perf_counter() - started] if epoch else []
    return median(seconds)


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Of the line through the logarithms, from FROM videos on; of all where these are fewer than two."""
    late = [at for at, n in enumerate(sizes) if n >= FROM]
    late = late if len(late) > 1 else range(len(sizes))
    x, y = (np.log([values[at] for at in late]) for values in (sizes, seconds))
    return float(np.polyfit(x, y, 1)[0])


def plot(sizes: list[int], found: dict[str, list[float]], path: Path) -> None:
    """Both axes logarithmic."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for (name, seconds), mark in zip(found.items(), "os^D", strict=False):
        axes.loglog(sizes, seconds, marker=mark, label=f"{NAMES[name]} (slope {slope(sizes, seconds):.2f})")
    axes.set(xlabel="videos in the catalogue", ylabel="seconds", title="Cost growth, 1536-d vectors, 2 cores")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, plot, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="*", type=int, default=[10**3, 10**4, 10**5, 10**6])
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-index", action="store_true", help="leave the serving index out (it needs faiss)")
    parser.add_argument("--out", default=str(RESULTS / "growth.json"))
    parser.add_argument("--image", default=str(RESULTS.parent.parent / "docs" / "images" / "growth.png"))
    given = parser.parse_args()
    found: dict[str, list[float]] = {}
    for n in given.sizes:
        for name, seconds in costs(n, given.width, given.repeats, not given.no_index).items():
            found.setdefault(name, []).append(seconds)
    rows: list[Row] = []
    for name, seconds in found.items():
        against = ", ".join(f"{n:,}: {value:.3g} s" for n, value in zip(given.sizes, seconds, strict=True))
        rows.append(row(f"{NAMES[name]}: slope", slope(given.sizes, seconds), "", against, target="stated"))
    plot(given.sizes, found, Path(given.image))
    write(given.out, rows, max(given.sizes))


if __name__ == "__main__":
    main()
