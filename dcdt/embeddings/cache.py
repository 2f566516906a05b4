"""The embedding cache: vectors of texts on disk, by embedding space and text.

A cache folder holds one folder a space (provider, model, dimensions, normalisation) with a `manifest.json` and
append-only shards (`dcdt.embeddings.shards`). Shards are renamed into place under a hash of their content, so a kill
loses at most the unfinished shard, and concurrent writers are safe. docs/embeddings.md explains the format.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcdt.embeddings.shards import MIN_SHARDS_TO_MERGE, Keys, Shard, merge_small, open_shard, text_keys, write_shard
from dcdt.utils.errors import UserError
from dcdt.utils.files import parse_json, read_limited, remove_abandoned, write_json
from dcdt.utils.text import one_line

FORMAT = 1
BLOCK_ROWS = 2048  # vectors checked at a time
Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Space:
    """An embedding space: vectors are comparable only if all four fields agree."""

    provider: str
    model: str
    dimensions: int
    normalisation: str

    @property
    def folder(self) -> str:
        """Name of the space's folder inside a cache."""
        model = re.sub(r"[^A-Za-z0-9.-]+", "-", self.model)
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.provider}_{model}_{self.dimensions}_{digest}"


class VectorCache:
    """Vectors of one space under a cache folder.

    Args:
        root: the cache folder; it may hold several spaces.
        space: the space to read and write.
        remedy: command that fills this cache, for error messages.
        lazy: do not read the shards yet, for a check that reports every bad one.

    Raises:
        UserError: the manifest belongs to another space, or a file is corrupt.
    """

    def __init__(
        self, root: str | Path, space: Space, remedy: str = "python -m dcdt.embed", lazy: bool = False
    ) -> None:
        self.root = Path(root)
        self.folder = self.root / space.folder
        self.space = space
        self.remedy = remedy
        self._check_manifest()
        self._shards: dict[str, Shard] = {}
        self._index: _Index | None = None
        if not lazy:
            self.refresh()

    def refresh(self) -> None:
        """Read the folder again: add the shards of other processes, drop those that were merged."""
        paths = {path.name: path for path in sorted(self.folder.glob("*.safetensors"))}
        shards = {name: shard for name, shard in self._shards.items() if name in paths}
        for name in paths.keys() - shards.keys():
            try:
                shards[name] = open_shard(paths[name], self.space.dimensions, self.remedy)
            except FileNotFoundError:  # merged a moment ago by another process: its vectors are in a newer file
                return self.refresh()
        self._shards = dict(sorted(shards.items()))
        self._index = None

    @property
    def shards(self) -> list[Shard]:
        """The files of the cache, by name."""
        return list(self._shards.values())

    def __len__(self) -> int:
        return sum(len(shard.keys) for shard in self.shards)

    def find(self, texts: Sequence[str]) -> Rows:
        """Find the position of each text in the cache (n,), -1 if it is missing."""
        if self._index is None:
            self._index = _Index([shard.keys for shard in self.shards])
        return self._index.find(text_keys(texts))

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Return the distinct texts without a vector, in order of appearance."""
        return list(dict.fromkeys(text for text, position in zip(texts, self.find(texts), strict=True) if position < 0))

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Return the vectors of texts as float32 (n, D), checked, and normalised again after their rounding to fp16.

        Raises:
            UserError: a text has no vector, or a stored vector is not finite or not of length 1.
        """
        positions = self.find(texts)
        if (positions < 0).any():
            raise UserError(self._missing_message(int((positions < 0).sum()), len(texts)))
        result = np.empty((len(texts), self.space.dimensions), dtype=np.float32)
        starts = np.cumsum([0, *(len(shard.keys) for shard in self.shards)])
        shard_of = np.searchsorted(starts, positions, side="right") - 1
        for i, shard in enumerate(self.shards):
            rows = np.flatnonzero(shard_of == i)
            if len(rows):
                try:
                    result[rows] = shard.vectors()[positions[rows] - starts[i]]
                except FileNotFoundError:  # merged by another process meanwhile
                    self.refresh()
                    return self.vectors(texts)
        return check_vectors(
            result, texts, self.space, f"{self.folder}", f"Delete the cache folder, then {self.remedy}"
        )

    def digest(self, texts: Sequence[str]) -> str:
        """Compute a hash of texts with their stored vectors, whatever their order and their shards."""
        positions, start, sums = np.unique(self.find(texts)), 0, np.zeros(self.space.dimensions, dtype=np.int64)
        for shard in self.shards:
            rows = positions[(positions >= start) & (positions < start + len(shard.keys))] - start
            start += len(shard.keys)
            try:
                weights = shard.keys[rows, 0].astype(np.int64) | 1  # a vector counts for its text alone
                sums += np.einsum("i,ij->j", weights, shard.vectors()[rows].view(np.int16), dtype=np.int64)
            except FileNotFoundError:  # merged by another process meanwhile
                self.refresh()
                return self.digest(texts)
        return hashlib.sha256(sums.data).hexdigest()[:16]

    def add(self, texts: Sequence[str], vectors: NDArray[np.floating]) -> None:
        """Append vectors (n, D) of distinct new texts as one shard, atomically.

        Raises:
            UserError: a vector has the wrong width, is not finite, or is not of length 1; or the folder cannot be
                written.
        """
        float_vectors = np.array(vectors, dtype=np.float32)
        advice = "Nothing of them was stored; see what the embedder answers."
        rounded = check_vectors(float_vectors, texts, self.space, "the embedder", advice).astype(np.float16)
        self.prepare()
        with self._writing():
            path = write_shard(self.folder, text_keys(texts), rounded)
        self._shards[path.name] = open_shard(path, self.space.dimensions, self.remedy)
        self._shards = dict(sorted(self._shards.items()))
        self._index = None

    def prepare(self) -> None:
        """Make the folder and its manifest, so that an unwritable cache fails before texts are embedded.

        Raises:
            UserError: the folder cannot be written.
        """
        path = self.folder / "manifest.json"
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_abandoned(self.folder)
            if not path.exists():
                write_json(path, {"format": FORMAT, **asdict(self.space), "dtype": "float16"})

    def merge(self, min_shards: int = MIN_SHARDS_TO_MERGE) -> int:
        """Merge small shards if there are at least `min_shards`; return the number of files removed.

        Raises:
            UserError: the folder cannot be written.
        """
        with self._writing():
            removed = merge_small(self.folder, self.shards, min_shards)
        if removed:
            self.refresh()
        return removed

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror}); what it held is kept.\n"
                "Free some space or name another folder: data.cache=FOLDER"
            ) from error

    def _check_manifest(self) -> None:
        path = self.folder / "manifest.json"
        if not path.exists():
            if any(self.folder.glob("*.safetensors")):
                raise UserError(
                    f"{self.folder} holds vectors but no manifest.json, which names their model.\n"
                    f"Put it back, or delete this folder, then {self.remedy}"
                )
            return
        try:
            manifest = parse_json(read_limited(path))
            if not isinstance(manifest, dict):
                raise ValueError("not an object")
        except ValueError as error:
            raise UserError(
                f"{path} is not a readable manifest ({error}).\nPut it back, or delete its folder, then {self.remedy}"
            ) from error
        expected = {"format": FORMAT, **asdict(self.space)}
        for key, value in expected.items():
            if manifest.get(key) != value:
                raise UserError(
                    f"{path}: {key} is {manifest.get(key)!r}, but the configuration asks for {value!r}.\n"
                    f"These vectors are of another model. Choose the embedder that made them, or delete the folder, "
                    f"then {self.remedy}"
                )

    def _missing_message(self, missing: int, total: int) -> str:
        others = sorted(path.parent.name for path in self.root.glob("*/manifest.json") if path.parent != self.folder)
        hint = f" The cache holds other spaces: {', '.join(others)}." if others else ""
        return f"{missing} of {total} texts have no vector in {self.folder}.{hint}\nRun: {self.remedy}"


