"""Token ids of a collection's texts, and the output of an encoder's frozen layers, cached by content.

The cache has a folder for each layer of an embedding space, and in it a safetensors file for each part of at most 512
texts of one field: `states` (t, H) float16 of their tokens side by side. Its name is a hash of the texts and a checksum
of the states; a part that has changed since is made again.
"""

import hashlib
import shutil
import zlib
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import torch
from rich.progress import track
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dcdt.data.token_table import TokenTable
from dcdt.data.types import Collection
from dcdt.embeddings.config import EmbedderConfig, LocalEmbedderConfig
from dcdt.embeddings.providers.batching import token_batches
from dcdt.embeddings.providers.division import FrozenLayers, count_frozen
from dcdt.embeddings.providers.local_models import local_space
from dcdt.embeddings.providers.pooling import load_model
from dcdt.embeddings.tables import allocate
from dcdt.utils.errors import UserError
from dcdt.utils.files import atomic_write, remove_abandoned

PART = 512  # texts of a file
LARGEST = torch.finfo(torch.float16).max


def load_tokens(
    collection: Collection,
    fields: Sequence[str],
    embedder: EmbedderConfig,
    cache_folder: str,
    trainable: int,
    max_gigabytes: float,
    progress: bool = True,
    mapped: bool = False,
) -> TokenTable:
    """Read all texts of a collection as tokens, with the output of the frozen layers, which is made if missing.

    Args:
        collection: texts.
        fields: of the videos.
        embedder: the encoder, a local one.
        cache_folder: of the states.
        trainable: number of its layers that are trained, the last ones.
        max_gigabytes: of the states; larger ones are left out, and computed in each batch.
        progress: whether to print their size and the progress.
        mapped: keep the states in a memory-mapped file.

    Raises:
        UserError: the embedder is no local one, has fewer layers or cannot be loaded, or the folder has too little
            space.
    """
    if not isinstance(embedder, LocalEmbedderConfig):
        raise UserError(f"embedder={embedder.name} cannot be trained here; model=dcdt_encoder needs embedder=local.")
    pooled, tokenizer = load_model(embedder)
    n_frozen = count_frozen(pooled.model, trainable, embedder)
    columns = [collection.queries.texts if collection.has_questions else [""] * len(collection.queries)]
    columns += [collection.vector_texts(name) for name in fields]
    number: dict[str, int] = {}
    numbers, parts = [], []
    for column in columns:
        first = len(number)
        numbers.append(torch.tensor([number.setdefault(text, len(number)) for text in column]))
        new = list(number)[first:]
        parts += [new[start : start + PART] for start in range(0, len(new), PART)]
    inputs = [embedder.prefix + text for text in number]
    token_ids = tokenizer(inputs, truncation=True, max_length=embedder.max_tokens)["input_ids"]
    ids = torch.tensor([token for tokens in token_ids for token in tokens], dtype=torch.int32)
    offsets = torch.tensor(list(accumulate(map(len, token_ids), initial=0)))
    by_name = dict(zip(fields, numbers[1:], strict=True))
    table = TokenTable(ids, offsets, numbers[0], by_name, embedder, n_frozen)
    width = pooled.model.config.hidden_size
    gigabytes = len(ids) * width * 2 / 1e9
    is_small = gigabytes <= max_gigabytes
    if progress:
        where = "kept" if is_small else f"over model.max_gigabytes={max_gigabytes:g}, so computed in each batch"
        print(  # noqa: T201 - output of the commands
            f"states of layer {n_frozen} of {n_frozen + trainable}: {len(number):,} texts, {len(ids):,} tokens, "
            f"{gigabytes:.2g} GB, {where}",
            flush=True,
        )
    if is_small:
        folder = Path(cache_folder) / f"{local_space(embedder).folder}_layer-{table.layer}"
        table.states = allocate((len(ids), width), torch.float16, Path(cache_folder) if mapped else None)
        _fill(table, parts, FrozenLayers(pooled.model, table.layer), folder, progress)
    return table


def _fill(
    table: TokenTable, parts: Sequence[Sequence[str]], layers: FrozenLayers, folder: Path, progress: bool
) -> None:
    """Fill the states of a table from the files of its parts; those that are missing are made first."""
    assert table.states is not None
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    firsts, missing = accumulate(map(len, parts), initial=0), []
    for first, texts in zip(firsts, parts, strict=False):
        key = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:32]
        rows = slice(int(table.offsets[first]), int(table.offsets[first + len(texts)]))
        if not _read(folder, key, table.states[rows]):
            missing.append((key, torch.arange(first, first + len(texts)), rows))
    needed = 2 * table.states.shape[1] * sum(rows.stop - rows.start for *_, rows in missing)
    if needed > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"{folder}: the states need {needed / 1e9:.2g} GB; {free / 1e9:.2g} are free.\n"
            "Free some space, or compute them in each batch: model.max_gigabytes=0"
        )
    for key, numbers, rows in track(missing, "frozen layers", disable=not progress):
        _make(table, numbers, layers)
        _write(folder, key, table.states[rows])


def _make(table: TokenTable, texts: Tensor, layers: FrozenLayers) -> None:
    """Compute the states of texts (m,)."""
    assert table.states is not None
    for positions in token_batches(table.lengths(texts).tolist(), table.embedder.batch_tokens):
        rows, mask = table.padded(texts[positions])
        states = layers(table.ids[rows].long(), mask)  # (b, L, H)
        table.states[rows[mask]] = states[mask].clamp(-LARGEST, LARGEST).half()


def _read(folder: Path, key: str, states: Tensor) -> bool:
    """Read a part into its rows of a table, unless it is missing or has changed; whether it was read."""
    for path in folder.glob(f"{key}-*.safetensors"):
        try:
            stored = load_file(path)["states"]
        except (OSError, SafetensorError, KeyError):
            continue
        if stored.shape == states.shape and path.stem == f"{key}-{_checksum(stored)}":
            states.copy_(stored)
            return True
    return False


def _write(folder: Path, key: str, states: Tensor) -> None:
    """Write a part atomically."""
    with atomic_write(folder / f"{key}-{_checksum(states)}.safetensors") as temporary:
        temporary.write_bytes(save({"states": states.contiguous()}))


def _checksum(states: Tensor) -> str:
    return f"{zlib.crc32(states.contiguous().numpy().data):08x}"
