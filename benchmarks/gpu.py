"""How close is training on a GPU to the GPU's limits? Runs only where there is one.

    python benchmarks/gpu.py [--videos 1000000] [--queries 262144] [--batches 1024 4096 16384 65536]

`trainer=gpu` (half-precision tables on the device, bf16, fp32 scores) through `fit.train`, four explicit negatives,
with and without `trainer.compile`, against what is measured in the same run: the rate of a square bf16 product, the
bandwidth of a copy, and a DataLoader of single items on the same GPU, under the same autocast. The roofline of a step
is the longer of its operations at the measured rate and its bytes (gathered vectors, once read and once written) at the
measured bandwidth; beside it stand the shares of either that training reaches. The DataLoader is tried up to a batch of
4,096: it collects items one by one on the CPU, so that steps of larger batches take that much longer to time.
Mining and full ranking are timed at the same catalogue. The device's name is the machine's in the result.

    python benchmarks/gpu.py --count [--videos 50000] [--batches 16 1024]

needs no GPU: it counts, on the device of `tests/separate_device.py`, which takes a GPU's way through the code, the
operations of a training step that a GPU would start as kernels or copies, the bytes that they read and write, and the
values that are read back, for which a GPU is waited for. Nothing is timed. A step is all from the end of one to the end
of the next. An operation that torch starts as several kernels (a product with a bias for each layer, the gradient of a
selection of rows) counts as one.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import torch
from measured import RESULTS, Row, median, row, write
from synthetic import WIDTH, collection_of, data_of, half_tables, settings_of, split_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training import Turns, fresh, item_batches, step, turns

from dcdt.config import Settings
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.tables import Tables
from dcdt.samplers.mining import mine_hard_negatives
from dcdt.training import build

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from separate_device import NAME, register, separate

TOWER, NEGATIVES, FIELDS, POOL, HELD_OUT = 256, 4, 2, 200, 1024
TIMES, SHARE = 10, 0.6  # targets: against single items, of the roofline at the largest batch
WANTED = 50  # kernels of a step, at most
PAPER = (16, 46)  # batch and videos of the paper's preset
WITHOUT_KERNEL = (  # of what the profiler or autograd adds, or that only gives room or another shape
    *("_record_function_enter_new", "_record_function_exit", "detach", "lift_fresh"),
    *("empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view"),
)
ITEMS_UP_TO = 4096  # batch sizes of the DataLoader, which collects them item by item on the CPU


def seconds_of(job: object, repeats: int = 5) -> float:
    """Measure the median seconds of a job on the GPU, after a warm-up."""
    found = []
    for turn in range(-2, repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        job()
        torch.cuda.synchronize()
        if turn >= 0:
            found.append(time.perf_counter() - started)
    return median(found)


def limits() -> tuple[float, float]:
    """Measure operations a second of a square bf16 product, and bytes a second of a copy (read and written)."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    rate = 2 * size**3 / seconds_of(lambda: a @ b)
    room = torch.empty(2**28, device="cuda", dtype=torch.float16)
    other = torch.empty_like(room)
    return rate, 2 * room.numel() * room.itemsize / seconds_of(lambda: other.copy_(room))


def needs(distinct: float, batch: int, width: int) -> tuple[float, float]:
    """Count the least operations (forward, gradients of the weights) and bytes of vectors of a step."""
    encoded = batch + FIELDS * distinct
    operations = 2 * 2 * encoded * width * TOWER + 3 * 2 * distinct * FIELDS * TOWER * TOWER
    return operations, 2 * 2 * encoded * width  # gathered: read and written in half precision


