"""Read interactions, who watched what and when: `interactions.csv` (user_id, item_id, timestamp in seconds)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcdt.data.table_reader import read_rows
from dcdt.data.times import refuse_dates, to_seconds
from dcdt.data.types import Rows
from dcdt.utils.errors import NotApplicable, UserError
from dcdt.utils.text import one_line, parse_number

COLUMNS = ("user_id", "item_id", "timestamp")


@dataclass(frozen=True)
class Interactions:
    """Watches as parallel arrays, by learner, then time, then item id: the order of the file does not matter.

    Attributes:
        users: ids of the learners, ascending.
        user: (I,) position in `users`.
        item: (I,) row of the item.
        time: (I,) seconds; a file may also have milli-, micro- or nanoseconds.
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
    numbers, watches = [], []
    for location, row in read_rows(path):
        user_id, item_id, number = _parse_watch(row, location, items)
        numbers.append(number)
        watches.append((user_id, to_seconds(number, location), item_id))
    if not watches:
        raise UserError(f"{path} holds no interaction; add lines of {','.join(COLUMNS)}, or remove the file.")
    refuse_dates(numbers, path)
    names, times, ids = zip(*sorted(watches), strict=True)
    users, user = np.unique(np.array(names), return_inverse=True)
    item = np.array([items[name] for name in ids], dtype=np.int64)
    return Interactions(users.tolist(), user.reshape(-1).astype(np.int64), item, np.array(times))


def _parse_watch(row: Mapping[str, str], location: str, items: Mapping[str, int]) -> tuple[str, str, float]:
    """Parse learner, item id and time of a line, in whatever unit."""
    missing = [name for name in COLUMNS if name not in row]
    if missing:
        raise UserError(f"{location}: no column {', '.join(missing)}; the first line names {','.join(COLUMNS)}.")
    user, item, timestamp = (row[name].strip() for name in COLUMNS)
    if not user or "\n" in user:
        problem = f"'{one_line(user)}' has several lines" if user else "is empty"
        raise UserError(f"{location}: the user_id {problem}.")
    if item not in items:
        raise UserError(f"{location}: the item id '{one_line(item)}' is not in corpus.jsonl.")
    number = parse_number(timestamp)
    if not math.isfinite(number):
        raise UserError(f"{location}: the timestamp '{one_line(timestamp)}' is not a finite number; give seconds.")
    return user, item, number
