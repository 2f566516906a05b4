"""The embedding cache: vectors of texts on disk, found again by what made them and by the text itself.

A cache folder holds one folder a space (provider, model, dimensions, normalisation) with a `manifest.json` and
append-only shards (`dcdt.embeddings.shards`). Shards appear whole by rename under a name of their content, so a kill
loses at most the shard in the making, and two writers cannot harm each other. docs/embeddings.md says why these files.
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
from dcdt.utils.files import parse_json, write_json
from dcdt.utils.text import one_line

FORMAT = 1
BLOCK_ROWS = 2048  # vectors checked at a time
Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Space:
    """What makes vectors comparable: all four agree, or the vectors do not belong together."""

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
        lazy: do not look at the shards yet, for a check that shall find every bad one.

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
        """Look at the folder again: shards of other processes come in, shards that were merged go."""
        there = {path.name: path for path in sorted(self.folder.glob("*.safetensors"))}
        kept = {name: shard for name, shard in self._shards.items() if name in there}
        for name in there.keys() - kept.keys():
            try:
                kept[name] = open_shard(there[name], self.space.dimensions, self.remedy)
            except FileNotFoundError:  # merged a moment ago by another process: its vectors are in a newer file
                return self.refresh()
        self._shards = dict(sorted(kept.items()))
        self._index = None

    @property
    def shards(self) -> list[Shard]:
        """The files of the cache, by name."""
        return list(self._shards.values())

    def __len__(self) -> int:
        return sum(len(shard.keys) for shard in self.shards)

    def find(self, texts: Sequence[str]) -> Rows:
        """Position of each text in the cache (n,), -1 where it is missing."""
        if self._index is None:
            self._index = _Index([shard.keys for shard in self.shards])
        return self._index.find(text_keys(texts))

    def missing(self, texts: Sequence[str]) -> list[str]:
        """The distinct texts that have no vector yet, in order of appearance."""
        return list(dict.fromkeys(text for text, at in zip(texts, self.find(texts), strict=True) if at < 0))

    def vectors(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts as float32 (n, D), checked, and normalised again after their rounding to fp16.

        Raises:
            UserError: a text has no vector, or a stored vector is not finite or not of length 1.
        """
        positions = self.find(texts)
        if (positions < 0).any():
            raise UserError(self._missing_message(int((positions < 0).sum()), len(texts)))
        result = np.empty((len(texts), self.space.dimensions), dtype=np.float32)
        starts = np.cumsum([0, *(len(shard.keys) for shard in self.shards)])
        shard_of = np.searchsorted(starts, positions, side="right") - 1
        for at, shard in enumerate(self.shards):
            chosen = np.flatnonzero(shard_of == at)
            if len(chosen):
                try:
                    result[chosen] = shard.vectors()[positions[chosen] - starts[at]]
                except FileNotFoundError:  # merged by another process since the last look
                    self.refresh()
                    return self.vectors(texts)
        return check_vectors(
            result, texts, self.space, f"{self.folder}", f"Delete the cache folder, then {self.remedy}"
        )

    def add(self, texts: Sequence[str], vectors: NDArray[np.floating]) -> None:
        """Append vectors (n, D) of distinct new texts as one shard, whole or not at all.

        Raises:
            UserError: a vector has the wrong width, is not finite, or is not of length 1; or the folder cannot be
                written.
        """
        given = np.array(vectors, dtype=np.float32)
        advice = "Nothing of them was stored; see what the embedder answers."
        rounded = check_vectors(given, texts, self.space, "the embedder", advice).astype(np.float16)
        self.prepare()
        with self._writing():
            path = write_shard(self.folder, text_keys(texts), rounded)
        self._shards[path.name] = open_shard(path, self.space.dimensions, self.remedy)
        self._shards = dict(sorted(self._shards.items()))
        self._index = None

    def prepare(self) -> None:
        """Make the folder and its manifest, so that a cache that cannot be written is known before a vector is made.

        Raises:
            UserError: the folder cannot be written.
        """
        path = self.folder / "manifest.json"
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_json(path, {"format": FORMAT, **asdict(self.space), "dtype": "float16"})

    def merge(self, many: int = MIN_SHARDS_TO_MERGE) -> int:
        """Merge small shards where there are at least `many`; returns the number of files removed.

        Raises:
            UserError: the folder cannot be written.
        """
        with self._writing():
            removed = merge_small(self.folder, self.shards, many)
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
                    f"{self.folder} holds vectors but no manifest.json, which says whose they are.\n"
                    f"Put it back, or delete this folder, then {self.remedy}"
                )
            return
        try:
            manifest = parse_json(path.read_text(encoding="utf-8"))
            if not isinstance(manifest, dict):
                raise ValueError("not an object")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is not a readable manifest ({error}). Delete {self.folder}, then {self.remedy}"
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
        held = f" The cache holds other spaces: {', '.join(others)}." if others else ""
        return f"{missing} of {total} texts have no vector in {self.folder}.{held}\nRun: {self.remedy}"


class _Index:
    """Keys of several shards, one after the other, found by their first eight bytes and compared by all sixteen."""

    def __init__(self, keys: Sequence[Keys]) -> None:
        self.keys = np.concatenate([np.zeros((0, 2), np.uint64), *keys])  # (n, 2)
        self.order = np.argsort(self.keys[:, 0], kind="stable")
        self.first = self.keys[self.order, 0]

    def find(self, wanted: Keys) -> Rows:
        """Position of each wanted key (m,), -1 where it is not there."""
        positions = np.full(len(wanted), -1, dtype=np.int64)
        pending = np.argsort(wanted[:, 0]) if len(self.keys) else np.zeros(0, np.int64)  # sorted: kind to the caches
        place = np.searchsorted(self.first, wanted[pending, 0])
        while len(pending):  # once, unless two texts share eight bytes of their hash
            alike = place < len(self.first)
            alike[alike] = self.first[place[alike]] == wanted[pending[alike], 0]
            pending, place = pending[alike], place[alike]
            at = self.order[place]
            found = self.keys[at, 1] == wanted[pending, 1]
            positions[pending[found]] = at[found]
            pending, place = pending[~found], place[~found] + 1
        return positions


def check_vectors(vectors: Vectors, texts: Sequence[str], space: Space, source: str, advice: str) -> Vectors:
    """Refuse vectors that are not finite, zero, of another width or (where l2 is promised) off length 1 by 1e-3.

    Returns:
        (n, D) float32, exactly normalised, in place, where the space promises l2.

    Raises:
        UserError: names the first bad text.
    """
    if vectors.ndim != 2 or vectors.shape != (len(texts), space.dimensions):
        raise UserError(f"{source}: vectors of shape {vectors.shape}; ({len(texts)}, {space.dimensions}) is expected.")
    norms = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK_ROWS):
        part = vectors[start : start + BLOCK_ROWS]
        norms[start : start + BLOCK_ROWS] = np.sqrt(np.einsum("nd,nd->n", part, part))
    bad = ~np.isfinite(norms) | (norms < 1e-6)
    if space.normalisation == "l2":
        bad |= np.abs(norms - 1) > 1e-3
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{source}: {int(bad.sum())} of {len(texts)} vectors are zero, not finite or not of length 1; "
            f"the first has length {norms[row]:.4g} (text '{one_line(texts[row])}').\n{advice}"
        )
    if space.normalisation == "l2":
        vectors /= norms[:, None]
    return vectors
