import csv
import gzip
import json
import sys
from contextlib import nullcontext

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdt.data.table_reader import SEPARATORS, find_column, read_rows
from dcdt.utils.errors import UserError

CELLS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).map(
    lambda text: f"{text}."  # never blank, never a number
)
TABLES = st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=6)


@given(table=TABLES, separator=st.sampled_from(list(SEPARATORS)))
def test_what_the_csv_module_writes_is_read_back_whatever_the_separator(tmp_path_factory, table, separator):
    path = tmp_path_factory.mktemp("rows") / "videos.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as lines:
        csv.writer(lines, delimiter=separator).writerows([("a", "b", "c"), *table])
    assert [tuple(row.values()) for _, row in read_rows(path)] == table


def test_the_same_rows_in_every_format(tmp_path):
    rows = [{"id": "1", "title": "a, b"}, {"id": "2", "title": 'two\nlines "quoted"'}]
    with (tmp_path / "v.tsv").open("w", newline="") as lines:
        writer = csv.writer(lines, delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writerows([("id", "title"), *(tuple(row.values()) for row in rows)])
    (tmp_path / "v.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "v.parquet")
    table = pa.Table.from_pylist(rows)
    texts = [pa.binary() if pa.types.is_string(kind) else kind for kind in table.schema.types]
    pq.write_table(table.cast(pa.schema(zip(table.schema.names, texts, strict=True))), tmp_path / "bytes.parquet")
    for name in ("v.tsv", "v.jsonl", "v.parquet", "bytes.parquet"):
        assert [row for _, row in read_rows(tmp_path / name)] == rows


def test_a_quote_in_tsv_is_a_character(tmp_path):
    titles = ["a", '"open', 'the "Oxford" comma', '"all"', 'close"', "1,5"]
    (tmp_path / "v.tsv").write_text("id\ttitle\n" + "".join(f"{n}\t{title}\n" for n, title in enumerate(titles)))
    assert [row["title"] for _, row in read_rows(tmp_path / "v.tsv")] == titles


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('id,title\n1,a\n2,"b\n3,c\n4,d"\n5,e\n', 3),  # two rows swallowed
        ('id,title\n1,"a\n2,b"\n', 2),  # one row swallowed
        ('title,id\n"a,1\nb,2\nc",3\n', 2),
        ('id,title\n1,"a\nb"\n', None),
        ('id,title\n1,"First, this.\nThen, that, too."\n', None),
        ('title,id\n"a\nb",1\n', None),
    ],
)
def test_a_quote_that_is_not_closed_is_named_by_its_line(tmp_path, content, line):
    (tmp_path / "v.csv").write_text(content)
    with pytest.raises(UserError, match=f"v.csv:{line}: a quoted cell") if line else nullcontext():
        list(read_rows(tmp_path / "v.csv"))


def test_a_place_is_the_line_where_a_row_begins(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text('id,title\n1,"two\nlines"\n\n2,b\n')
    assert [place for place, _ in read_rows(path)] == [f"{path}:2", f"{path}:5"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.ods", b"", r"the ending '.ods' is not known; give .csv, .tsv, .json, .jsonl"),
        ("v.csv", b"id,title\n1,a,b\n", r"v.csv:2: 3 columns; the header names 2"),
        ("v.csv", b"id,id\n1,a\n", r"v.csv:1: the column 'id' occurs twice"),
        ("v.csv", b"", r"v.csv:1: the first line must name the columns"),
        ("v.csv", b'id,title\n1,"never closed\n', r"v.csv:2: a quote in this row is not closed"),
        ("v.csv", b"id,title\n1,caf\xe9\n", r"v.csv:2: not UTF-8"),
        ("v.jsonl", b'{"id": 1}\n[1]\n', r"v.jsonl:2: a JSON object is needed, got list"),
        ("v.jsonl", b'{"id": 1}\n{"id"\n', r"v.jsonl:2: not a JSON object"),
        ("v.csv", b"id,title\rv1,One\rv2,Two", r"v.csv: its lines end in CR alone"),
        ("v.parquet", b"PAR1 not really", r"v.parquet: not readable as Parquet after row 0"),
    ],
)
def test_what_is_no_table_is_told_with_its_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_rows(tmp_path / name))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none.csv: there is no such file"):
        read_rows(tmp_path / "none.csv")


