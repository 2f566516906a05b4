import csv
import io
import json
import math
import re
import shutil
import subprocess

import pytest
from run_folders import write_run

from dcdt.reporting import render
from dcdt.reporting.cells import Number
from dcdt.reporting.table_types import Row, Table
from dcdt.reporting.tables import make_report
from dcdt.runs.reader import read_runs

NASTY = r"=cmd|'/c calc'!A1 \input{x} 50% a_b & #1 $x$ ~^ <script> € | é"


@pytest.fixture(scope="module")
def report(comparison):
    return make_report(read_runs([comparison]))


@pytest.fixture
def nasty(tmp_path):
    write_run(tmp_path, "zero_shot")
    write_run(tmp_path, "dcdt", status="failed", error=NASTY)
    return make_report(read_runs([tmp_path]))


def example():
    rows = [
        Row("a_1", {"x": Number(0.12345, 0.1, 0.15, 0.02, best=True), "y": "one | two"}),
        Row("b", {"x": Number(0.1)}, "failed: why"),
        Row("c", {}, "not applicable"),
    ]
    return Table("t", "Title", {"x": "X", "y": "Y"}, rows, "Caption.", ["Note one.", "Note two."])


def test_markdown_golden():
    assert render.markdown([example()]) == (
        "## Title\n\n"
        "| Model | X | Y | Note |\n"
        "| --- | ---: | --- | --- |\n"
        "| a\\_1 | **0.123** [0.100, 0.150] ± 0.020 | one \\| two |  |\n"
        "| b | 0.100 |  | failed: why |\n"
        "| c |  |  | not applicable |\n\n"
        "Caption.\n\n"
        "- Note one.\n- Note two.\n"
    )


def test_markdown_keeps_its_columns_whatever_a_cell_says(nasty):
    broken = Table("t", "Title", {"x": "X"}, [Row("a\nb", {"x": "c\n| d"})])
    for table in (*nasty.tables, nasty.failures, broken):
        lines = [line for line in render.markdown([table]).splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def test_csv_golden():
    assert render.csv_wide(example()) == (
        "model,x,x_low,x_high,x_spread,y,note\n"
        "a_1,0.123450,0.100000,0.150000,0.020000,one | two,\n"
        "b,0.100000,,,,,failed: why\n"
        "c,,,,,,not applicable\n"
    )
    assert render.csv_long([example()]) == (
        "table,row,column,value,low,high,spread\nt,a_1,x,0.123450,0.100000,0.150000,0.020000\nt,b,x,0.100000,,,\n"
    )


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_text_cell_of_a_csv_is_a_formula(start):
    table = Table("t", "t", {"x": "X", "y": "Y"}, [Row(f"{start}1+1", {"x": f"{start}2", "y": Number(-0.5, -1, 0)})])
    for text in (render.csv_wide(table), render.csv_long([table])):
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row if not is_number(cell)]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
        assert any(cell.endswith("1+1") for cell in cells)
    assert "-0.500000" in render.csv_wide(table)  # a number stays a number


def test_no_formula_reaches_the_csv_of_a_report(nasty):
    for table in (*nasty.tables, nasty.failures, nasty.cost):
        for row in csv.reader(io.StringIO(render.csv_wide(table))):
            assert not [cell for cell in row if cell.startswith(("=", "+", "-", "@")) and not is_number(cell)]


def is_number(text):
    try:
        return bool(float(text)) or True
    except ValueError:
        return False


def test_csv_is_the_table_of_the_report(report):
    lines = list(csv.DictReader(io.StringIO(render.csv_wide(report.tables[0]))))
    assert [line["model"] for line in lines] == [row.name for row in report.tables[0].rows]
    for line, row in zip(lines, report.tables[0].rows, strict=True):
        cell = row.cells["mrr"]
        values = [float(line[name]) for name in ("mrr", "mrr_low", "mrr_high", "mrr_spread")]
        assert values == pytest.approx([cell.value, cell.low, cell.high, cell.spread], abs=1e-6)