def train(settings: Settings, tables: Tables, data: RankingDataModule) -> float:
    """Seconds a sample in the second epoch, since the first one starts the GPU and compiles.

    The GPU is waited for at the end of a turn, not at every step.
    """
    steps = len(data.sampler.pairs) // settings.batch_size
    found = turns(settings, tables, data, Turns({}, max(1, steps // 2), torch.cuda.synchronize))
    return found.seconds["framework"][-1] / settings.batch_size


def items(settings: Settings, tables: Tables, rows: torch.Tensor, count: int = 4) -> float:
    """Seconds a sample with a DataLoader of single items on the GPU, in bf16 as the Trainer computes."""
    device = torch.device("cuda")
    model, optimizer, schedule = fresh(settings, tables, device)
    stream, cast = item_batches(settings, tables, rows, device), autocast(settings, device)
    step(model, optimizer, schedule, next(stream), cast)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(count):
        step(model, optimizer, schedule, next(stream), cast)
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / (count * settings.batch_size)


def autocast(settings: Settings, device: torch.device) -> torch.autocast:
    """Return the autocast context that Lightning uses for `trainer.precision`; none for full precision."""
    mixed = settings.trainer.precision == "bf16-mixed"
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed, cache_enabled=False)


def shares(what: str, took: float, needed: tuple[float, float], rate: float, bandwidth: float) -> list[Row]:
    """Compare a step with the measured matrix rate and bandwidth, as fractions of each."""
    reached, moved = (amount / took for amount in needed)
    return [
        row(
            f"{what}: matrix rate",
            reached / 1e12,
            "TFLOP/s",
            f"measured, {rate / 1e12:.0f} TFLOP/s",
            reached / rate,
        ),
        row(f"{what}: bandwidth", moved / 1e9, "GB/s", f"measured, {bandwidth / 1e9:.0f} GB/s", moved / bandwidth),
    ]


def training_rows(given: argparse.Namespace, collection: object, split: object, tables: Tables) -> list[Row]:
    """Measure training throughput at every batch size."""
    rate, bandwidth = limits()
    rows = [
        row("bf16 matrix rate", rate / 1e12, "TFLOP/s", "measured"),
        row("memory bandwidth", bandwidth / 1e9, "GB/s", "measured"),
    ]
    for batch in given.batches:
        overrides = ["trainer=gpu", "sampler=random", f"batch_size={batch}", "trainer.max_epochs=2"]
        settings = settings_of(*overrides)
        data = data_of(settings, collection, split, tables)
        drawn = torch.cat([data.sampler.pairs, data.sampler.draw(torch.Generator().manual_seed(0))], dim=1)
        distinct = float(len(drawn[:batch, 1:].unique()))
        needed = needs(distinct, batch, tables.width)
        least = max(needed[0] / rate, needed[1] / bandwidth) / batch
        plain = train(settings, tables, data)
        compiled = train(settings_of(*overrides, "trainer.compile=true"), tables, data)
        best, what = min(plain, compiled), f"training on the GPU, batch {batch:,}"
        last = batch == max(given.batches)
        rows.append(
            row(
                what,
                1 / best,
                "samples/s",
                f"roofline of its arithmetic, {1 / least:.0f} samples/s",
                least / best,
                f">= {SHARE}" if last else "report",
                least / best >= SHARE if last else None,
            )
        )
        rows += shares(what, best * batch, needed, rate, bandwidth)
        rows.append(row(f"{what}: compiled", 1 / compiled, "samples/s", f"not, {1 / plain:.0f}", plain / compiled))
        if batch <= ITEMS_UP_TO:
            single = items(settings, tables, drawn)
            rows.append(
                row(
                    what,
                    1 / best,
                    "samples/s",
                    f"DataLoader of single items, {1 / single:.0f} samples/s",
                    single / best,
                    f">= {TIMES}",
                    single / best >= TIMES,
                )
            )
    return rows


def ranking_rows(given: argparse.Namespace, split: object, collection: object, tables: Tables) -> list[Row]:
    """Measure mining and one validation over the whole catalogue."""
    device, n = torch.device("cuda"), given.videos
    tables.to(torch.device("cpu"))  # mining sends the table block by block, as before a run
    asked, forbidden = tables.queries[:10_000], (torch.arange(min(10_000, len(tables.queries))) % n).unsqueeze(1)
    everything = torch.arange(n)
    mined = seconds_of(lambda: mine_hard_negatives(asked, tables.frozen, everything, forbidden, POOL, device=device), 2)
    settings = settings_of("trainer=gpu", "sampler=random", "trainer.max_epochs=1")
    data = data_of(settings, collection, split, tables)
    model, trainer = build.make_model(settings, tables), build.make_trainer(settings, [])
    ranked = seconds_of(lambda: trainer.validate(model, datamodule=data, verbose=False), 2)
    return [
        row(f"mining, {len(asked):,} queries x {n:,} videos, pool {POOL}", mined, "s", "no other"),
        row(f"full ranking, {HELD_OUT} queries x {n:,} videos, catalogue encoded", ranked, "s", "no other"),
    ]


class Counting(TorchDispatchMode):
    """Counts operations while `on`: those that start a kernel on a GPU, their bytes, and values that are read back."""

    def __init__(self) -> None:
        super().__init__()
        self.on, self.operations, self.bytes, self.reads = False, Counter[str](), 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Do the operation, and count it."""
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [one for one in tree_leaves((args, kwargs, found)) if isinstance(one, torch.Tensor)]
        if not self.on or all(one.device.type != NAME for one in tensors):
            return found
        if name == "_local_scalar_dense":
            self.reads += 1
        elif not func.is_view and name not in WITHOUT_KERNEL:
            self.operations[name] += 1
            self.bytes += sum(one.numel() * one.element_size() for one in tensors)
        return found


class CountStep(L.Callback):
    """Counts the third step of four, when momentum is there, with the batch that is made for it."""

    def __init__(self, counting: Counting) -> None:
        self.counting = counting

    def on_train_batch_end(self, *given: Any) -> None:  # noqa: ANN401
        """Begin at the end of the second, end at that of the third."""
        self.counting.on = given[-1] == 1


def count_rows(batches: list[int], n_videos: int, width: int) -> list[Row]:
    """Count a training step of dcdt with four explicit negatives, at every batch size, and at the paper's."""
    register()
    return [row for case in (PAPER, *((batch, n_videos) for batch in batches)) for row in count(*case, width)]


def count(batch: int, n_videos: int, width: int) -> list[Row]:
    """Count a step as `trainer=gpu` takes it: videos and products in bf16, queries in fp16."""
    n_queries, device = 4 * batch + 2 * HELD_OUT, torch.device(NAME, 0)
    collection = collection_of(n_queries, n_videos)
    settings = settings_of(
        *("trainer=cpu", "trainer.precision=bf16-mixed", "sampler=random", f"batch_size={batch}"),
        "trainer.extra={limit_train_batches:4,limit_val_batches:0}",
    )
    settings.trainer.max_epochs = 1
    tables = half_tables(n_queries, n_videos, width)
    data = data_of(settings, collection, split_of(collection, HELD_OUT), tables)
    tables.videos = tables.videos.bfloat16()
    settings.trainer.accelerator = NAME
    counting = Counting()
    with separate(), counting:
        trainer = build.make_trainer(settings, [CountStep(counting)])
        trainer.strategy._root_device, trainer.strategy.precision_plugin.device = device, NAME
        trainer.fit(build.make_model(settings, tables.to(device)), datamodule=data)
    drawn = torch.cat([data.sampler.pairs, data.sampler.draw(torch.Generator().manual_seed(0))], dim=1)
    least = needs(float(len(drawn[:batch, 1:].unique())), batch, width)[1]
    n, what = counting.operations.total(), f"a training step, batch {batch:,}, {n_videos:,} videos"
    print(f"{what}: {', '.join(f'{name} {k}' for name, k in counting.operations.most_common())}")
    return [
        row(f"{what}: operations", n, "kernels", "wanted", n / WANTED, f"<= {WANTED}", n <= WANTED),
        row(f"{what}: bytes moved", counting.bytes / 1e6, "MB", "its vectors once", counting.bytes / least, "report"),
        row(f"{what}: values read back", counting.reads, "reads", "none wanted", None, "report"),
    ]


def main() -> None:
    """Measure, print, write; one line where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=262_144)
    parser.add_argument("--videos", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--batches", nargs="*", type=int, default=[1024, 4096, 16_384, 65_536])
    parser.add_argument("--out", default=str(RESULTS / "gpu.json"))
    parser.add_argument("--count", action="store_true", help="count operations instead, without a GPU")
    given = parser.parse_args()
    if given.count:
        write(given.out, count_rows(given.batches, given.videos, given.width), given.videos)
        return
    if not torch.cuda.is_available():
        print(f"no GPU that torch {torch.__version__} can use: nothing measured, nothing written")
        return
    n_queries = given.queries + 2 * HELD_OUT
    collection = collection_of(n_queries, given.videos)
    split = split_of(collection, HELD_OUT)
    tables = half_tables(n_queries, given.videos, given.width)
    rows = [*training_rows(given, collection, split, tables), *ranking_rows(given, split, collection, tables)]
    write(given.out, rows, given.videos)


if __name__ == "__main__":
    main()
