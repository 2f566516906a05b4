"""Times in seconds since 1970, whatever unit a file has them in."""

import re
from collections.abc import Iterable
from pathlib import Path

from dcdt.utils.errors import UserError

MAX_SECONDS = 1e11  # of the year 5138; larger numbers have a finer unit
SECONDS_PER_YEAR = 31_556_952
_DATE = re.compile(  # as a number, with or without hours, minutes and seconds
    r"((?:19|20)\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?:([01]\d|2[0-3])(?:([0-5]\d)([0-5]\d)?)?)?"
)


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


def refuse_dates(numbers: Iterable[float], path: Path) -> None:
    """Refuse the times of a file, as it has them, at least half of which are dates such as 20231114 or 202311141200.

    Raises:
        UserError: names the first.
    """
    times = [f"{number:.0f}" for number in numbers if number == number]  # without NaN: what is no number
    dates = [match for match in map(_DATE.fullmatch, times) if match]
    if dates and 2 * len(dates) >= len(times):
        year, month, day, *clock = (part for part in dates[0].groups() if part)
        written = f"{year}-{month}-{day}" + (f"T{clock[0]}:{(clock[1:] or ['00'])[0]}" if clock else "")
        raise UserError(
            f"{path}: the time {dates[0][0]} is a date, not a number of seconds; write it as seconds since 1970.\n"
            f"Tables for dcdt.collection new may also have {written}."
        )