class _Index:
    """Index of the concatenated keys of several shards: sorted by the first eight bytes, compared by all sixteen."""

    def __init__(self, keys: Sequence[Keys]) -> None:
        self.keys = np.concatenate([np.zeros((0, 2), np.uint64), *keys])  # (n, 2)
        self.order = np.argsort(self.keys[:, 0], kind="stable")
        self.first = self.keys[self.order, 0]

    def find(self, keys: Keys) -> Rows:
        """Find the position of each key (m,), -1 if it is missing."""
        positions = np.full(len(keys), -1, dtype=np.int64)
        pending = np.argsort(keys[:, 0]) if len(self.keys) else np.zeros(0, np.int64)  # sorted: faster with CPU caches
        candidate = np.searchsorted(self.first, keys[pending, 0])
        while len(pending):  # once, unless two texts share eight bytes of their hash
            is_match = candidate < len(self.first)
            is_match[is_match] = self.first[candidate[is_match]] == keys[pending[is_match], 0]
            pending, candidate = pending[is_match], candidate[is_match]
            row = self.order[candidate]
            is_equal = self.keys[row, 1] == keys[pending, 1]
            positions[pending[is_equal]] = row[is_equal]
            pending, candidate = pending[~is_equal], candidate[~is_equal] + 1
        return positions


def invalid_vectors(vectors: Vectors, space: Space) -> tuple[NDArray[np.bool_], Vectors]:
    """Mark vectors that are not finite, zero or (in an l2 space) off length 1 by 1e-3; return marks, lengths (n,)."""
    norms = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        block = vectors[start : start + BLOCK_ROWS]
        norms[start : start + BLOCK_ROWS] = np.sqrt(np.einsum("nd,nd->n", block, block))
    bad = ~np.isfinite(norms) | (norms < 1e-6)
    if space.normalisation == "l2":
        bad |= np.abs(norms - 1) > 1e-3
    return bad, norms


def check_vectors(vectors: Vectors, texts: Sequence[str], space: Space, source: str, advice: str) -> Vectors:
    """Refuse vectors that are not finite, zero, of another width or (in an l2 space) off length 1 by 1e-3.

    Returns:
        (n, D) float32, in an l2 space exactly normalised, in place.

    Raises:
        UserError: names the first bad text.
    """
    if vectors.ndim != 2 or vectors.shape != (len(texts), space.dimensions):
        raise UserError(f"{source}: vectors of shape {vectors.shape}; ({len(texts)}, {space.dimensions}) is expected.")
    bad, norms = invalid_vectors(vectors, space)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{source}: {int(bad.sum())} of {len(texts)} vectors are zero, not finite or not of length 1; "
            f"the first has length {norms[row]:.4g} (text '{one_line(texts[row])}').\n{advice}"
        )
    if space.normalisation == "l2":
        vectors /= norms[:, None]
    return vectors
