"""Read interactions, who watched what and when: `interactions.csv` (user_id, item_id, timestamp in seconds)."""

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcdt.data.types import Rows
from dcdt.utils.errors import NotApplicable, UserError
from dcdt.utils.text import one_line

COLUMNS = ("user_id", "item_id", "timestamp")


@dataclass(frozen=True)
class Interactions:
    """Watches as parallel arrays, by learner, then time, then item id: the order of the file does not matter.

    Attributes:
        users: ids of the learners, ascending.
        user: (I,) position in `users`.
        item: (I,) row of the item.
        time: (I,) seconds.
    """

    users: list[str]
    user: Rows
    item: Rows
    time: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.user)


def load_interactions(path: Path, items: Mapping[str, int]) -> Interactions:
    """Read and check a file of interactions.

    Args:
        path: the file; columns beside the three are not read.
        items: row of every item id.

    Raises:
        NotApplicable: there is no such file.
        UserError: a line is invalid, with file and line.
    """
    if not path.exists():
        raise NotApplicable(
            f"the collection has no {path.name}\n"
            f"Add {path} with lines of {','.join(COLUMNS)}, or choose a model that reads questions."
        )
    watches = sorted(
        (user, time, item)
        for location, row in _read_rows(path)
        for user, item, time in [_parse_watch(row, location, items)]
    )
    if not watches:
        raise UserError(f"{path} holds no interaction; add lines of {','.join(COLUMNS)}, or remove the file.")
    names, times, ids = zip(*watches, strict=True)
    users, user = np.unique(np.array(names), return_inverse=True)
    item = np.array([items[name] for name in ids], dtype=np.int64)
    return Interactions(users.tolist(), user.reshape(-1).astype(np.int64), item, np.array(times))


def _read_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Read location and the three columns of each line."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines, strict=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise UserError(f"{path}:1: no column {', '.join(missing)}; the first line names {','.join(COLUMNS)}.")
            columns = [header.index(name) for name in COLUMNS]
            for row in reader:
                number = reader.line_num
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(header):
                    raise UserError(f"{path}:{number}: {len(row)} columns; the header names {len(header)}.")
                yield f"{path}:{number}", [row[column].strip() for column in columns]
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 after line {number} ({error.reason}). Save the file as UTF-8.") from error
    except csv.Error as error:
        raise UserError(f"{path}: not CSV after line {number} ({error}).") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error


def _parse_watch(row: list[str], location: str, items: Mapping[str, int]) -> tuple[str, str, float]:
    """Parse learner, item id and time of a line."""
    user, item, timestamp = row
    if not user:
        raise UserError(f"{location}: the user_id is empty.")
    if item not in items:
        raise UserError(f"{location}: the item id '{one_line(item)}' is not in corpus.jsonl.")
    try:
        time = float(timestamp)
    except ValueError:
        time = math.nan
    if not math.isfinite(time):
        raise UserError(f"{location}: the timestamp '{one_line(timestamp)}' is not a finite number; give seconds.")
    return user, item, time
