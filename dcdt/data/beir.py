"""Read a collection in BEIR layout: videos, queries and graded judgments.

Files of a collection folder: `corpus.jsonl` (`_id`, `title`, `text`, optional `metadata`), `queries.jsonl` (`_id`,
`text`, optional `metadata`), `qrels/*.tsv` (`query-id`, `corpus-id`, `score`) and, optionally, `collection.yaml`
(`positive_grade`, `languages`, `simulated`). Any BEIR data set drops in. Without queries.jsonl, `interactions.csv`
(`user_id`, `item_id`, `timestamp`) is enough: each learner's next video is then to be predicted.
"""

import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dcdt.data.next_video import next_video_queries
from dcdt.data.table_reader import cell_id, read_json_lines, read_lines
from dcdt.data.times import refuse_dates, to_seconds
from dcdt.data.transcripts import SLIDES, Transcripts, read_transcripts
from dcdt.data.types import CLICKS, Collection, Documents, Judgments, Rows, normalise_text
from dcdt.utils.errors import UserError
from dcdt.utils.shell import shell_command
from dcdt.utils.text import join_names, one_line, parse_number, pluralize, printable
from dcdt.utils.yaml import read_yaml

MAX_UNKNOWN_FRACTION = 0.05  # of the judgments may be of unknown ids, as in some public sets
MAX_GRADE = 1_000_000  # up to here single precision holds every whole number
SETTING_KEYS = ("name", "positive_grade", "languages", "simulated")  # keys of collection.yaml


def load_collection(path: str | Path, own_video: str = "same_text", needs_queries: bool = True) -> Collection:
    """Read and check a collection folder.

    Args:
        path: of the folder.
        own_video: which video a query is itself and is therefore not ranked for it, unless it is judged relevant: that
            with its id and its text (`same_text`), that with its id (`same_id`), or none (`keep`).
        needs_queries: refuse a catalogue, videos alone, from which nothing can be learnt.

    Raises:
        UserError: a file is missing or a line is invalid, with file and line.

    A folder with interactions.csv and without queries.jsonl has one query a learner: which video is watched next?
    """
    folder = Path(path)
    if not os.path.isfile(folder / "corpus.jsonl"):  # also false for an invalid path
        raise UserError(
            f"{folder} is not a collection: it has no corpus.jsonl.\n"
            "A collection folder holds corpus.jsonl, queries.jsonl and qrels/*.tsv (BEIR layout)."
        )
    has_questions = (folder / "queries.jsonl").is_file()
    is_catalogue = not has_questions and not (folder / "interactions.csv").is_file()
    if is_catalogue and needs_queries:
        raise UserError(
            f"{folder} has no queries.jsonl: without queries there is nothing to train on or to test.\n"
            "Add queries.jsonl and qrels/*.tsv, or interactions.csv to rank each learner's next video. "
            f"To search it as it is: {shell_command('serve', folder)}"
        )
    settings = _read_settings(folder / "collection.yaml")
    empty: set[str] = set()
    videos = read_videos(folder / "corpus.jsonl", empty)
    excluded, left_out = None, _add_slides(folder / SLIDES, videos)
    if empty:
        left_out.append(
            f"{pluralize(len(empty), 'video has', 'videos have')} neither title nor text: left out of every run."
        )
    if has_questions:
        queries = _read_queries(folder / "queries.jsonl")
        judgments, given_sides, unknown = _read_qrels(folder / "qrels", queries, videos, empty)
        if unknown:
            count = pluralize(len(unknown), "judgment is", "judgments are")
            left_out.append(f"{count} of an unknown id and left out, the first at {unknown[0]}.")
        excluded = _own_videos(queries, videos, judgments, own_video)
        if excluded is not None:
            count = pluralize(len(excluded), "query is a video", "queries are videos")
            left_out.append(f"{count} too, left out of the own ranking (data.own_video={own_video}).")
    elif is_catalogue:
        none = np.empty(0, dtype=np.int64)
        queries, judgments = Documents([], [], [], []), Judgments(none, none, np.empty(0, dtype=np.float32))
        given_sides = {}
    else:
        queries, judgments, excluded = next_video_queries(folder / "interactions.csv", videos)
        given_sides = {}
    collection = Collection(
        path=folder,
        name=printable(settings.get("name") or folder.resolve().name),
        videos=videos,
        queries=queries,
        judgments=judgments,
        given_sides=given_sides,
        positive_grade=parse_number(settings.get("positive_grade", "1")),
        languages=settings.get("languages", []),
        simulated=settings.get("simulated", []),
        has_questions=has_questions,
        excluded=excluded,
        left_out=tuple(left_out),
    )
    if not is_catalogue and not len(collection.positives):
        raise UserError(
            f"{folder}: no judgment reaches positive_grade {collection.positive_grade:g}; "
            "lower positive_grade in collection.yaml or add judgments."
        )
    return collection


