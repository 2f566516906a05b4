"""Read the rows of an exported table: CSV, TSV, JSON, Excel or Parquet, also gzipped, each with its location."""

import csv
import gzip
import json
import logging
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from dcdt.utils.errors import UserError, check_encodable, needs_extra
from dcdt.utils.files import parse_json, unique_keys
from dcdt.utils.text import join_names, one_line

log = logging.getLogger("dcdt")
Row = tuple[str, dict[str, Any]]  # location ("videos.csv:12") and the values by column
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MAX_CELL_CHARS = 10_000_000  # of a CSV cell; more means an unclosed quote
MAX_WARNINGS = 5  # of a file


class JsonFloat(float):
    """A number of JSON with a fraction or an exponent, and its text, such as 1e3."""

    def __init__(self, text: str) -> None:
        self.text = text


_EXACT = json.JSONDecoder(object_pairs_hook=unique_keys, parse_float=JsonFloat)


def read_rows(path: Path) -> Iterator[Row]:
    """Read every row of a file, whose format is that of its ending: .csv, .tsv, .json, .jsonl, .xlsx or .parquet.

    Texts may be gzipped (.csv.gz). A .json file holds an array of objects; of .xlsx the first sheet is read.

    A CSV file may be separated by comma, semicolon, tab or bar: the most frequent one of its first line. Its cells may
    be quoted, and quoted cells may hold line breaks. In .tsv (unless its header is quoted) a quote is a character like
    others. A quote that is not closed is refused with its line. One that a later row closes cannot be told for certain
    from a text of several lines: where most such cells of a file look as if they took in rows, the first is refused
    with its lines; where few do, or the file has one column, they are warned of.

    Raises:
        UserError: the file is missing, has another ending, or a row is invalid, with its location.
    """
    readers = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".jsonl": _read_json,
        ".ndjson": _read_json,
        ".json": _read_json_array,
        ".xlsx": _read_excel,
        ".parquet": _read_parquet,
    }
    ending = _ending(path)
    reader = readers.get(ending)
    if reader is None or (path.suffix.lower() == ".gz" and ending in (".parquet", ".xlsx")):
        known = ".csv, .tsv, .json, .jsonl (also with .gz), .xlsx or .parquet"
        raise UserError(f"{path}: the ending '{path.suffix}' is not known; give {known}.")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file.")
    return reader(path)


def _ending(path: Path) -> str:
    """Return the ending of a file in lower case, without that of gzip."""
    return Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()


def find_column(columns: Sequence[str], requested: str | None, common_names: Sequence[str], option: str) -> str | None:
    """Find a column: the requested one, else the first of the common names, whatever its case.

    Raises:
        UserError: the requested column does not exist.

    >>> find_column(["Nr", "Course Name"], "course name", (), "--title-column")
    'Course Name'
    """
    if requested is not None:
        matches = [column for column in columns if column.casefold() == requested.strip().casefold()]
        if requested not in columns and len(matches) != 1:
            raise UserError(
                f"{option} '{one_line(requested)}': there is no such column; the file has: {join_names(columns)}."
            )
        return requested if requested in columns else matches[0]
    by_name = {re.sub("[ -]", "_", column.strip().casefold()): column for column in reversed(columns)}
    return next((by_name[name] for name in common_names if name in by_name), None)


def cell_text(value: Any) -> str:  # noqa: ANN401 - whatever a cell holds
    r"""Convert a cell to text on one line; NaN and None become empty.

    >>> cell_text("  two\n lines "), cell_text(3.0), cell_text(["a", "b"]), cell_text(None)
    ('two lines', '3', 'a, b', '')
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list | tuple):
        value = ", ".join(cell_text(item) for item in value)
    return " ".join(str(value).split())


def cell_id(value: Any, location: str) -> str:  # noqa: ANN401 - whatever a cell holds
    """Convert a cell to an id, as it is written but for blanks at its ends; NaN and None become empty.

    Raises:
        UserError: it is a number with a fraction or an exponent, yes or no, or a list, which would be written in
            another way.

    >>> cell_id(" a  b ", "a.csv:2"), cell_id(7.0, "a.csv:3")
    ('a  b', '7')
    """
    text = value.text if isinstance(value, JsonFloat) else repr(value)
    inexact = isinstance(value, float) and (value % 1 > 0 or abs(value) >= 2**53 or not text.endswith((".0", "nan")))
    if inexact or isinstance(value, bool | list | tuple | dict):
        raise UserError(f"{location}: the id {one_line(text)} is no text; write it in quotes.")
    return value.strip() if isinstance(value, str) else cell_text(value)


def read_lines(path: Path, blank: bool = False) -> Iterator[tuple[int, str]]:
    """Read number and text of the lines of a UTF-8 file, also a gzipped one; blank lines only if `blank`.

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if blank or line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: no whole gzip file after line {number}. Compress it again.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from error


