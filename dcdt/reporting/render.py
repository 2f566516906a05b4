"""Render tables as Markdown, LaTeX, CSV and JSON. The same tables give the same bytes."""

import csv
import io
import json
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from dcdt.reporting.cells import Number
from dcdt.reporting.table_types import Cell, Row, Table, metric_name
from dcdt.reporting.tables import Report
from dcdt.utils.files import escape_cell

NOTE = "Note"
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "…": r"\ldots{}",
}
LATEX_HEAD = r"""% A document (pdflatex table.tex), and a fragment for \input where booktabs and graphicx are loaded.
\expandafter\ifx\csname @nodocument\endcsname\relax\else
\documentclass[a4paper]{article}
\usepackage[landscape,margin=15mm]{geometry}
\usepackage{booktabs,graphicx}
\begin{document}
\let\dcdtend=1
\fi
"""
LATEX_FOOT = r"""\expandafter\ifx\csname dcdtend\endcsname\relax\let\dcdtlast\relax\else\def\dcdtlast{\end{document}}\fi
\dcdtlast
"""


def markdown(tables: Sequence[Table]) -> str:
    """Render all tables with captions and notes."""
    return "\n".join(_markdown(table) for table in tables)


def _markdown(table: Table) -> str:
    rows = _grid(table, _markdown_cell, _markdown_text)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    rule = "|" + "|".join([" --- ", *(" ---: " if _numeric(table, key) else " --- " for key in _keys(table))]) + "|"
    lines.insert(1, rule)
    text = [f"## {_markdown_text(table.title)}", "\n".join(lines), _markdown_text(table.caption)]
    text.append("\n".join(f"- {_markdown_text(note)}" for note in table.notes))
    return "\n\n".join(paragraph for paragraph in text if paragraph) + "\n"


def _markdown_cell(cell: Cell) -> str:
    if not isinstance(cell, Number):
        return _markdown_text(cell)
    text = f"**{cell.text()}**" if cell.best else cell.text()
    return " ".join([_markdown_text(text) if cell.floor else text, *interval_and_spread(cell)])


def _markdown_text(text: str) -> str:
    r"""Escape a text for Markdown.

    >>> print(_markdown_text("a_b | <i>"))
    a\_b \| \<i\>
    """
    return re.sub(r"([\\`*_|<>\[\]])", r"\\\1", " ".join(text.split()))


def latex(tables: Sequence[Table]) -> str:
    """Render all tables as one file: a document by itself, a fragment inside another."""
    return LATEX_HEAD + "\n".join(_latex(table) for table in tables) + LATEX_FOOT


def _latex(table: Table) -> str:
    keys = list(table.columns)
    align = "l" + "".join("r" if _numeric(table, key) else "l" for key in keys)
    heads = [_stack([latex_text(line) for line in textwrap.wrap(table.columns[key], 13)], "b") for key in keys]
    row_notes = [f"{row.name}: {row.note}." for row in table.rows if row.note and not row.without_result]
    notes = [latex_text(text) for text in (table.caption, *table.notes, *row_notes) if text]
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"\centering",
            rf"\caption{{{latex_text(table.title)}}}",
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{align}}}",
            r"\toprule",
            " & ".join([latex_text(table.stub), *heads]) + r" \\",
            r"\midrule",
            "\n\\addlinespace\n".join(_latex_row(table, row) for row in table.rows),
            r"\bottomrule",
            r"\end{tabular}}",
            *([r"\par\smallskip", r"{\footnotesize\raggedright " + r" \par ".join(notes) + r" \par}"] if notes else []),
            r"\end{table}",
            "",
        ]
    )


def _latex_row(table: Table, row: Row) -> str:
    cells = [_latex_cell(row.cells.get(key, "")) for key in table.columns]
    if row.without_result:
        width = len(table.measured)
        cells = [rf"\multicolumn{{{width}}}{{l}}{{{latex_text(row.note)}}}", *cells[width:]]
    return " & ".join([latex_text(row.name), *cells]) + r" \\"


def _latex_cell(cell: Cell) -> str:
    if not isinstance(cell, Number):
        return latex_text(cell)
    value = latex_text(cell.text()).replace("-", r"$-$")
    lines = [rf"\textbf{{{value}}}" if cell.best else value]
    return _stack(lines + [rf"{{\scriptsize {latex_text(extra)}}}" for extra in interval_and_spread(cell)], "t")


def _stack(lines: list[str], position: str) -> str:
    """Stack lines in one cell, aligned with its row at the top (t) or the bottom (b)."""
    if len(lines) == 1:
        return lines[0]
    return rf"\begin{{tabular}}[{position}]{{@{{}}r@{{}}}}" + r" \\ ".join(lines) + r"\end{tabular}"


def latex_text(text: str) -> str:
    r"""Escape a text for LaTeX; characters that its fonts lack become a question mark.

    >>> print(latex_text("50% of a_b & {c}"))
    50\% of a\_b \& \{c\}
    """
    plain = (
        char if char in _LATEX or (char.isascii() and char.isprintable()) else "?" for char in " ".join(text.split())
    )
    return "".join(_LATEX.get(char, char) for char in plain)


def csv_wide(table: Table) -> str:
    """Render a table with up to four columns a number: its value, the ends of its interval and its spread."""
    fields = {key: _number_fields(table, key) for key in _keys(table)}
    lines = [[table.stub.lower(), *(name for key, columns in fields.items() for name in _headings(key, columns))]]
    for row in table.rows:
        cells = _cells(table, row)
        lines.append(
            [escape_cell(row.name), *(text for key, columns in fields.items() for text in _values(cells[key], columns))]
        )
    return _csv(lines)


