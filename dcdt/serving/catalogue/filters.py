"""Filters on fields of a video: `level=intro,duration_s<600,series=MIT 18.06|Gilbert Strang`.

A filter is parsed into conditions before anything is done with it. A snapshot evaluates them on its columns, the table
is given SQL that is written from them with every value quoted, so that nothing a user types is executed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcdt.serving.arrow import to_numpy
from dcdt.utils.errors import UserError
from dcdt.utils.text import join_names, one_line, parse_number

MAX_CHARS, MAX_CONDITIONS = 1000, 20
_CONDITION = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(<=|>=|!=|<|>|=|~)\s*(.*?)\s*", re.DOTALL)
_PARTS = re.compile(r'((?:[^,"]|"(?:[^"\\]|\\.)*")+)(?:,|$)', re.DOTALL)
_VALUES = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([^|"]+?))\s*(?:\||$)', re.DOTALL)
SYNTAX = 'write FIELD=VALUE, as in level=intro or duration_s<600; "," joins conditions, "|" values, quotes hold either'


@dataclass(frozen=True)
class Condition:
    """One field compared with values, of which one must match (for `!=` none may).

    Attributes:
        field: a column of the catalogue.
        operator: `=`, `!=`, `<`, `>`, `<=`, `>=` or `~`, which is "contains, whatever the case".
        values: text, or one number each where the column is of numbers.
        kind: `text`, `number` or `list`, of the column.
    """

    field: str
    operator: str
    values: tuple[str | float, ...]
    kind: str


def parse_filter(text: str, kinds: Mapping[str, str]) -> list[Condition]:
    """Parse a filter into conditions, all of which must hold.

    Args:
        text: what the user wrote; empty: no condition.
        kinds: `text`, `number` or `list` of every field that can be filtered.

    Raises:
        UserError: it is no filter, names an unknown field, or compares what cannot be compared.
    """
    if not text.strip():
        return []
    if len(text) > MAX_CHARS:
        raise UserError(f"the filter has {len(text):,} characters; at most {MAX_CHARS} are read.")
    parts, start = [], 0
    while start < len(text):
        found = _PARTS.match(text, start)
        if found is None:
            raise UserError(f"the filter {text!r} cannot be read at character {start + 1}; {SYNTAX}.")
        parts.append(found[1])
        start = found.end()
    if len(parts) > MAX_CONDITIONS:
        raise UserError(f"the filter has {len(parts)} conditions; at most {MAX_CONDITIONS} are read.")
    return [_parse_condition(part, kinds) for part in parts]


def _parse_condition(text: str, kinds: Mapping[str, str]) -> Condition:
    found = _CONDITION.fullmatch(text)
    if found is None or not found[3]:
        raise UserError(f"the filter has the part {text.strip()!r}; {SYNTAX}.")
    field, operator, rest = found[1], found[2], found[3]
    if field not in kinds:
        raise UserError(f"the filter names the field '{one_line(field)}'; fields here are {join_names(sorted(kinds))}.")
    kind = kinds[field]
    if (operator in ("<", ">", "<=", ">=")) != (kind == "number") and operator not in ("=", "!="):
        operators = "~, = and !=" if kind != "number" else "=, !=, <, <=, > and >="
        raise UserError(
            f"the filter compares '{one_line(field)}' by {operator}; a field of kind {kind} takes {operators}."
        )
    values: list[str | float] = []
    start = 0
    while start < len(rest):
        choice = _VALUES.match(rest, start)
        if choice is None:
            raise UserError(f"the filter has the value {rest!r}; {SYNTAX}.")
        value = choice[2] if choice[1] is None else re.sub(r"\\(.)", r"\1", choice[1])
        values.append(_parse_number(field, value) if kind == "number" else value)
        start = choice.end()
    return Condition(field, operator, tuple(values), kind)


def _parse_number(field: str, value: str) -> float:
    number = parse_number(value)
    if not math.isfinite(number):
        raise UserError(f"the filter compares '{one_line(field)}', a number, with {value!r}.")
    return number


def matching_rows(conditions: Sequence[Condition], table: pa.Table) -> NDArray[np.bool_]:
    """Rows of a table (N,) for which every condition holds; a row without the field fails it (also `!=`)."""
    mask = np.ones(table.num_rows, dtype=bool)
    for condition in conditions:
        column = table[condition.field]
        matches = np.zeros(table.num_rows, dtype=bool)
        for value in condition.values:
            matches |= _compare(condition, column, value)
        if condition.operator == "!=":
            matches = ~matches & to_numpy(column.is_valid())
        mask &= matches
    return mask


def _compare(condition: Condition, column: pa.ChunkedArray, value: str | float) -> NDArray[np.bool_]:
    operator = "=" if condition.operator == "!=" else condition.operator
    if condition.kind == "list":
        lists = column.combine_chunks()
        flat, owner = pc.list_flatten(lists), to_numpy(pc.list_parent_indices(lists))
        matches = np.zeros(len(lists), dtype=bool)
        matches[owner[_is_true(_matches(flat, operator, value))]] = True
        return matches
    return _is_true(_matches(column, operator, value))


def _matches(column: pa.ChunkedArray, operator: str, value: str | float) -> pa.ChunkedArray:
    if operator == "~":
        return pc.match_substring(pc.utf8_lower(column), str(value).lower())
    compare = {"=": pc.equal, "<": pc.less, ">": pc.greater, "<=": pc.less_equal, ">=": pc.greater_equal}[operator]
    return compare(column, pa.scalar(value, column.type))


def _is_true(found: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Truth values as numpy; null is false."""
    return np.asarray(to_numpy(pc.fill_null(found, False)), dtype=bool)


def to_sql(conditions: Sequence[Condition]) -> str:
    """Conditions as SQL for DataFusion; every value is a quoted literal or a number."""
    return " AND ".join(f"({_clause(condition)})" for condition in conditions)


def _clause(condition: Condition) -> str:
    name = f"`{condition.field}`"
    if condition.operator == "!=":
        excluded = " OR ".join(_test(name, condition.kind, "=", value) for value in condition.values)
        return f"{name} IS NOT NULL AND NOT ({excluded})"
    return " OR ".join(_test(name, condition.kind, condition.operator, value) for value in condition.values)


def _test(name: str, kind: str, operator: str, value: str | float) -> str:
    if kind == "number":
        return f"{name} {operator} {float(value)!r}"
    if kind == "list":
        if operator == "~":
            joined = f"lower(array_to_string({name}, '\x1f'))"
            return f"strpos({joined}, {quote(str(value).lower())}) > 0"
        return f"array_has({name}, {quote(str(value))})"
    if operator == "~":
        return f"strpos(lower({name}), {quote(str(value).lower())}) > 0"
    return f"{name} = {quote(str(value))}"


def quote(value: str) -> str:
    """Write a text as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"
