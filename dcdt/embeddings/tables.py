"""Read the vectors of a collection from the cache into tensors."""

import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dcdt.data.gather import HALVES
from dcdt.data.tables import BLOCK, Tables
from dcdt.data.types import Collection
from dcdt.embeddings.cache import VectorCache
from dcdt.embeddings.config import EmbedderConfig
from dcdt.embeddings.fill import fill
from dcdt.embeddings.providers import space_of
from dcdt.utils.errors import UserError

FROZEN_FIELDS = ("title", "text")


def load_tables(
    collection: Collection,
    fields: Sequence[str],
    embedder: EmbedderConfig,
    cache_folder: str,
    progress: bool = True,
    dtype: torch.dtype = torch.float32,
    mapped: bool = False,
) -> Tables:
    """Vectors of all queries and of every field of all videos; what the cache lacks is embedded first.

    Args:
        collection: texts.
        fields: the model's.
        embedder: makes the vectors that are missing.
        cache_folder: of the vectors.
        progress: whether to show how far embedding is.
        dtype: precision in which the vectors are held; half of it halves the memory.
        mapped: hold the vectors in a file that the system reads as needed, for catalogues beyond the memory.

    Raises:
        UserError: the cache is corrupt or of another model, or what is missing cannot be embedded here.
    """
    frozen = [name for name in FROZEN_FIELDS if name in collection.fields]  # a collection may have no text at all
    field_texts = {name: collection.field_texts(name) for name in dict.fromkeys([*fields, *frozen])}
    asked = collection.queries.texts if collection.has_questions else []
    texts = [*asked, *(text for part in field_texts.values() for text in part)]
    remedy = f"python -m dcdt.embed data=files data.path={collection.path} data.cache={cache_folder}"
    cache = VectorCache(cache_folder, space_of(embedder), remedy)
    fill(cache, texts, embedder, progress)
    width, n = cache.space.dimensions, len(collection.videos)
    home = Path(cache_folder) if mapped else None
    if asked:
        queries = room((len(asked), width), dtype)
        _read(cache, [asked], queries)
    else:
        queries = torch.zeros(1, width, dtype=dtype).expand(len(collection.queries), -1)  # (Q, D)
    videos = room((len(fields), n, width), dtype, home)
    for layer, name in zip(videos, fields, strict=True):
        _read(cache, [field_texts[name]], layer)
    summed = room((n, width), dtype, home)
    _read(cache, [field_texts[name] for name in frozen], summed)
    return Tables(queries, videos, make_unit(summed) if dtype in HALVES else summed, fields)


def room(shape: tuple[int, ...], dtype: torch.dtype, home: Path | None = None) -> Tensor:
    """Room for so many numbers, in memory or in a file of this folder that is gone when nobody uses it any more.

    Raises:
        UserError: the folder has too little space.
    """
    if home is None:
        return torch.empty(shape, dtype=dtype)
    size = math.prod(shape)
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    if free < size * dtype.itemsize:
        raise UserError(
            f"trainer.mapped=true needs {size * dtype.itemsize / 2**30:.1f} GB in {home}, which has {free / 2**30:.1f}."
            "\nMake room, or name another folder: data.cache=FOLDER"
        )
    handle, name = tempfile.mkstemp(prefix=".tables.", suffix=".tmp", dir=home)
    os.close(handle)
    held = torch.from_file(name, shared=True, size=size, dtype=dtype).view(shape)
    os.unlink(name)  # the map keeps it until the tensor goes
    return held


def make_unit(vectors: Tensor) -> Tensor:
    """Bring vectors (N, D) to length 1 in place, block by block."""
    for part in torch.split(vectors, BLOCK):
        part.copy_(nn.functional.normalize(part.float(), dim=-1))
    return vectors


def _read(cache: VectorCache, columns: Sequence[Sequence[str]], table: Tensor) -> None:
    """Fill a table (n, D) with the sum of the vectors of several texts each, block by block."""
    for start in range(0, len(table), BLOCK):
        found = [torch.from_numpy(cache.vectors(texts[start : start + BLOCK])) for texts in columns]
        table[start : start + BLOCK] = found[0] if len(found) == 1 else torch.stack(found).sum(0)