def _own_videos(queries: Documents, videos: Documents, judgments: Judgments, own_video: str) -> Judgments | None:
    """Find the queries that are videos themselves, as in sets of arguments; None if there are none."""
    judged = judgments.where(judgments.grade > 0)
    related = set(zip(judged.query.tolist(), judged.video.tolist(), strict=True))
    rows: list[tuple[int, int]] = []
    for query, name in enumerate(queries.ids if own_video != "keep" else []):
        video = videos.row_of.get(name)
        if video is None or (query, video) in related:
            continue
        texts = videos.titles[video], videos.texts[video], f"{videos.titles[video]} {videos.texts[video]}"
        text = normalise_text(queries.texts[query])
        if own_video == "same_id" or any(text == normalise_text(one) for one in texts):
            rows.append((query, video))
    if not rows:
        return None
    own = np.array(rows, dtype=np.int64)
    return Judgments(own[:, 0], own[:, 1], np.zeros(len(rows), dtype=np.float32))


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    settings = read_yaml(path, as_text=True)
    unknown = sorted(settings.keys() - set(SETTING_KEYS))
    if unknown:
        raise UserError(f"{path}: unknown key {join_names(unknown)}; known are {join_names(SETTING_KEYS)}.")
    grade = settings.get("positive_grade", "1")
    if not isinstance(grade, str) or not 0 < parse_number(grade) < np.inf:
        raise UserError(f"{path}: positive_grade is {one_line(grade)}; it must be a number above 0.")
    if not isinstance(settings.get("name", ""), str):
        raise UserError(f"{path}: name must be a text.")
    for key in ("languages", "simulated"):
        values = settings.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise UserError(f"{path}: {key} must be a list, such as [en].")
    return settings


