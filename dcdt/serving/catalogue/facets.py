"""What of a catalogue can be clicked to narrow an answer: fields with few values, and ranges of lengths."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dcdt.utils.text import format_number

FIRST = ("series", "level", "language")  # before all others, which come by their names
NOT_FACETS = ("id", "title", "text", "link", "duration_s")
MAX_FACETS, MAX_VALUES, MAX_CHARS = 6, 40, 100
LENGTHS = (("under 5 min", 0, 300), ("5 to 15 min", 300, 900), ("15 to 60 min", 900, 3600), ("over 1 h", 3600, 10**9))


def find_facets(table: pa.Table, kinds: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return fields by `name`, each with `values`: a `label`, the number `n` of videos, and the `filter` for them.

    Args:
        table: the columns of all videos.
        kinds: `text`, `number` or `list` of each field.
    """
    facets: dict[tuple[Any, ...], dict[str, Any]] = {}  # by what they hold, since a series may be another column too
    names = sorted(set(kinds) - set(NOT_FACETS), key=lambda name: (name not in FIRST, name not in FIRST[:1], name))
    for name in names:
        column = (pc.list_flatten(table[name]) if kinds[name] == "list" else table[name]).drop_null()
        if kinds[name] != "number" and pc.all(pc.is_in(column, value_set=table["id"])).as_py():
            continue  # names of other videos
        found = pc.value_counts(column).to_pylist()
        if 2 <= len(found) <= min(MAX_VALUES, len(column) // 2):
            texts = [format_number(one["values"]) if kinds[name] == "number" else one["values"] for one in found]
            quoted = ['"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts]
            values = [
                {"label": text[:MAX_CHARS], "n": one["counts"], "filter": f"{name}={value}"}
                for text, value, one in zip(texts, quoted, found, strict=True)
            ]
            values.sort(key=lambda value: (-value["n"], value["label"]))
            facets.setdefault(tuple(sorted(texts)), {"name": name.replace("_", " "), "values": values})
    inside = [
        pc.and_(pc.greater_equal(table["duration_s"], low), pc.less(table["duration_s"], high))
        for _, low, high in LENGTHS
    ]
    lengths = [
        {"label": label, "n": n, "filter": f"duration_s>={low},duration_s<{high}"}
        for (label, low, high), one in zip(LENGTHS, inside, strict=True)
        if (n := pc.sum(one).as_py())
    ]
    return [*list(facets.values())[:MAX_FACETS], *([{"name": "length", "values": lengths}] if len(lengths) > 1 else [])]