def read_json_lines(path: Path, decoder: json.JSONDecoder | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read line number and object of each line of a JSON-lines file that is not blank.

    Raises:
        UserError: a line is not a JSON object, with file and line.
    """
    for number, line in read_lines(path):
        try:
            record = parse_json(line, decoder) if decoder else parse_json(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not a JSON object ({error}).") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: a JSON object is needed, got {type(record).__name__}.")
        if "\\ud" in line.lower():  # the escape of a surrogate, which may be half a pair
            check_encodable(json.dumps(record, ensure_ascii=False), f"{path}:{number}")
        yield number, record


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_CELL_CHARS)
    lines = (line for _, line in read_lines(path, blank=True))
    is_tsv = _ending(path) == ".tsv"
    top, first, separator = _header_line(lines, is_tsv)
    quoting: Literal[0, 3] = csv.QUOTE_NONE if is_tsv and not first.startswith('"') else csv.QUOTE_MINIMAL
    remedy = "\nClose it; write a quote inside a quoted cell twice."
    if separator == "\t" and not is_tsv:
        remedy = "\nTabs separate its cells: name the file .tsv, where a quote is a character like others, or close it."
    number, n_multiline, suspects = top, 0, list[str]()
    try:
        header = [name.strip() for name in next(csv.reader([first], delimiter=separator, quoting=quoting), [])]
        _check_header(path, header)
        reader = csv.reader(lines, delimiter=separator, quoting=quoting, strict=True)
        for row in reader:
            start, number = number + 1, reader.line_num + top  # after the header
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                end = f"; it ends in line {number}: is a quote not closed?" if number > start else "."
                columns = f"{len(row)} columns; the header names {len(header)}, separated by {SEPARATORS[separator]}"
                raise UserError(f"{path}:{start}: {columns}{end}")
            n_multiline += number > start
            if _swallows_rows(row, separator):
                suspects.append(f"{path}:{start}: a quoted cell ends in line {number}, as if it had taken in rows")
            yield f"{path}:{start}", dict(zip(header, row, strict=True))
    except csv.Error as error:
        if "\r" in first.rstrip("\r\n"):
            raise UserError(f"{path}: its lines end in CR alone; save it with line ends of Unix or Windows.") from error
        fault = f"a quote in this row is not closed, or a character follows the closing one ({error}).{remedy}"
        fault = "a cell holds a line break (CR); replace it by a blank." if "new-line" in str(error) else fault
        raise UserError(f"{path}:{number + 1}: {fault}") from error
    if len(header) > 1 and suspects and 2 * len(suspects) > n_multiline:
        raise UserError(f"{suspects[0]}; is a quote not closed?{remedy}")
    for suspect in suspects[:MAX_WARNINGS]:
        log.warning("%s; is a quote not closed?", suspect)


def _header_line(lines: Iterator[str], is_tsv: bool) -> tuple[int, str, str]:
    """Read the line of the header: its number, its text and the separator, which Excel may name in a line before."""
    first = next(lines, "")
    named = re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE)
    if named and named[1] in SEPARATORS:
        return 2, next(lines, ""), named[1]
    return 1, first, "\t" if is_tsv else max(SEPARATORS, key=first.count)


def _swallows_rows(row: Sequence[str], separator: str) -> bool:
    """Return whether a cell goes over lines that look like rows, as behind a quote that is not closed."""
    for column, cell in enumerate(row):
        lines = cell.split("\n")[1:]
        separators = [len(row) - 1] * (len(lines) - 1) + [column]  # of whole rows, then of one up to this column
        if (any(separators) or (lines and len(row) == 1)) and separators == [line.count(separator) for line in lines]:
            return True
    return False


def _check_header(path: Path, header: list[str]) -> None:
    if not any(header):
        raise UserError(f"{path}:1: the first line must name the columns; it is empty.")
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise UserError(f"{path}:1: the column '{one_line(twice[0])}' occurs twice; name each once.")


def _read_json(path: Path) -> Iterator[Row]:
    for number, record in read_json_lines(path, _EXACT):
        yield f"{path}:{number}", record


def _read_json_array(path: Path) -> Iterator[Row]:
    try:
        content = parse_json("".join(line for _, line in read_lines(path)), _EXACT)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}). With an object a line, name it .jsonl.") from error
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else [content]
    if len(lists) != 1 or not isinstance(lists[0], list):  # an object around the one list is read as well
        raise UserError(f"{path}: an array of objects is needed, such as [{{...}}, {{...}}].")
    for number, record in enumerate(lists[0], 1):
        if not isinstance(record, dict):
            raise UserError(f"{path}, item {number}: an object is needed, got {type(record).__name__}.")
        yield f"{path}, item {number}", record


def _read_excel(path: Path) -> Iterator[Row]:
    with needs_extra("reading .xlsx", "excel", "openpyxl", or_else="; or save the table as CSV"):
        import openpyxl
    try:
        sheet = openpyxl.load_workbook(path, read_only=True, data_only=True).worksheets[0]
        rows = [list(row) for row in sheet.iter_rows(values_only=True)]
    except Exception as error:  # of zip, of XML, and openpyxl's own
        raise UserError(f"{path}: not readable as Excel ({one_line(error, 120)}). Save it as .xlsx or CSV.") from error
    header = [cell_text(name) for name in (rows[0] if rows else [])]
    _check_header(path, header)
    for number, row in enumerate(rows[1:], 2):
        if any(value not in (None, "") for value in row):
            cells = {name: value for name, value in zip(header, row, strict=False) if name}
            yield f"{path}, row {number}", {name: "" if value is None else value for name, value in cells.items()}


def _as_text(column: pa.Array) -> pa.Array:
    """Convert a column of bytes, as some programs write texts, to text; other columns are returned as they are."""
    is_bytes = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
    return column.cast(pa.string()) if is_bytes else column


def _read_parquet(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                columns = [_as_text(column) for column in batch.columns]
                for record in pa.RecordBatch.from_arrays(columns, batch.schema.names).to_pylist():
                    number += 1
                    yield f"{path}, row {number}", record
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:  # also text that is not UTF-8, odd dates
        reason = one_line(error, 160)
        raise UserError(f"{path}: not readable as Parquet after row {number} ({reason}).") from error
