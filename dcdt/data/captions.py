"""Read captions, WebVTT, SRT or YouTube's json3, as records of transcripts.jsonl."""

import io
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator
from html import unescape
from pathlib import Path
from typing import Any

from dcdt.data.table_reader import read_lines
from dcdt.data.transcripts import format_odd
from dcdt.utils.errors import UserError, needs_extra
from dcdt.utils.files import parse_json
from dcdt.utils.text import one_line

ENDINGS = (".vtt", ".srt", ".json3")
_TIME = r"(?:\d+:)?\d{1,2}:\d{1,2}[.,]\d{1,3}"
_START, _BOTH = re.compile(rf"\s*({_TIME})\s*-->"), re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?!\d)")
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>|<[\d:.]+>|\{\\[^{}]*\}")  # of WebVTT, its word times, SubStation's in SRT
Record = dict[str, Any]


def read_captions(folder: Path, ids: Collection[str]) -> tuple[dict[str, Record], str]:
    """Read the captions of videos from a folder, named by id: `ID.vtt`, or `ID.en.vtt` with a language.

    Returns:
        Records by id, and a sentence about what was odd.

    Raises:
        UserError: there is no such folder, no file is named by a video's id, or a file is broken.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one with files such as ID.vtt, ID.en.srt or ID.json3.")
    odd: Counter[str] = Counter()
    records: dict[str, Record] = {}
    names = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    for path in sorted(names, key=lambda path: path.stem not in ids):  # without a language first
        name = next((stem for stem in (path.stem, path.stem.rpartition(".")[0]) if stem in ids), None)
        if name is None:
            odd["files named by no video's id"] += 1
        elif name in records:
            odd["further files of a video"] += 1
        else:
            segments = read_caption_file(path, odd)
            odd["files without a word"] += not segments
            records[name] = {"_id": name, "segments": segments}
    if not records:
        raise UserError(f"{folder}: none of its {len(names)} caption files is named by a video's id, such as ID.vtt.")
    odd["videos without captions"] = len(ids) - len(records)
    return {name: record for name, record in records.items() if record["segments"]}, format_odd(str(folder), odd)


def read_caption_file(path: Path, odd: Counter[str]) -> list[Record]:
    """Read the segments of a file, without tags and without the lines that rolling captions repeat.

    Raises:
        UserError: the file is broken, with the line where it is.
    """
    cues = _read_json3(path) if path.suffix.lower() == ".json3" else _read_cues(path, odd)
    segments, before = [], list[str]()  # lines of the cue before
    for start, end, text in cues:
        lines = [line for line in map(_clean, text.splitlines()) if line]
        repeated = next(n for n in range(len(lines), -1, -1) if before[len(before) - n :] == lines[:n])
        odd["repeated lines, left out"] += repeated
        before = lines or before
        if repeated < len(lines):
            segments.append({"start": start, "end": end, "text": " ".join(lines[repeated:])})
            odd["captions without an end"] += end is None
    return segments


def _clean(line: str) -> str:
    """Remove tags, entities and repeated spaces."""
    return " ".join(unescape(_TAG.sub("", line)).split())


def _read_cues(path: Path, odd: Counter[str]) -> Iterator[tuple[float, float | None, str]]:
    """Read start, end and text of the captions of a WebVTT or SRT file."""
    with needs_extra(f"{path}: reading captions", "captions", "webvtt"):
        import webvtt
    lines = [_check_timing(line.rstrip("\r\n"), f"{path}:{number}") for number, line in read_lines(path, blank=True)]
    while lines and not lines[0].strip():
        lines.pop(0)
    kind = "srt" if path.suffix.lower() == ".srt" else "vtt"
    try:
        captions = webvtt.from_buffer(io.StringIO("\n".join(lines)), format=kind)
    except (webvtt.errors.MalformedFileError, webvtt.errors.MalformedCaptionError) as error:
        first = "WEBVTT" if kind == "vtt" else "1, and then with the times of the first caption"
        raise UserError(f"{path}:1: not a caption file ({one_line(error)}); it must begin with {first}.") from error
    lost = sum(_START.match(line) is not None for line in lines) - len(captions.captions)
    odd["captions that cannot be read"] += max(lost, 0)
    for caption in captions.captions:
        start, end = (time.in_milliseconds() / 1000 for time in (caption.start_time, caption.end_time))
        yield start, end if end > start else None, caption.raw_text


def _check_timing(line: str, location: str) -> str:
    """Mend a line with an arrow: a missing end becomes the start, an arrow in a text another character."""
    start = _START.match(line)
    if "-->" not in line or _BOTH.match(line):
        return line
    if start is not None and not re.match(r"\s*\d", line[start.end() :]):
        return f"{start[0]} {start[1]}"
    if re.match(r"[\d:.,\s]+-->", line):
        problem = f"{location}: the times '{one_line(line)}' cannot be read"
        raise UserError(f"{problem}; write 00:01:02.500 --> 00:01:04.000.")
    return line.replace("-->", "→")


def _read_json3(path: Path) -> Iterator[tuple[float, float | None, str]]:
    """Read start, end and text of the events of a file in YouTube's json3."""
    try:
        events = parse_json("".join(line for _, line in read_lines(path)))["events"]
        for event in events:
            text = "".join(part.get("utf8", "") for part in event.get("segs") or [])
            if text.strip():
                start, duration = float(event["tStartMs"]), float(event.get("dDurationMs") or 0)
                if not 0 <= start <= start + duration < math.inf:
                    raise ValueError(f"it starts at {start}")
                yield start / 1000, (start + duration) / 1000 if duration else None, text
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{path}: not YouTube's json3 ({reason}), which has events with tStartMs and segs.") from error
