"""Collections of any size without texts to embed: clustered unit vectors, one related video a query."""

from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from dcdt.config import Settings, config_folder, parse, register_resolvers
from dcdt.config.registry import SAMPLERS, look_up
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.splits import Side, Split
from dcdt.data.tables import Tables
from dcdt.data.types import Collection, Documents, Judgments
from dcdt.embeddings.tables import allocate, normalise_rows
from dcdt.samplers.pool import training_pool
from dcdt.training import build

WIDTH = 1536
BLOCK = 16_384


def clustered(n: int, width: int = WIDTH, seed: int = 0, clusters: int = 256, into: Tensor | None = None) -> Tensor:
    """Make unit vectors (n, width) around `clusters` centres, block by block; in the tensor `into` if given."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, width, generator=torch.Generator().manual_seed(1))
    found = torch.empty(n, width) if into is None else into
    noise = torch.randn(min(n, BLOCK), width, generator=generator)  # drawn once; other blocks have it shifted
    for at, part in enumerate(found.split(BLOCK)):
        chosen = torch.randint(clusters, (len(part),), generator=generator)
        vectors = centres[chosen] + noise[: len(part)].roll(at, dims=1)
        part.copy_(torch.nn.functional.normalize(vectors, dim=-1))
    return found


def settings_of(*overrides: str) -> Settings:
    """Compose settings as the command line does, without a logger and a progress bar."""
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("config", ["logger=csv", "callbacks.progress=false", "trainer=cpu", *overrides])
    return parse(config)


def collection_of(n_queries: int, n_videos: int) -> Collection:
    """Make ids and judgments: the positive of query i is video i, modulo the number of videos."""
    videos = Documents(*_texts("v", n_videos))
    queries = Documents(*_texts("q", n_queries))
    rows = np.arange(n_queries)
    judgments = Judgments(rows, rows % n_videos, np.ones(n_queries, dtype=np.float32))
    return Collection(Path("synthetic"), "synthetic", videos, queries, judgments, {})


def split_of(collection: Collection, held_out: int) -> Split:
    """Make the last queries validation, those before them test, all others training; every video is a candidate."""
    n = len(collection.queries)
    everything = np.ones(len(collection.videos), dtype=bool)

    def side(start: int, stop: int) -> Side:
        inside = (collection.judgments.query >= start) & (collection.judgments.query < stop)
        return Side(np.arange(start, stop), everything, collection.judgments.where(inside))

    train = side(0, n - 2 * held_out)
    pairs = np.stack([train.judgments.query, train.judgments.video], axis=1)
    return Split("query", 0, pairs, train, side(n - held_out, n), side(n - 2 * held_out, n - held_out))


def tables_of(n_queries: int, n_videos: int, width: int = WIDTH) -> Tables:
    """Make random embedding tables of two fields."""
    videos = torch.stack([clustered(n_videos, width, seed) for seed in (2, 3)])
    return Tables(clustered(n_queries, width, 4), videos, videos.sum(0), ["title", "text"])


def half_tables(n_queries: int, n_videos: int, width: int = WIDTH, home: Path | None = None) -> Tables:
    """Make them in half precision, block by block; in a file of the folder `home` if given."""
    queries, videos = allocate((n_queries, width), torch.float16), allocate((2, n_videos, width), torch.float16, home)
    summed = allocate((n_videos, width), torch.float16, home)
    for seed, table in enumerate((queries, *videos)):
        clustered(len(table), width, seed, into=table)
    for start in range(0, n_videos, BLOCK):
        summed[start : start + BLOCK] = videos[:, start : start + BLOCK].float().sum(0)
    return Tables(queries, videos, normalise_rows(summed), ["title", "text"])


def data_of(settings: Settings, collection: Collection, split: Split, tables: Tables) -> RankingDataModule:
    """Make the DataModule as `build.make_datamodule`, without a pair file, which needs texts."""
    build.prepare(settings)
    sampler = look_up(SAMPLERS, settings.sampler.name)(settings.sampler, training_pool(collection, split), tables)
    return RankingDataModule(collection, split, {}, sampler, settings.batch_size, settings.seed, settings.ks)


def _texts(kind: str, n: int) -> tuple[list[str], list[str], list[str], list[dict[str, object]]]:
    ids = [f"{kind}{at}" for at in range(n)]
    return ids, ids, ids, [{} for _ in ids]