def test_json_has_full_precision_and_no_nan(report):
    found = json.loads(render.report_json(report), parse_constant=pytest.fail)
    cells = found["tables"][0]["rows"][0]["cells"]
    cell = report.tables[0].rows[0].cells["mrr"]
    assert cells["mrr"] == {
        "value": cell.value,
        "low": cell.low,
        "high": cell.high,
        "spread": cell.spread,
        "by_query": {"low": cell.by_query[0], "high": cell.by_query[1]},
        "best": True,
    }
    [tests] = [table for table in found["tables"] if table["name"] == "tests"]
    for row, comparison in zip(tests["rows"], report.comparisons, strict=True):
        assert row["cells"]["p"] == {"value": comparison.adjusted, "by_query": {"value": comparison.adjusted_by_query}}
        assert row["cells"]["verdict_by_query"] == comparison.verdict_by_query
        assert row["cells"]["detectable_difference"]["value"] == comparison.detectable
    assert "best" not in found["tables"][0]["rows"][-1]["cells"]["mrr"]
    assert (found["best"], found["zero_shot"], found["primary_metric"]) == ("dcdt", "zero_shot", "mrr")


def test_a_number_that_is_not_there_is_left_out():
    assert render.interval_and_spread(Number(0.5, spread=math.nan)) == []
    table = Table("t", "t", {"x": "X"}, [Row("a", {"x": Number(0.5)})])
    assert "nan" not in render.csv_wide(table) + render.table_json(table) + render.markdown([table]) + render.latex(
        [table]
    )


def unescaped(text, char):
    return re.findall(rf"(?<!\\){re.escape(char)}", text)


def test_latex_is_balanced_and_escaped(nasty):
    text = render.latex([*nasty.tables, nasty.failures])
    body = text[len(render.LATEX_HEAD) : -len(render.LATEX_FOOT)]
    for name in ("table", "tabular"):
        assert body.count(rf"\begin{{{name}}}") == body.count(rf"\end{{{name}}}") > 0
    assert len(unescaped(body, "{")) == len(unescaped(body, "}"))
    assert not unescaped(body, "#") and not unescaped(body, "_")
    assert len(unescaped(body, "%")) == body.count("{!}{%\n")
    assert len(unescaped(body, "$")) % 2 == 0
    assert r"\input" not in body and r"\textbackslash{}input\{x\}" in body
    assert body.isascii()


def test_latex_rows_have_the_columns_of_their_table(report, nasty):
    for table in (*report.tables, *nasty.tables, nasty.failures):
        text = render.latex([table])
        columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1])
        for line in text[text.index(r"\toprule") : text.index(r"\bottomrule")].splitlines():
            if line.endswith(r"\\"):
                spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
                assert len(unescaped(line, "&")) + 1 + spanned == columns


@pytest.mark.usefixtures("papers")
def test_a_row_without_a_result_says_why_and_keeps_the_papers_numbers(nasty):
    (line,) = (line for line in render.latex(nasty.tables[:1]).splitlines() if line.startswith("dcdt"))
    assert re.match(
        r"dcdt & \\multicolumn\{11\}\{l\}\{failed in 1 of 1 jobs: .*\} & 0\.821 & 0\.784 & 0\.802 & 0\.641", line
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("way", ["alone", "inside"])
def test_latex_compiles_alone_and_inside_another_document(report, nasty, tmp_path, way):
    text = render.latex([*report.tables, report.cost, *nasty.tables, nasty.failures])
    (tmp_path / "table.tex").write_text(text)
    head = r"\documentclass{article}\usepackage{booktabs,graphicx}"
    (tmp_path / "inside.tex").write_text(head + r"\begin{document}\input{table} The end.\end{document}")
    name = "table" if way == "alone" else "inside"
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / f"{name}.pdf").is_file()
