"""Load the vectors of a collection from the cache into tensors."""

import logging
import math
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dcdt.data.pictures import Picture, open_picture, read_pictures
from dcdt.data.tables import BLOCK, PassageVectors, Tables
from dcdt.data.transcripts import TRANSCRIPT
from dcdt.data.types import Collection
from dcdt.embeddings.cache import VectorCache
from dcdt.embeddings.config import ClipConfig, EmbedderConfig
from dcdt.embeddings.fill import fill
from dcdt.embeddings.providers import space_of
from dcdt.utils.errors import UserError
from dcdt.utils.precision import HALF_DTYPES
from dcdt.utils.shell import override, shell_command

log = logging.getLogger("dcdt")
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
    """Load the vectors of all queries and of every field of all videos; missing ones are embedded first.

    Args:
        collection: texts.
        fields: the model's.
        embedder: makes the vectors that are missing.
        cache_folder: of the vectors.
        progress: whether to show the progress of embedding.
        dtype: of the vectors; half precision halves the memory. With bfloat16, in which a GPU trains, queries and the
            frozen sums, whose cosines rank, are float16: that has three bits more.
        mapped: keep the vectors in a memory-mapped file, for catalogues larger than the memory.

    Raises:
        UserError: the cache is corrupt or of another model, or missing vectors cannot be embedded here.
    """
    frozen = [name for name in FROZEN_FIELDS if name in collection.fields]  # a collection may have no text at all
    field_texts = {name: collection.vector_texts(name) for name in dict.fromkeys([*fields, *frozen])}
    query_texts = collection.queries.texts if collection.has_questions else []
    texts = [*query_texts, *(text for field in field_texts.values() for text in field)]
    folders = override("data.path", collection.path), override("data.cache", cache_folder)
    remedy = shell_command("embed", "data=files", *folders)
    cache = VectorCache(cache_folder, space_of(embedder), remedy)
    fill(cache, texts, embedder, progress)
    width, n = cache.space.dimensions, len(collection.videos)
    map_folder = Path(cache_folder) if mapped else None
    ranked = torch.float16 if dtype == torch.bfloat16 else dtype
    if query_texts:
        queries = allocate((len(query_texts), width), ranked)
        _read_vectors(cache, [query_texts], queries)
    else:
        n_queries = max(1, len(collection.queries))  # a catalogue has none, and what is exported needs an example
        queries = torch.zeros(1, width, dtype=ranked).expand(n_queries, -1)  # (Q, D)
    videos = allocate((len(fields), n, width), dtype, map_folder)
    passages = None
    for layer, name in zip(videos, fields, strict=True):
        if name == TRANSCRIPT and collection.transcripts is not None:
            table = allocate((len(field_texts[name]), width), dtype, map_folder)
            passages = PassageVectors.of(table, collection.passages.offsets.tolist())
            _read_passages(cache, field_texts[name], passages, layer)
        else:
            _read_vectors(cache, [field_texts[name]], layer)
    summed = allocate((n, width), ranked, map_folder)
    _read_vectors(cache, [field_texts[name] for name in frozen], summed)
    frozen_vectors = normalise_rows(summed) if dtype in HALF_DTYPES else summed
    tables = Tables(queries, videos, frozen_vectors, fields, passages)
    tables.digest = cache.digest([*query_texts, *(text for name in frozen for text in field_texts[name])])
    return tables


def load_images(collection: Collection, embedder: ClipConfig, cache_folder: str, progress: bool = True) -> Tables:
    """Load questions and pictures in a space of both; the pictures of a video stand where its passages would.

    A video without a picture has the mean of all vectors, whose similarity is the mean similarity.

    Raises:
        UserError: no video has a picture that can be read, or the vectors cannot be made.
    """

    def check(picture: Picture) -> Picture:
        if cache.missing([picture]):
            open_picture(picture.path)
        return picture

    cache, questions = VectorCache(cache_folder, space_of(embedder)), collection.queries.texts
    pictures, notes = read_pictures(collection.path, collection.videos.row_of, check, progress)
    for note in notes if progress else ():
        log.warning(note)
    keys = [picture for *_, picture in pictures]
    fill(cache, [*questions, *keys], embedder, progress)
    vectors = torch.from_numpy(cache.vectors(keys))  # (P, D)
    video = torch.tensor([collection.videos.row_of[name] for name, *_ in pictures])
    bare = (video.bincount(minlength=len(collection.videos)) == 0).nonzero().flatten()  # videos without a picture
    video, order = torch.cat([video, bare]).sort(stable=True)
    vectors = torch.cat([vectors, vectors.mean(0).expand(len(bare), -1)])[order]
    offsets = [0, *video.bincount().cumsum(0).tolist()]
    means = torch.zeros(len(collection.videos), vectors.shape[1]).index_add(0, video, vectors)
    queries = torch.from_numpy(cache.vectors(questions))
    return Tables(queries, means[None], means, [TRANSCRIPT], PassageVectors.of(vectors, offsets))


def allocate(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None = None) -> Tensor:
    """Allocate an empty tensor, in memory or in a temporary file of a folder, deleted with the last reference.

    Raises:
        UserError: the folder has too little space.
    """
    if folder is None:
        return torch.empty(shape, dtype=dtype)
    size = math.prod(shape)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size * dtype.itemsize:
        raise UserError(
            f"trainer.mapped=true needs {size * dtype.itemsize / 2**30:.1f} GB in {folder}; free: {free / 2**30:.1f}."
            "\nMake room, or name another folder: data.cache=FOLDER"
        )
    handle, name = tempfile.mkstemp(prefix=".tables.", suffix=".tmp", dir=folder)
    os.close(handle)
    tensor = torch.from_file(name, shared=True, size=size, dtype=dtype).view(shape)
    Path(name).unlink(missing_ok=True)  # the map keeps it as long as the tensor
    return tensor


def normalise_rows(vectors: Tensor) -> Tensor:
    """Normalise vectors (N, D) in place, block by block."""
    for block in torch.split(vectors, BLOCK):
        block.copy_(nn.functional.normalize(block.float(), dim=-1))
    return vectors


def _read_vectors(cache: VectorCache, columns: Sequence[Sequence[str]], table: Tensor) -> None:
    """Fill a table (n, D) with the sum of the vectors of several texts each, block by block."""
    for start in range(0, len(table), BLOCK):
        blocks = [torch.from_numpy(cache.vectors(texts[start : start + BLOCK])) for texts in columns]
        table[start : start + BLOCK] = blocks[0] if len(blocks) == 1 else torch.stack(blocks).sum(0)


def _read_passages(cache: VectorCache, texts: Sequence[str], passages: PassageVectors, layer: Tensor) -> None:
    """Fill the vectors of passages (P, D), and a layer (N, D) with the direction of the mean of each video's."""
    for videos, rows in passages.blocks(BLOCK):
        vectors = torch.from_numpy(cache.vectors(texts[rows]))  # (r, D)
        sums = torch.zeros(videos.stop - videos.start, layer.shape[1])
        sums.index_add_(0, passages.video[rows] - videos.start, vectors)
        passages.vectors[rows], layer[videos] = vectors, nn.functional.normalize(sums, dim=-1)
