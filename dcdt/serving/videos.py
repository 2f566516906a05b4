"""Videos as a service stores them: one Arrow table, with what results, filters and search read.

Columns: `id`, `title`, `text`, `series`, `level`, `link` (text), `duration_s` (number), `metadata` (all of it, JSON),
each metadata key that holds plain values, and what the scorers add (`vector_0`, `words_0`, ...).
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from dcdt.data.beir import read_videos
from dcdt.data.importer import ImportedRecords, add_videos, plain_value
from dcdt.data.types import Documents
from dcdt.utils.errors import UserError, check_encodable
from dcdt.utils.files import parse_json
from dcdt.utils.text import one_line, parse_number

BASE = {
    "id": "text", "title": "text", "text": "text", "series": "text", "level": "text", "link": "text",
    "duration_s": "number",
}  # fmt: skip
RESERVED = {*BASE, "metadata", "changed", "writer", "alive"}
MODEL_PREFIXES = ("vector_", "raw_", "joint_", "words_", "popularity_", "whitened_", "mapped_", "passage")
TYPES = {"text": pa.string(), "number": pa.float64(), "list": pa.list_(pa.string())}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}")
_SERIES, _LINK, _DURATION = ("series", "playlist", "course", "channel"), ("url", "link"), ("duration_s", "duration")
MAX_ID_CHARS, MAX_TITLE_CHARS, MAX_TEXT_CHARS = 200, 1_000, 100_000


def metadata_columns(videos: Documents) -> dict[str, str]:
    """Choose the metadata keys that become columns, those of plain values and names: kind by key."""
    kinds: dict[str, str] = {}
    for key in sorted({key for metadata in videos.metadata for key in metadata}):
        if not _NAME.fullmatch(key) or key in RESERVED or key.startswith(MODEL_PREFIXES):
            continue
        values = [metadata[key] for metadata in videos.metadata if metadata.get(key) is not None]
        if all(isinstance(value, list) and all(isinstance(item, str) for item in value) for value in values):
            kinds[key] = "list"
        elif all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            kinds[key] = "number"
        elif not any(isinstance(value, list | dict) for value in values):
            kinds[key] = "text"
    return kinds


def filter_kinds(columns: Mapping[str, str]) -> dict[str, str]:
    """Return the kind of every field that a filter may name."""
    return {**BASE, **columns}


def table_of(videos: Documents, columns: Mapping[str, str]) -> pa.Table:
    """Make the table of videos, without what scorers add.

    Args:
        videos: ids, titles, texts and metadata.
        columns: metadata keys that become columns, by kind, as fixed when the catalogue was built.
    """
    data: dict[str, Any] = {"id": videos.ids, "title": videos.titles, "text": videos.texts}
    data["series"] = [_series(metadata) for metadata in videos.metadata]
    data["level"] = [_text(metadata.get("level")) for metadata in videos.metadata]
    data["link"] = [_text(_first(metadata, _LINK)) for metadata in videos.metadata]
    data["duration_s"] = [_number(_first(metadata, _DURATION)) for metadata in videos.metadata]
    data["metadata"] = [json.dumps(metadata, ensure_ascii=False, sort_keys=True) for metadata in videos.metadata]
    read = {"text": _text, "number": _number, "list": _list}
    data |= {key: [read[kind](metadata.get(key)) for metadata in videos.metadata] for key, kind in columns.items()}
    kinds = {**BASE, "metadata": "text", **columns}
    return pa.table({key: pa.array(values, TYPES[kinds[key]]) for key, values in data.items()})


def documents_of(table: pa.Table) -> Documents:
    """Read ids, titles, texts and metadata from a table."""
    ids, titles, texts, metadata = (table[name].to_pylist() for name in ("id", "title", "text", "metadata"))
    try:
        return Documents(ids, titles, texts, [dict(parse_json(value)) for value in metadata])
    except (ValueError, TypeError) as error:
        raise UserError(f"the index holds metadata that are not JSON ({error}). Build it anew.") from error


def read_file(path: Path, names: Mapping[str, str] | None = None) -> Documents:
    """Read the videos of a file: .jsonl as in corpus.jsonl, else a table as `dcdt.collection new` reads it.

    Args:
        path: .jsonl, .csv, .tsv or .parquet.
        names: columns by role (id, title, text), where they do not have a usual name; also makes .jsonl a table.

    Raises:
        UserError: the file cannot be read, or a line is not what the layout says.
    """
    if path.suffix == ".jsonl" and not names:
        return checked_videos(read_videos(path), str(path))
    imported = ImportedRecords()
    add_videos(imported, path, dict(names or {}))
    records = list(imported.videos.values())
    ids, titles, texts = ([str(record[key]) for record in records] for key in ("_id", "title", "text"))
    return checked_videos(Documents(ids, titles, texts, [record.get("metadata", {}) for record in records]), str(path))


def one_video(identifier: str, title: str, text: str, metadata: Sequence[str]) -> Documents:
    """Make a video from the command line, its metadata as KEY=VALUE.

    Raises:
        UserError: neither title nor text, or metadata without a key.
    """
    values: dict[str, Any] = {}
    for item in metadata:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"--meta {item!r} has no key; write --meta KEY=VALUE.")
        values[key] = plain_value(value)
    return checked_videos(Documents([identifier.strip()], [title.strip()], [text.strip()], [values]), "the video")


def checked_videos(videos: Documents, source: str) -> Documents:
    """Return the videos, unless one has no id or no text, is too long, not of UTF-8, or occurs twice.

    Raises:
        UserError: says which video and why.
    """
    seen: set[str] = set()
    for name, title, text, metadata in zip(videos.ids, videos.titles, videos.texts, videos.metadata, strict=True):
        check_encodable(" ".join([name, title, text, *map(str, (*metadata, *metadata.values()))]), source)
        if not 0 < len(name) <= MAX_ID_CHARS:
            raise UserError(
                f"{source}: the id {name[:40]!r} has {len(name)} characters; 1 to {MAX_ID_CHARS} are allowed."
            )
        if name in seen:
            raise UserError(f"{source}: the id '{one_line(name)}' occurs twice; ids are unique.")
        if not title and not text:
            raise UserError(f"{source}: the video '{one_line(name)}' has neither title nor text; give it one.")
        for what, value, limit in (("title", title, MAX_TITLE_CHARS), ("text", text, MAX_TEXT_CHARS)):
            if len(value) > limit:
                raise UserError(
                    f"{source}: the {what} of '{one_line(name)}' has {len(value):,} characters; at most {limit:,}."
                )
        seen.add(name)
    return videos


def _first(metadata: Mapping[str, Any], keys: Sequence[str]) -> Any:  # noqa: ANN401 - metadata is whatever the user wrote
    return next((metadata[key] for key in keys if metadata.get(key) not in (None, "")), None)


def _series(metadata: Mapping[str, Any]) -> str | None:
    """Name the series, playlist, course or channel of a video, or the last step of its path."""
    path = metadata.get("path")
    return _text(_first(metadata, _SERIES) or (path[-1] if isinstance(path, list) and path else None))


def _text(value: Any) -> str | None:  # noqa: ANN401
    return None if value is None or isinstance(value, list | dict) else str(value)


def _number(value: Any) -> float | None:  # noqa: ANN401
    number = parse_number(str(value))  # also of a text such as 1.50, which metadata keep as it is
    return number if abs(number) < 2.0**62 else None


def _list(value: Any) -> list[str] | None:  # noqa: ANN401
    return [str(item) for item in value] if isinstance(value, list) else None
