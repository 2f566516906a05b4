"""Read what videos say, `transcripts.jsonl`, and the moments that queries ask about, `moments.tsv`."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dcdt.data.table_reader import read_json_lines, read_lines
from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line, parse_number

TRANSCRIPTS, MOMENTS, SLIDES = "transcripts.jsonl", "moments.tsv", "slides.jsonl"
TRANSCRIPT = "transcript"  # name of the field
MAX_EXPECTED_SECONDS = 86_400  # later starts are read, and warned of


class Segment(NamedTuple):
    """A piece of a transcript with its start and end in seconds, None where they are not known."""

    start: float | None
    end: float | None
    text: str


@dataclass(frozen=True)
class Transcripts:
    """Segments by video row, in the order of time, none where a video has no transcript; and what was odd."""

    segments: list[list[Segment]]
    note: str

    @property
    def texts(self) -> list[str]:
        """The whole transcript of each video, empty without one."""
        return [" ".join(segment.text for segment in segments) for segments in self.segments]


def read_transcripts(path: Path, row_of: Mapping[str, int]) -> Transcripts:
    """Read a file of `_id` and `text` or `segments` (start, end, text) in each line.

    Args:
        path: of the file.
        row_of: row of each video.

    Raises:
        UserError: a line is invalid, with file and line.
    """
    transcripts: list[list[Segment]] = [[] for _ in row_of]
    first_line: dict[str, int] = {}
    odd: Counter[str] = Counter()
    for number, record in read_json_lines(path):
        location = f"{path}:{number}"
        if not isinstance(record.get("_id"), str | int) or isinstance(record["_id"], bool):
            raise UserError(f"{location}: '_id' is {one_line(record.get('_id'))!r}; it must be the id of a video.")
        name = str(record["_id"]).strip()
        if name in first_line:
            raise UserError(f"{location}: '{one_line(name)}' has a text already, at line {first_line[name]}.")
        first_line[name] = number
        segments = check_segments(record, location, odd)
        if name not in row_of:
            odd["of unknown videos, left out"] += 1
            continue
        odd["empty"] += not segments
        transcripts[row_of[name]] = segments
    return Transcripts(transcripts, format_odd(f"{path.name}: texts", odd))


def check_segments(record: Mapping[str, Any], location: str, odd: Counter[str]) -> list[Segment]:
    """Check a transcript; segments without a word are dropped, those out of order sorted.

    Args:
        record: with `text`, or with `segments`.
        location: for error messages.
        odd: counts what was mended.

    Raises:
        UserError: neither is there, or a value has another type.
    """
    entries = record.get("segments")
    if entries is None:
        entries = [{"text": record.get("text")}]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{location}: 'segments' must be a list of objects with start, end and text.")
    segments = []
    for entry in entries:
        text = entry.get("text")
        if not isinstance(text, str):
            raise UserError(f"{location}: 'text' is {one_line(text)!r}; give a text, or segments with one each.")
        start, end = (_parse_seconds(entry.get(key), key, location) for key in ("start", "end"))
        if end is not None and (start is None or end < start):
            odd["with an end before its start, not read"] += 1
            end = None
        text = " ".join(text.encode(errors="replace").decode().split())  # lone surrogates are no text
        if text:
            segments.append(Segment(start, end, text))
    starts = [segment.start for segment in segments]
    known = [start for start in starts if start is not None]
    odd["with times after the first day: are they milliseconds?"] += max(known, default=0.0) > MAX_EXPECTED_SECONDS
    if len(known) == len(starts) and sorted(known) != known:
        odd["out of order, sorted"] += 1
        segments.sort(key=lambda segment: segment.start or 0.0)
    return segments


def _parse_seconds(value: Any, name: str, location: str) -> float | None:  # noqa: ANN401 - whatever JSON holds
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UserError(f"{location}: '{name}' is {one_line(value)!r}; it must be a number of seconds from 0.")
    return float(value)


def format_odd(subject: str, odd: Mapping[str, int]) -> str:
    """Describe what was counted, in one sentence; empty where nothing was."""
    counts = ", ".join(f"{n:,} {name}" for name, n in odd.items() if n)
    return f"{subject}: {counts}." if counts else ""


def read_moments(
    path: Path, query_rows: Mapping[str, int], video_rows: Mapping[str, int]
) -> list[tuple[int, int, float]]:
    """Read query row, video row and seconds from a file of query-id, corpus-id and seconds, separated by tabs.

    Raises:
        UserError: a line is invalid, with file and line.
    """
    moments: dict[tuple[int, int], float] = {}
    for number, line in read_lines(path):
        columns = [column.strip() for column in line.rstrip("\r\n").split("\t")]
        location = f"{path}:{number}"
        if len(columns) != 3:
            raise UserError(f"{location}: {len(columns)} columns; needed are query-id, corpus-id and seconds, by tabs.")
        query, video, seconds = columns
        if number == 1 and seconds == "seconds":
            continue
        for kind, name, rows in (("query", query, query_rows), ("video", video, video_rows)):
            if name not in rows:
                raise UserError(f"{location}: there is no {kind} '{one_line(name)}'; correct or remove this line.")
        pair = query_rows[query], video_rows[video]
        if pair in moments:
            raise UserError(f"{location}: this query and video have a moment already; give one.")
        moments[pair] = parse_number(seconds)
        if not 0 <= moments[pair] < math.inf:
            raise UserError(f"{location}: '{one_line(seconds)}' is no number of seconds from 0.")
    return [(query, video, seconds) for (query, video), seconds in moments.items()]
