"""Turn exported tables into the records of a collection; every error names file and line."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from dcdt.data.beir import parse_grade
from dcdt.data.cells import THOUSANDS, is_empty, parse_duration, parse_ids, parse_list
from dcdt.data.table_reader import Row, cell_id, cell_text, find_column, read_rows
from dcdt.data.times import refuse_dates, to_seconds
from dcdt.data.transcripts import check_segments
from dcdt.utils.errors import UserError
from dcdt.utils.text import join_names, one_line, parse_number, pluralize

COLUMN_NAMES = {  # common names of a column, by role; blanks and minus signs count as underscores
    "id": ("_id", "id", "video_id", "videoid", "item_id", "course_id", "doc_id", "youtube_id"),
    "title": ("title", "name", "video_title", "video_name"),
    "text": ("text", "description", "abstract", "summary", "body", "video_description", "desc"),
    "query-id": ("query_id", "_id", "id", "qid"),
    "query": ("query", "question", "text", "search"),
    "video": ("video_id", "corpus_id", "item_id", "course_id", "video", "doc_id", "_id", "id"),
    "item": ("item_id", "video_id", "course_id", "item", "video", "doc_id"),
    "grade": ("grade", "score", "relevance", "label", "rel"),
    "asker": ("user_id", "learner_id", "user", "learner", "asker"),
    "language": ("lang", "language"),
    "asked": ("timestamp", "time", "asked_at", "date", "created_at"),
    "user": ("user_id", "learner_id", "user", "learner", "student_id"),
    "time": ("timestamp", "time", "watched_at", "date", "created_at"),
    "url": ("url", "link", "watch_url", "video_url", "webpage_url", "href"),
    "duration": ("duration_s", "duration", "length", "runtime", "duration_seconds", "length_seconds", "seconds"),
    "views": ("views", "view_count", "viewcount", "n_views", "plays"),
    "channel": ("channel", "channel_title", "channel_name", "uploader"),
    "playlist": ("playlist", "playlist_title", "playlist_name"),
    "course": ("course", "course_name", "course_title"),
    "tags": ("tags", "keywords", "topics", "labels"),
}
METADATA_ROLES = {  # of videos, with the key of the metadata that filters and pages know
    **{role: role for role in ("url", "views", "channel", "playlist", "course", "tags", "language")},
    "duration": "duration_s",
}
MAX_PROBLEMS = 20  # of a table that are listed
Record = dict[str, Any]
Names = dict[str, str]  # column by role, as the user named them


@dataclass
class ImportedRecords:
    """The records of a collection read so far.

    Attributes:
        videos, queries: records of corpus.jsonl and queries.jsonl by id.
        grades: of (query id, video id).
        watches: user id, video id, seconds.
        transcripts: records of transcripts.jsonl by the id of the video.
        warnings: what may be unintended, a sentence each.
        mappings: which columns of each file were read as what, a line each.
    """

    videos: dict[str, Record] = field(default_factory=dict)
    queries: dict[str, Record] = field(default_factory=dict)
    grades: dict[tuple[str, str], float] = field(default_factory=dict)
    watches: list[tuple[str, str, float]] = field(default_factory=list)
    transcripts: dict[str, Record] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    mappings: list[str] = field(default_factory=list)


@contextmanager
def _collected(problems: list[str]) -> Iterator[None]:
    """Collect the mistake of a row, so that one try shows those of all rows."""
    try:
        yield
    except UserError as error:
        problems.append(str(error))


def _refuse(problems: list[str]) -> None:
    if problems:
        rest = [f"and {len(problems) - MAX_PROBLEMS:,} more like these"] if len(problems) > MAX_PROBLEMS else []
        raise UserError("\n".join([*problems[:MAX_PROBLEMS], *rest]))


def add_videos(
    records: ImportedRecords, path: Path, names: Names, keep: list[str] | None = None, transcript: str | None = None
) -> None:
    """Read the videos of a file: id, title, description, and the other columns (or those to keep) as metadata.

    `transcript` names a column of transcripts: texts, or lists of segments with start, end and text.

    Raises:
        UserError: no column of ids, of titles or descriptions; an id is empty or occurs twice; a video has no text.
    """
    table = _VideoTable(path, names, keep, transcript)
    records.mappings.append(table.mapping)
    first_rows: dict[str, tuple[str, int]] = {}
    problems, n_repeated, bad_durations = list[str](), 0, list[str]()
    for location, row in table.rows:
        with _collected(problems):
            name = cell_id(row.get(table.id), location)
            if not name:
                raise UserError(f"{location}: the id in column '{one_line(table.id)}' is empty; every video needs one.")
            first, content = first_rows.setdefault(name, (location, hash(repr(row))))
            if first != location and content == hash(repr(row)):
                n_repeated += 1
                continue
            if first != location:
                raise UserError(f"{location}: the id '{one_line(name)}' is already used at {first}; ids are unique.")
            records.videos[name], lacks_duration = table.read(name, row, location)
            bad_durations += [location] if lacks_duration else []
            if table.transcript and (spoken := row.get(table.transcript)):
                record = {"segments": spoken} if isinstance(spoken, list) else {"text": cell_text(spoken)}
                check_segments(record, location, Counter())
                records.transcripts[name] = {"_id": name, **record}
    _refuse(problems)
    if n_repeated:
        records.warnings.append(f"{path}: rows that repeat another word for word: {n_repeated}; they are left out.")
    if bad_durations:
        count = pluralize(len(bad_durations), "duration is", "durations are")
        records.warnings.append(f"{count} no length of time and left out, the first at {bad_durations[0]}.")
    if not records.videos:
        raise UserError(f"{path} holds no video.")


class _VideoTable:
    """A table of videos: its rows, the columns that are read, and how."""

    def __init__(self, path: Path, names: Names, keep: list[str] | None, transcript: str | None) -> None:
        self.rows, columns = _read_table(path)
        found = {role: _column(columns, names, role) for role in ("id", "title", "text")}
        if found["id"] is None or (found["title"] is None and found["text"] is None):
            raise _missing_column(path, columns, [role for role, column in found.items() if column is None])
        self.id, self.title, self.text = found["id"], found["title"], found["text"]
        self.transcript = find_column(columns, transcript, (), "--transcript")
        used = {*found.values(), self.transcript}
        others = [column for column in columns if column and column not in used]
        self.kept = others if keep is None else [str(find_column(columns, name, (), "--keep")) for name in keep]
        self.key_of: dict[str, str] = {}  # of columns that are kept under a name that filters and pages know
        for role, key in METADATA_ROLES.items():
            column = _column(columns if role in names else self.kept, names, role, set(self.key_of))
            if column in self.kept:
                self.key_of[str(column)] = key
        self.parsers = {column: _parser_of(column, self.key_of.get(column), self.rows) for column in self.kept}
        by_role = {**found, "transcript": self.transcript, **{key: name for name, key in self.key_of.items()}}
        self.mapping = _describe_columns(path, by_role, self.kept)

    def read(self, name: str, row: Mapping[str, Any], location: str) -> tuple[Record, bool]:
        """Read the record of a video, and whether its duration is none."""
        title = cell_text(row.get(self.title)) if self.title else ""
        text = "" if self.text is None or is_empty(row.get(self.text)) else cell_text(row[self.text])
        if not title and not text:
            without = "has neither title nor description; give it one or remove it."
            raise UserError(f"{location}: the video '{one_line(name)}' {without}")
        cells = {column: row[column] for column in self.kept if not is_empty(row.get(column))}
        values = {self.key_of.get(column, column): self.parsers[column](cell) for column, cell in cells.items()}
        metadata = {key: value for key, value in values.items() if value not in (None, "", [])}
        record = {"_id": name, "title": title, "text": text, **({"metadata": metadata} if metadata else {})}
        return record, "duration_s" in values.keys() - metadata.keys()


def _parser_of(column: str, key: str | None, rows: list[Row]) -> Callable[[Any], Any]:
    """Choose how the cells of a column of metadata are read."""
    if key == "duration_s":
        in_minutes = bool(re.search(r"(\b|_)min", column, re.IGNORECASE))
        return lambda cell: parse_duration(cell, in_minutes)
    if key == "tags":
        return lambda cell: [cell_text(item) for item in parse_list(cell)]
    if key == "url":
        return cell_text
    cells = [row[column] for _, row in rows if not is_empty(row.get(column))]
    are_numbers = all(isinstance(_without_thousands(cell), int | float) for cell in cells)
    return _without_thousands if are_numbers else plain_value


def _without_thousands(cell: Any) -> Any:  # noqa: ANN401 - whatever a cell holds
    """Convert a cell to JSON, 1,193 as 1193."""
    text = str(cell).strip()
    return plain_value(text.replace(",", "") if THOUSANDS.fullmatch(text) else cell)


def _describe_columns(path: Path, by_role: Mapping[str, str | None], kept: Sequence[str] = ()) -> str:
    """Say which columns of a file are read as what."""
    read = [f"{role} from '{one_line(column)}'" for role, column in by_role.items() if column]
    others = [column for column in kept if column not in by_role.values()]
    return f"{path}: {', '.join(read)}" + (f"; kept under their names: {join_names(others)}" if others else "")


def add_queries(records: ImportedRecords, path: Path, names: Names) -> None:
    """Read queries and, where a column names a video (or a list of them), the judgments of each row.

    Rows with the same query id (without such a column: the same text) are one query. A pair that is judged twice keeps
    its highest grade; without a column of grades each row is a 1.

    Raises:
        UserError: no column of queries, an empty query, two texts under one id, an unknown video, a grade or a time
            that cannot be read, or times that are dates written as numbers.
    """
    rows, columns = _read_table(path)
    of_text = _required_column(path, columns, names, "query")
    used_columns = {of_text}
    of_id = _column(columns, names, "query-id", used_columns)
    of_video = _column(columns, names, "video", used_columns | {str(of_id)})
    roles = ("grade", "asker", "asked", "language")
    of_grade, of_user, of_time, of_language = (_column(columns, names, role) for role in roles)
    if of_time:
        refuse_dates((parse_number(cell_text(row.get(of_time))) for _, row in rows), path)
    by_role = {"query": of_text, "query-id": of_id, "video": of_video, "grade": of_grade}
    by_role |= {"asker": of_user, "asked": of_time, "language": of_language}
    records.mappings.append(_describe_columns(path, by_role))
    by_text: dict[str, str] = {}
    repeated, problems = 0, list[str]()
    for location, row in rows:
        with _collected(problems):
            text = cell_text(row.get(of_text))
            if not text:
                raise UserError(
                    f"{location}: the query in column '{one_line(of_text)}' is empty; give it a text or remove the row."
                )
            name = cell_id(row.get(of_id), location) if of_id else by_text.setdefault(text, f"q{len(by_text) + 1}")
            if not name:
                raise UserError(
                    f"{location}: the query id in column '{one_line(of_id)}' is empty; every query needs one."
                )
            record = records.queries.setdefault(name, {"_id": name, "text": text})
            if record["text"] != text:
                raise UserError(
                    f"{location}: the query id '{one_line(name)}' is used above with another text; one id, one text."
                )
            metadata: Record = {"user_id": cell_id(row.get(of_user), location)} if of_user else {}
            if of_time and cell_text(row.get(of_time)):
                metadata["timestamp"] = parse_time(row[of_time], location)
            if of_language and cell_text(row.get(of_language)):
                metadata["lang"] = cell_text(row[of_language])
            if metadata:
                record.setdefault("metadata", metadata)
            repeated += _add_grades(records, name, row, of_video, of_grade, location)
    _refuse(problems)
    _warn_of_repeated(records, path, repeated)


def add_judgments(records: ImportedRecords, path: Path, names: Names) -> None:
    """Read judgments of known queries: query id, video id (or a list of ids) and, where there is one, a grade.

    Raises:
        UserError: a column is missing, a query or a video is unknown, or a grade cannot be read.
    """
    rows, columns = _read_table(path)
    of_query = _required_column(path, columns, names, "query-id")
    of_video = _required_column(path, columns, names, "video", {of_query})
    of_grade, repeated, problems = _column(columns, names, "grade"), 0, list[str]()
    records.mappings.append(_describe_columns(path, {"query-id": of_query, "video": of_video, "grade": of_grade}))
    for location, row in rows:
        with _collected(problems):
            query = cell_id(row.get(of_query), location)
            if query not in records.queries:
                raise UserError(
                    f"{location}: the query '{one_line(query)}' is not among the {len(records.queries)} queries."
                )
            repeated += _add_grades(records, query, row, of_video, of_grade, location)
    _refuse(problems)
    _warn_of_repeated(records, path, repeated)


def _add_grades(
    records: ImportedRecords,
    query: str,
    row: Mapping[str, Any],
    of_video: str | None,
    of_grade: str | None,
    location: str,
) -> int:
    """Add the judgments of a row, one for each video that it names; return how many were there already."""
    cells, repeated = parse_ids(row.get(of_video) if of_video else None, records.videos.keys()), 0
    for video in filter(None, (cell_id(item, location) for item in cells)):
        grade = parse_grade(cell_text(row.get(of_grade)) if of_grade else "1", "grade", location)
        _check_known_video(records, video, location)
        repeated += (query, video) in records.grades
        records.grades[query, video] = max(grade, records.grades.get((query, video), grade))
    return repeated


def _warn_of_repeated(records: ImportedRecords, path: Path, repeated: int) -> None:
    if repeated:
        records.warnings.append(f"{path}: pairs judged more than once: {repeated}; the highest grade is kept.")


def add_interactions(records: ImportedRecords, path: Path, names: Names) -> None:
    """Read interactions; those of videos that the catalogue lacks are left out and counted.

    Raises:
        UserError: a column is missing, a user is empty, a time cannot be read, or no watch is of a known video.
    """
    rows, columns = _read_table(path)
    of_user, of_item, of_time = (_required_column(path, columns, names, role) for role in ("user", "item", "time"))
    refuse_dates((parse_number(cell_text(row.get(of_time))) for _, row in rows), path)
    records.mappings.append(_describe_columns(path, {"user": of_user, "item": of_item, "time": of_time}))
    unknown: list[tuple[str, str]] = []
    problems: list[str] = []
    for location, row in rows:
        with _collected(problems):
            user, item = (cell_id(row.get(column), location) for column in (of_user, of_item))
            if not user:
                raise UserError(f"{location}: the learner in column '{one_line(of_user)}' is empty.")
            if item not in records.videos:
                unknown.append((item, location))
                continue
            records.watches.append((user, item, parse_time(row.get(of_time), location)))
    _refuse(problems)
    if not records.watches:
        raise UserError(f"{path}: none of its {len(rows)} rows is about a known video; is --item-column right?")
    if unknown:
        item, location = unknown[0]
        first = f"'{one_line(item)}' at {location}"
        records.warnings.append(f"{path}: watches of unknown videos left out: {len(unknown)}, first {first}.")


def parse_time(value: Any, location: str) -> float | int:  # noqa: ANN401 - whatever a cell holds
    """Parse a time in seconds: a number of any unit, else a date or date and time in ISO 8601 (UTC by default).

    Raises:
        UserError: neither such a date nor a number of seconds, milli-, micro- or nanoseconds.

    >>> parse_time("1700000000", "a.csv:2"), parse_time("1970-01-01T01:00:00+01:00", "a.csv:3")
    (1700000000, 0)
    >>> parse_time("1970-01-02", "a.csv:4")
    86400
    """
    text = cell_text(value)
    try:
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
        when = value if isinstance(value, datetime) else None
        number = parse_number(text) if when is None else math.nan
        if math.isnan(number):
            when = when or datetime.fromisoformat(text)
            number = when.replace(tzinfo=when.tzinfo or UTC).timestamp()
        else:
            number = to_seconds(number, location)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"{location}: the time '{one_line(text)}' is neither a number of seconds nor a date "
            "such as 2026-01-31T12:00:00."
        )
    return int(number) if number.is_integer() else number


def _read_table(path: Path) -> tuple[list[Row], list[str]]:
    """Read all rows of a file and the columns that any of them has."""
    rows = list(read_rows(path))
    if not rows:
        raise UserError(f"{path} holds no row below its header.")
    return rows, list(dict.fromkeys(column for _, row in rows for column in row))


def _column(columns: list[str], names: Names, role: str, used: set[str] | None = None) -> str | None:
    free = [column for column in columns if column not in (used or ())]
    return find_column(
        free if names.get(role) is None else columns, names.get(role), COLUMN_NAMES[role], f"--{role}-column"
    )


def _required_column(path: Path, columns: list[str], names: Names, role: str, used: set[str] | None = None) -> str:
    column = _column(columns, names, role, used)
    if column is None:
        raise _missing_column(path, columns, [role])
    return column


def _missing_column(path: Path, columns: list[str], roles: list[str]) -> UserError:
    """Make the error for roles without a column, all at once, so that one more try is enough."""
    options = " ".join(f"--{role}-column NAME" for role in roles)
    quoted = " or ".join(f"'{role}'" for role in roles)
    hint = "; or, if these are judgments: --queries TEXTS --judgments FILE" if roles == ["query"] else ""
    return UserError(f"{path}: no column {quoted} among {join_names(columns)}.\nName the columns: {options}{hint}")


def _check_known_video(records: ImportedRecords, video: str, location: str) -> None:
    if video not in records.videos:
        raise UserError(
            f"{location}: the video '{one_line(video)}' is not among the {len(records.videos)} videos; "
            "correct or remove this row."
        )


def plain_value(value: Any) -> Any:  # noqa: ANN401 - whatever a cell holds
    """Convert a cell to JSON: texts that are numbers to numbers, dates to text, NaN to null."""
    if isinstance(value, str):
        text = value.strip()
        for kind in (int, float):
            try:
                if str(kind(text)) == text and math.isfinite(kind(text)):
                    return kind(text)
            except ValueError:
                continue
        return text
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    return value if isinstance(value, bool | int | float) or value is None else str(value)
