"""The embedding cache: vectors of texts on disk, found again by what made them and by the text itself.

A cache folder holds one folder a space (provider, model, dimensions, normalisation) with a `manifest.json` and
append-only shards `*.safetensors`. A shard has `keys` (n, 16) uint8, the first half of the SHA-256 of each text, and
`vectors` (n, D) float16. Shards appear whole by rename under a name of their content, so a kill loses at most the
shard in the making, and two writers cannot harm each other. Vectors are read through a memory map.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from dcdt.errors import UserError
from dcdt.files import replacing, write_json

FORMAT = 1
Vectors = NDArray[np.float32]
Keys = NDArray[np.void]


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

    Raises:
        UserError: the manifest belongs to another space, or a file is corrupt.
    """

    def __init__(self, root: str | Path, space: Space, remedy: str = "python -m dcdt.embed") -> None:
        self.root = Path(root)
        self.folder = self.root / space.folder
        self.space = space
        self.remedy = remedy
        self._check_manifest()
        self._shards: list[tuple[Keys, NDArray[np.float16]]] = []
        self._known: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Take in shards that appeared since the last look, also those of other processes."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name not in self._known:
                self._shards.append(self._open(path))
                self._known.add(path.name)
        self._keys = np.concatenate([np.zeros(0, "V16"), *(keys for keys, _ in self._shards)])
        self._order = np.argsort(self._keys.view("S16"), kind="stable") if len(self._keys) else np.zeros(0, np.int64)
        self._starts = np.cumsum([0, *(len(keys) for keys, _ in self._shards)])

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Position of each text in the cache (n,), -1 where it is missing."""
        wanted = _keys_of(texts)
        positions = np.full(len(wanted), -1, dtype=np.int64)
        if len(self._keys) and len(wanted):
            held = self._keys.view("S16")[self._order]
            place = np.minimum(np.searchsorted(held, wanted.view("S16")), len(held) - 1)
            found = self._keys[self._order[place]] == wanted
            positions[found] = self._order[place[found]]
        return positions

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
        shard_of = np.searchsorted(self._starts, positions, side="right") - 1
        for shard, (_, vectors) in enumerate(self._shards):
            chosen = np.flatnonzero(shard_of == shard)
            result[chosen] = vectors[positions[chosen] - self._starts[shard]]
        return check_vectors(result, texts, self.space, f"{self.folder}", self.remedy)

    def add(self, texts: Sequence[str], vectors: NDArray[np.floating]) -> None:
        """Append vectors (n, D) of distinct new texts as one shard, whole or not at all.

        Raises:
            UserError: a vector has the wrong width, is not finite, or is not of length 1.
        """
        checked = check_vectors(np.asarray(vectors, dtype=np.float32), texts, self.space, "the embedder", self.remedy)
        keys = _keys_of(texts)
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "manifest.json").exists():
            write_json(self.folder / "manifest.json", {"format": FORMAT, **asdict(self.space), "dtype": "float16"})
        rounded = checked.astype(np.float16)
        name = hashlib.sha256(keys.tobytes() + rounded.tobytes()).hexdigest()[:16]
        with replacing(self.folder / f"{name}.safetensors") as temporary:
            save_file({"keys": keys.view(np.uint8).reshape(-1, 16), "vectors": rounded}, temporary)
        self.refresh()

    def _check_manifest(self) -> None:
        path = self.folder / "manifest.json"
        if not path.exists():
            return
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
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

    def _open(self, path: Path) -> tuple[Keys, NDArray[np.float16]]:
        """Map one shard: the header of safetensors says where its two tensors lie."""
        try:
            with path.open("rb") as file:
                header_size = int.from_bytes(file.read(8), "little")
                if header_size > path.stat().st_size:
                    raise ValueError("the header is longer than the file")
                header = json.loads(file.read(header_size))
            keys, vectors = (_mapped(path, header[name], 8 + header_size) for name in ("keys", "vectors"))
            if keys.shape != (len(vectors), 16) or vectors.shape[1:] != (self.space.dimensions,):
                raise ValueError(f"shapes {keys.shape} and {vectors.shape}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is corrupt ({error}).\nDelete this file, then {self.remedy}; other vectors are kept."
            ) from error
        return np.ascontiguousarray(keys).view("V16").reshape(-1), vectors

    def _missing_message(self, missing: int, total: int) -> str:
        others = sorted(path.parent.name for path in self.root.glob("*/manifest.json") if path.parent != self.folder)
        held = f" The cache holds other spaces: {', '.join(others)}." if others else ""
        return f"{missing} of {total} texts have no vector in {self.folder}.{held}\nRun: {self.remedy}"


def check_vectors(vectors: Vectors, texts: Sequence[str], space: Space, source: str, remedy: str) -> Vectors:
    """Refuse vectors that are not finite, zero, of another width or (where l2 is promised) off length 1 by 1e-3.

    Returns:
        (n, D) float32, exactly normalised where the space promises l2.

    Raises:
        UserError: names the first bad text.
    """
    if vectors.ndim != 2 or vectors.shape != (len(texts), space.dimensions):
        raise UserError(f"{source}: vectors of shape {vectors.shape}; ({len(texts)}, {space.dimensions}) is expected.")
    norms = np.linalg.norm(vectors, axis=1)
    bad = ~np.isfinite(norms) | (norms < 1e-6)
    if space.normalisation == "l2":
        bad |= np.abs(norms - 1) > 1e-3
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{source}: {int(bad.sum())} of {len(texts)} vectors are zero, not finite or not of length 1; "
            f"the first has length {norms[row]:.4g} (text '{texts[row][:60]}').\n"
            f"Delete the cache folder, then {remedy}"
        )
    return vectors / norms[:, None] if space.normalisation == "l2" else vectors


def _mapped(path: Path, entry: dict[str, Any], start: int) -> NDArray[Any]:
    first, last = entry["data_offsets"]
    kind: np.dtype[Any] = np.dtype({"U8": "u1", "F16": "<f2"}[entry["dtype"]])
    shape = tuple(int(size) for size in entry["shape"])
    if last - first != kind.itemsize * int(np.prod(shape)) or start + last > path.stat().st_size:
        raise ValueError("the file is shorter than its header says")
    return np.memmap(path, kind, "r", start + first, shape)


def _keys_of(texts: Sequence[str]) -> Keys:
    digests = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in texts)
    return np.frombuffer(digests, dtype="V16")