def test_columns_are_found_by_usual_names_in_any_case_and_by_the_name_given():
    columns = ["Video-ID", " Title ", "blurb"]
    assert find_column(columns, None, ("id", "video_id"), "--id-column") == "Video-ID"
    assert find_column(columns, None, ("title",), "--title-column") == " Title "
    assert find_column(columns, "blurb", ("text",), "--text-column") == "blurb"
    assert find_column(columns, None, ("text",), "--text-column") is None
    assert find_column(columns, "Blurb ", ("text",), "--text-column") == "blurb"
    with pytest.raises(UserError, match=r"--text-column 'words': there is no such column; the file has: Video-ID"):
        find_column(columns, "words", ("text",), "--text-column")
    with pytest.raises(UserError, match=r"--text-column 'AA': there is no such column"):
        find_column(["Aa", "aA"], "AA", ("text",), "--text-column")


ROWS = [{"id": "a", "title": "One"}, {"id": "b", "title": "Two"}]


def test_an_array_of_json_is_read_and_other_json_refused(tmp_path):
    path = tmp_path / "v.json"
    for content in (ROWS, {"videos": ROWS}):
        path.write_text(json.dumps(content))
        assert [row for _, row in read_rows(path)] == ROWS
    assert [location for location, _ in read_rows(path)] == [f"{path}, item 1", f"{path}, item 2"]
    for text, message in (
        ("[1]", "item 1: an object is needed, got int"),
        ('{"a": 1}', "an array of objects is needed"),
        ('{"a": 1}\n{"a": 2}', "not JSON .* name it .jsonl"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            list(read_rows(path))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "tsv"])
def test_gzipped_texts_are_read(tmp_path, ending):
    texts = {
        "csv": "id,title\na,One\nb,Two\n",
        "tsv": "id\ttitle\na\tOne\nb\tTwo\n",
        "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        "json": json.dumps(ROWS),
    }
    path = tmp_path / f"v.{ending}.gz"
    path.write_bytes(gzip.compress(texts[ending].encode()))
    assert [row for _, row in read_rows(path)] == ROWS
    for content in (path.read_bytes()[:-9], b"no gzip at all"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no whole gzip file"):
            list(read_rows(path))
    with pytest.raises(UserError, match=r"ending '\.gz' is not known"):
        read_rows(tmp_path / "v.parquet.gz")


def test_the_line_of_excel_that_names_the_separator_is_no_header(tmp_path):
    path = tmp_path / "v.csv"
    path.write_text("sep=;\nid;title\na;One, two\nb\n")
    rows = read_rows(path)
    assert next(rows) == (f"{path}:3", {"id": "a", "title": "One, two"})
    with pytest.raises(UserError, match=":4: 1 columns; the header names 2, separated by semicolons"):
        next(rows)


def test_the_first_sheet_of_excel_is_read(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["Video ID", "Title", "Length"], [7, "One", "5:06"], [None, None, None], ["b", "Two", None]):
        book.active.append(row)
    book.create_sheet("notes").append(["nothing"])
    path = tmp_path / "v.xlsx"
    book.save(path)
    assert list(read_rows(path)) == [
        (f"{path}, row 2", {"Video ID": 7, "Title": "One", "Length": "5:06"}),
        (f"{path}, row 4", {"Video ID": "b", "Title": "Two", "Length": ""}),
    ]
    path.write_bytes(b"no workbook")
    with pytest.raises(UserError, match="not readable as Excel"):
        list(read_rows(path))


def test_without_openpyxl_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    (tmp_path / "v.xlsx").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"needs the extra 'excel': pip install 'dcdt\[excel\]'; or save the table as CSV"
    ):
        list(read_rows(tmp_path / "v.xlsx"))
