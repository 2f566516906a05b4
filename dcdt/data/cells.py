"""Read the values of cells as exports write them: durations, numbers with thousands, lists in one cell."""

import math
import re
from collections.abc import Collection
from typing import Any

from dcdt.data.table_reader import cell_text
from dcdt.utils.text import parse_number

THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
EMPTY = frozenset({"", "nan", "null", "none", "n/a", "#n/a", "na", "<na>", "nat", "-"})  # as Excel and Python write it
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,3}):([0-5]\d(?:\.\d+)?)")
_UNITS = re.compile(  # PT1H5M6S, 5 min 6 s
    r"(?=.*\d)P?(?:(\d+)\s*d(?:ays?)?)?\s*T?(?:(\d+)\s*h(?:(?:ou)?rs?)?)?\s*(?:(\d+)\s*m(?:in(?:ute)?s?)?)?"
    r"\s*(?:([\d.]+)\s*s(?:ec(?:ond)?s?)?)?",
    re.IGNORECASE,
)


def is_empty(value: Any) -> bool:  # noqa: ANN401 - whatever a cell holds
    """Return whether a cell holds nothing, or a word for it.

    >>> is_empty("NaN"), is_empty(float("nan")), is_empty("Null space")
    (True, True, False)
    """
    return not isinstance(value, list | dict) and cell_text(value).casefold() in EMPTY


def parse_duration(value: Any, in_minutes: bool = False) -> float | None:  # noqa: ANN401 - whatever a cell holds
    """Parse a duration to seconds; None where it is none.

    >>> [parse_duration(text) for text in ("5:06", "1:00:00", "PT5M6S", "1,193", "5 min 6 s", "soon")]
    [306, 3600, 306, 1193, 306, None]
    >>> parse_duration("2.5", in_minutes=True)
    150
    """
    text = cell_text(value)
    seconds = parse_number(text.replace(",", "") if THOUSANDS.fullmatch(text) else text) * (60 if in_minutes else 1)
    for pattern, units in ((_CLOCK, (3600, 60, 1)), (_UNITS, (86_400, 3600, 60, 1))):
        if match := pattern.fullmatch(text):
            seconds = sum(parse_number(part or "0") * unit for part, unit in zip(match.groups(), units, strict=True))
    if not math.isfinite(seconds) or seconds < 0:
        return None
    return int(seconds) if float(seconds).is_integer() else seconds


def parse_list(value: Any) -> list[Any]:  # noqa: ANN401 - whatever a cell holds
    """Split a cell into its items: a list, the text of one as JSON or Python write it, or texts between separators.

    >>> parse_list("algebra, bases"), parse_list('["a", "b"]'), parse_list("a;b|c")
    (['algebra', 'bases'], ['a', 'b'], ['a', 'b', 'c'])
    """
    if isinstance(value, list | tuple):
        return list(value)
    items = (item.strip(" \t\n'\"") for item in re.split(r"[,;|]", str(value).strip().strip("[]")))
    return [item for item in items if item]


def parse_ids(value: Any, known: Collection[str]) -> list[Any]:  # noqa: ANN401 - whatever a cell holds
    """Split a cell into ids, unless the whole of it is a known one.

    >>> parse_ids("a;b", {"a", "b"}), parse_ids("a;b", {"a;b"}), parse_ids(None, {"a"})
    (['a', 'b'], ['a;b'], [])
    """
    is_several = isinstance(value, list) or (isinstance(value, str) and value.strip() not in known)
    return parse_list(value) if is_several else [] if value is None else [value]
