"""The histories of learners by a hash of their ids, so that an answer can use them.

The file holds no id of a learner: each is hashed with a salt of the build. Whoever has the file and an id can still
tell whether that learner is in it, and what was watched; treat it as personal data. Times of watches are not stored.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dcdt.serving.catalogue.row_positions import RowPositions
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.utils.errors import UserError
from dcdt.utils.files import parse_json
from dcdt.utils.text import one_line

LEARNERS, MAX_USER_CHARS = "learners.safetensors", 200
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Watched:
    """The history of a learner, the oldest video first.

    Attributes:
        items: (L,) numbers of the videos watched, among the M videos of the export.
        rows: (M,) row of each of these in the snapshot, -1 where it is gone.
        snapshot: the catalogue.
        units: (L,) unit of each, by the column of a model that tells units apart.
    """

    items: Rows
    rows: Rows
    snapshot: Snapshot
    units: dict[str, Rows]

    def vectors(self, column: str, length: int | None = None) -> NDArray[np.float32]:
        """Vectors (l, W) of the last `length` videos, the newest first, without those that were deleted."""
        rows = self.rows[self.items[-(length or 0) :]][::-1]
        return self.snapshot.vectors_at(rows[rows >= 0], column)

    def last_units(self, column: str, length: int) -> Rows | None:
        """Units (l,) of the videos of `vectors`; None where the model tells none apart."""
        remains = self.rows[self.items[-length:]] >= 0
        return self.units[column][-length:][remains][::-1] if column in self.units else None


class Learners:
    """The histories of a build; the file is read when the first learner is named.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def items(self, user: str, of: str = "items") -> Rows | None:
        """Look up the videos (L,) that a learner watched, or units `of` a column, the oldest first; None if unknown."""
        keys, salt = self._data["keys"], self._salt
        first, second = hash_user(salt, user)
        start, end = np.searchsorted(keys[:, 0], first, "left"), np.searchsorted(keys[:, 0], first, "right")
        matches = np.flatnonzero(keys[start:end, 1] == second)
        if not len(matches):
            return None
        i = int(start + matches[0])
        return np.asarray(self._data[of][self._data["starts"][i] : self._data["starts"][i + 1]], dtype=np.int64)

    @cached_property
    def exported(self) -> RowPositions:
        """The positions of the exported videos in a catalogue."""
        return RowPositions(self._read[1]["ids"])

    def units(self, user: str) -> dict[str, Rows]:
        """Look up the units (L,) of the videos that a known learner watched, by column."""
        names = self._data.keys() - {"keys", "starts", "items"}
        return {name: units for name in names if (units := self.items(user, name)) is not None}

    @property
    def _data(self) -> dict[str, NDArray[Any]]:
        return self._read[0]

    @property
    def _salt(self) -> bytes:
        return bytes.fromhex(self._read[1]["salt"])

    @cached_property
    def _read(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        try:
            with safe_open(self.path, "numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                metadata = parse_json(file.metadata()["facts"])
            _check_arrays(arrays, metadata)
            return arrays, metadata
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path} is missing or corrupt ({one_line(error, 120)}).") from error


def _check_arrays(arrays: dict[str, NDArray[Any]], metadata: dict[str, Any]) -> None:
    keys, starts, items = (arrays[name] for name in ("keys", "starts", "items"))
    bytes.fromhex(metadata["salt"])
    if keys.shape != (len(starts) - 1, 2) or starts.ndim != 1 or items.ndim != 1 or keys.dtype != np.uint64:
        raise ValueError(f"keys {keys.shape}, starts {starts.shape} and items {items.shape} do not fit")
    if starts[0] != 0 or starts[-1] != len(items) or (np.diff(starts) < 0).any():
        raise ValueError("histories that overlap")
    if any(len(values) != len(items) for name, values in arrays.items() if name not in ("keys", "starts")):
        raise ValueError("units of other watches")
    if len(items) and not 0 <= items.min() <= items.max() < len(metadata["ids"]):
        raise ValueError("a watch of a video that is not there")


def save_learners(
    path: Path, users: Sequence[str], starts: Rows, watches: dict[str, Rows], ids: Sequence[str], salt: bytes
) -> None:
    """Write the histories.

    Args:
        path: of the file.
        users: ids of U learners.
        starts: (U + 1,) where the watches of each begin.
        watches: `items`, (I,) rows of the videos watched, those of each learner in order of time; and units by column.
        ids: of the M videos.
        salt: of the hashes.
    """
    keys = np.array([hash_user(salt, user) for user in users], dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    lengths = np.diff(starts)[order]
    moved = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(starts[at], starts[at + 1]) for at in order)])
    arrays: dict[str, NDArray[Any]] = {
        "keys": np.ascontiguousarray(keys[order]),
        "starts": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        **{name: values[moved].astype(np.int32) for name, values in watches.items()},
    }
    save_file(arrays, path, {"facts": json.dumps({"salt": salt.hex(), "ids": list(ids)})})


def hash_user(salt: bytes, user: str) -> tuple[int, int]:
    """Hash the id of a learner to 128 bits."""
    digest = hashlib.sha256(salt + user.encode()).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


def check_user(user: str) -> str:
    """Return the id of a learner, unless it is none.

    Raises:
        UserError: it is empty, too long, or no text.
    """
    if not isinstance(user, str) or not 0 < len(user) <= MAX_USER_CHARS:
        raise UserError(f"the learner's id must be a text of 1 to {MAX_USER_CHARS} characters.")
    return user
