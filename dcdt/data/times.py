"""Times in seconds since 1970, whatever unit a file has them in."""

from collections.abc import Iterable
from pathlib import Path

from dcdt.utils.errors import UserError

MAX_SECONDS = 1e11  # of the year 5138; larger numbers have a finer unit
SECONDS_PER_YEAR = 31_556_952


def to_seconds(number: float, location: str) -> float:
    """Convert a time in seconds, milli-, micro- or nanoseconds, told apart by its size, to seconds.

    Raises:
        UserError: it is not finite, or too large for nanoseconds.

    >>> [to_seconds(number, "a.csv:2") for number in (12, 1700000000, 1700000000500, 1700000000000000000)]
    [12, 1700000000, 1700000000.5, 1700000000.0]
    """
    for unit in (1, 1_000, 1_000_000, 1_000_000_000):
        if abs(number) < unit * MAX_SECONDS:
            return number if unit == 1 else number / unit
    year = f" means the year {1970 + number / SECONDS_PER_YEAR:.0f}" if abs(number) < 1e30 else " is out of range"
    raise UserError(f"{location}: the time {number:g}{year}; give seconds since 1970.")


def refuse_dates(times: Iterable[float], path: Path) -> None:
    """Refuse the times of a file that are all written as 20231114, which as seconds is a day of August 1970.

    Raises:
        UserError: names the first.
    """
    first = None
    for time in times:
        year, month, day = int(time) // 10_000, int(time) // 100 % 100, int(time) % 100
        if not (1900 <= year < 2100 and 1 <= month <= 12 and 1 <= day <= 31):
            return
        first = first or f"{time:.0f} means the year 1970, in seconds; write it as {year}-{month:02}-{day:02}"
    if first:
        raise UserError(f"{path}: the time {first}, or as seconds since 1970.")