def _records(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Read line number, id and record of each line; ids are unique and not empty."""
    first: dict[str, int] = {}
    for number, record in read_json_lines(path):
        identifier = record.get("_id")
        if isinstance(identifier, bool) or not isinstance(identifier, str | int) or str(identifier).strip() == "":
            options = "--videos FILE --queries FILE [--judgments FILE]"
            hint = (
                f"\nTables with other columns: python -m dcdt.collection new FOLDER {options}"
                if identifier is None
                else ""
            )
            raise UserError(f"{path}:{number}: '_id' is {identifier!r}; it must be a text or a whole number.{hint}")
        name = str(identifier).strip()
        if any(unicodedata.category(char) == "Cc" for char in name):
            raise UserError(f"{path}:{number}: '_id' is {name!r}; tabs, line breaks and control characters break it.")
        if name in first:
            raise UserError(
                f"{path}:{number}: the id '{one_line(name)}' is already used at line {first[name]}; ids are unique."
            )
        first[name] = number
        yield number, name, record


def _read_text(record: dict[str, Any], key: str, location: str) -> str:
    value = record.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{location}: '{key}' is {type(value).__name__}; it must be a text.")
    return value.strip()


def _read_metadata(record: dict[str, Any], location: str) -> dict[str, Any]:
    metadata = record.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise UserError(f"{location}: 'metadata' is {type(metadata).__name__}; it must be an object.")
    try:
        json.dumps(metadata)
    except RecursionError as error:
        raise UserError(f"{location}: 'metadata' is nested too deeply.") from error
    return metadata


def read_videos(path: Path, empty: set[str] | None = None) -> Documents:
    """Read the videos of a file in the layout of corpus.jsonl.

    Args:
        path: of the file.
        empty: filled with the ids of videos without text, which are left out; None: they are refused.

    Raises:
        UserError: a line is invalid, with file and line.
    """
    documents = Documents([], [], [], [])
    for number, name, record in _records(path):
        location = f"{path}:{number}"
        title, text = _read_text(record, "title", location), _read_text(record, "text", location)
        if not title and not text:
            if empty is None:
                raise UserError(
                    f"{location}: the video '{one_line(name)}' has neither title nor text; give it one or remove it."
                )
            empty.add(name)
            continue
        documents.ids.append(name)
        documents.titles.append(title)
        documents.texts.append(text)
        documents.metadata.append(_read_metadata(record, location))
    if not documents.ids:
        raise UserError(f"{path} holds no video{' with a word' if empty else ''}.")
    return documents


def _add_slides(path: Path, videos: Documents) -> list[str]:
    slides = read_transcripts(path, videos.row_of) if path.is_file() else Transcripts([], "")
    for metadata, text in zip(videos.metadata, slides.texts, strict=False):
        metadata |= {"slides": text} if text else {}
    return [slides.note] if slides.note else []


def _read_queries(path: Path) -> Documents:
    documents, times = Documents([], [], [], []), list[float]()
    for number, name, record in _records(path):
        location = f"{path}:{number}"
        text = _read_text(record, "text", location)
        if not text:
            raise UserError(
                f"{location}: the query '{one_line(name)}' is empty; give it a text or remove it and its judgments."
            )
        documents.ids.append(name)
        documents.titles.append("")
        documents.texts.append(text)
        metadata = _read_metadata(record, location)
        if isinstance(metadata.get("user_id"), float | bool | list | dict):  # 7.0 is the learner 7 of interactions.csv
            metadata = {**metadata, "user_id": cell_id(metadata["user_id"], location)}
        time = metadata.get("timestamp")
        if isinstance(time, int | float) and not isinstance(time, bool):
            times.append(time)
            metadata = {**metadata, "timestamp": to_seconds(time, location)}
        documents.metadata.append(metadata)
    if not documents.ids:
        raise UserError(f"{path} holds no query.")
    refuse_dates(times, path)
    return documents


def _read_qrels(
    folder: Path, queries: Documents, videos: Documents, empty: set[str]
) -> tuple[Judgments, dict[str, Rows], list[str]]:
    """Read judgments, the queries of each file, and the locations of judgments with unknown ids, left out."""
    files = sorted(path for path in folder.glob("*.tsv") if path.is_file())
    if not files:
        raise UserError(f"{folder} has no judgments (*.tsv with query-id, corpus-id, score).")
    query_rows: list[int] = []
    video_rows: list[int] = []
    grades: list[float] = []
    first_location: dict[tuple[int, int], str] = {}
    given_sides: dict[str, Rows] = {}
    unknown: list[str] = []
    for path in files:
        start = len(query_rows)
        for number, line in read_lines(path):
            columns = line.rstrip("\r\n").split("\t")
            if (
                number == 1
                and len(columns) == 3
                and not np.isfinite(parse_number(columns[2]))
                and columns[0].strip() not in queries.row_of
            ):
                continue  # BEIR's header
            location = f"{path}:{number}"
            query, video, grade = _parse_judgment(columns, location)
            pair = queries.row_of.get(query, -1), videos.row_of.get(video, -1)
            if -1 in pair:
                if video not in empty:
                    missing = (
                        f"query id '{one_line(query)}' is not in queries"
                        if pair[0] < 0
                        else f"video id '{one_line(video)}' is not in corpus"
                    )
                    unknown.append(f"{location}: the {missing}.jsonl")
                continue
            if pair in first_location:
                raise UserError(f"{location}: this pair was judged already at {first_location[pair]}.")
            first_location[pair] = f"{path.name}:{number}"
            query_rows.append(pair[0])
            video_rows.append(pair[1])
            grades.append(grade)
        if path.stem != CLICKS:
            given_sides[path.stem] = np.unique(np.array(query_rows[start:], dtype=np.int64))
    if len(unknown) > MAX_UNKNOWN_FRACTION * (len(unknown) + len(grades)):
        raise UserError(f"{unknown[0]} ({len(unknown)} of {len(unknown) + len(grades)} judgments are of unknown ids).")
    judgments = Judgments(
        np.array(query_rows, dtype=np.int64), np.array(video_rows, dtype=np.int64), np.array(grades, dtype=np.float32)
    )
    return judgments, given_sides, unknown


def _parse_judgment(columns: Sequence[str], location: str) -> tuple[str, str, float]:
    if len(columns) != 3:
        raise UserError(
            f"{location}: {len(columns)} columns; three are needed, separated by tabs: query-id, corpus-id, score."
        )
    query, video, grade = (column.strip() for column in columns)
    return query, video, parse_grade(grade, "score", location)


def parse_grade(text: str, name: str, location: str) -> float:
    """Parse the grade of a judgment: 0 is not relevant, higher is better.

    Raises:
        UserError: it is not a finite number, or above MAX_GRADE.
    """
    number = parse_number(text)
    if not np.isfinite(number):
        problem = f"{location}: the {name} '{one_line(text)}' is not a finite number"
        raise UserError(f"{problem}; 0 is not relevant, higher is better.")
    if abs(number) > MAX_GRADE:
        raise UserError(f"{location}: the {name} '{one_line(text)}' is out of range; at most {MAX_GRADE:,} is read.")
    return number
