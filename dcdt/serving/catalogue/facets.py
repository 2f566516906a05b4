"""What of a catalogue can be clicked to narrow an answer: fields with few values, and ranges of lengths."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dcdt.utils.text import format_number

FIRST = ("series", "level", "language")  # before all others, which come by their names
NOT_FACETS = ("id", "title", "text", "link", "duration_s")
MAX_FACETS, MAX_VALUES = 6, 40
LENGTHS = (("under 5 min", 0, 300), ("5 to 15 min", 300, 900), ("15 to 60 min", 900, 3600), ("over 1 h", 3600, 10**9))


def find_facets(table: pa.Table, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return fields by `name`, each with `values`: a `label`, the number `n` of videos, and the `filter` for them.

    Args:
        table: the columns of all videos.
        kinds: `text`, `number` or `list` of each field.
    """
    facets: dict[Any, dict[str, Any]] = {}  # by values and counts, since a series may be another column too
    for name in sorted(set(kinds) - set(NOT_FACETS), key=lambda name: (name not in FIRST, name != "series", name)):
        column = (pc.list_flatten(table[name]) if kinds[name] == "list" else table[name]).drop_null()
        if not 2 <= pc.count_distinct(column).as_py() <= min(MAX_VALUES, len(column) // 2):
            continue
        counts = [(one["counts"], one["values"]) for one in pc.value_counts(column).to_pylist()]
        found = [(n, value if isinstance(value, str) else format_number(value)) for n, value in counts]
        found.sort(key=lambda item: (-item[0], item[1]))
        if not pc.all(pc.is_in(pa.array([value for _, value in found]), value_set=table["id"])).as_py():  # other videos
            filters = [f"{name}=" + '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' for _, value in found]
            values = [{"label": v[:99], "n": n, "filter": one} for (n, v), one in zip(found, filters, strict=True)]
            facets.setdefault(tuple(found), {"name": name.replace("_", " "), "values": values})
    lengths = []
    for label, low, high in LENGTHS:
        inside = pc.and_(pc.greater_equal(table["duration_s"], low), pc.less(table["duration_s"], high))
        if n := pc.sum(inside).as_py():
            lengths.append({"label": label, "n": n, "filter": f"duration_s>={low},duration_s<{high}"})
    return [*list(facets.values())[:MAX_FACETS], *([{"name": "length", "values": lengths}] if len(lengths) > 1 else [])]