def csv_long(tables: Sequence[Table]) -> str:
    """Render one line a number: table, row, column, value, low, high, spread."""
    lines = [["table", "row", "column", "value", "low", "high", "spread"]]
    for table in tables:
        for row in table.rows:
            for key, cell in row.cells.items():
                if isinstance(cell, Number):
                    lines.append(
                        [
                            table.name,
                            escape_cell(row.name),
                            escape_cell(key),
                            *_values(cell, ("value", "low", "high", "spread")),
                        ]
                    )
    return _csv(lines)


def _csv(lines: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _number_fields(table: Table, key: str) -> tuple[str, ...]:
    numbers = [cell for row in table.rows if isinstance(cell := _cells(table, row)[key], Number)]
    if not numbers:
        return ()
    extra = [name for name in ("low", "high", "spread") if any(not math.isnan(getattr(one, name)) for one in numbers)]
    return ("value", *extra)


def _headings(key: str, names: tuple[str, ...]) -> list[str]:
    return [escape_cell(key if name == "value" else f"{key}_{name}") for name in names] or [escape_cell(key)]


def _values(cell: Cell, names: tuple[str, ...]) -> list[str]:
    if not isinstance(cell, Number):
        return [escape_cell(cell), *[""] * (len(names) - 1)]
    return ["" if math.isnan(value) else f"{value:.6f}" for value in (float(getattr(cell, name)) for name in names)]


def report_json(report: Report) -> str:
    """Render a report in full precision."""
    content = {
        "facts": report.metadata,
        "primary_metric": report.metric,
        "best": report.best.label,
        "zero_shot": report.reference.label if report.reference else None,
        "tables": [_json_table(table) for table in (*report.tables, report.failures)],
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def table_json(table: Table) -> str:
    """Render one table in full precision."""
    return json.dumps(_json_table(table), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _json_table(table: Table) -> dict[str, Any]:
    rows = []
    for row in table.rows:
        cells = {key: _json_cell(cell) for key, cell in row.cells.items()}
        rows.append({"name": row.name, "cells": cells, **({"note": row.note} if row.note else {})})
    return {
        "name": table.name,
        "title": table.title,
        "columns": table.columns,
        "rows": rows,
        "caption": table.caption,
        "notes": table.notes,
    }


def _json_cell(cell: Cell) -> Any:  # noqa: ANN401 - a text or an object
    if not isinstance(cell, Number):
        return cell
    values = {name: getattr(cell, name) for name in ("value", "low", "high", "spread")}
    by_query = dict(zip(("low", "high") if len(cell.by_query) > 1 else ("value",), cell.by_query, strict=False))
    by_query = {name: value for name, value in by_query.items() if not math.isnan(value)}
    return {
        **{name: value for name, value in values.items() if not math.isnan(value)},
        **({"by_query": by_query} if by_query else {}),
        **({"best": True} if cell.best else {}),
    }


def interval_and_spread(cell: Number) -> list[str]:
    """Format interval and spread of a cell, those that it has.

    >>> interval_and_spread(Number(0.5, 0.4, 0.6, 0.02))
    ['[0.400, 0.600]', '± 0.020']
    """
    texts = []
    if not math.isnan(cell.low):
        texts.append(f"[{cell.text(cell.low)}, {cell.text(cell.high)}]")
    if not math.isnan(cell.spread):
        texts.append(f"± {cell.spread:.{cell.digits}f}")
    return texts


def _grid(table: Table, show: Callable[[Cell], str], text: Callable[[str], str]) -> list[list[str]]:
    """Return headings and rows of formatted cells; notes are the last column if any row has one."""
    heads = [text(table.stub), *(text(table.columns.get(key, NOTE)) for key in _keys(table))]
    return [heads, *([text(row.name), *(show(cell) for cell in _cells(table, row).values())] for row in table.rows)]


def _keys(table: Table) -> list[str]:
    return [*table.columns, *(["note"] if any(row.note for row in table.rows) else [])]


def _cells(table: Table, row: Row) -> dict[str, Cell]:
    return {key: row.note if key == "note" else row.cells.get(key, "") for key in _keys(table)}


def _numeric(table: Table, key: str) -> bool:
    return key in ("n", "units") or any(isinstance(row.cells.get(key), Number) for row in table.rows)


def summary(report: Report) -> str:
    """Summarise the comparison for the terminal: the primary metric and the verdict against zero_shot."""
    against = report.reference.label if report.reference else None
    verdicts = {
        comparison.model: comparison.verdict for comparison in report.comparisons if comparison.reference == against
    }
    width = max(len(row.name) for row in report.tables[0].rows)
    lines = []
    for row in report.tables[0].rows:
        cell = row.cells.get(report.metric)
        value = (
            f"{cell.text()} {interval_and_spread(cell)[0]}"
            if isinstance(cell, Number) and interval_and_spread(cell)
            else ""
        )
        verdict = f"{verdicts[row.name]} (against {against})" if row.name in verdicts else ""
        columns = (value, verdict, row.note)
        lines.append("  ".join([row.name.ljust(width), *(column for column in columns if column)]))
    return "\n".join([f"{report.metadata['collection']}, {metric_name(report.metric)}:", *lines])
