"""Filters on what is known of a video: `level=intro,duration_s<600,series=MIT 18.06|Gilbert Strang`.

A filter is parsed into conditions before anything is done with it. The memory engine evaluates them on columns, the
LanceDB engine is given SQL that is written from them with every value quoted, so that nothing a user types is executed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcdt.serving.arrow import numbers
from dcdt.utils.errors import UserError
from dcdt.utils.text import join_names, one_line

LONGEST, MOST = 1000, 20  # characters of a filter, conditions in one
OPERATORS = ("<=", ">=", "!=", "<", ">", "=", "~")
_CONDITION = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*(<=|>=|!=|<|>|=|~)\s*(.*?)\s*", re.DOTALL)
_PARTS = re.compile(r'((?:[^,"]|"(?:[^"\\]|\\.)*")+)(?:,|$)', re.DOTALL)
_CHOICES = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|([^|"]+?))\s*(?:\||$)', re.DOTALL)
HOW = 'write FIELD=VALUE, as in level=intro or duration_s<600; "," joins conditions, "|" values, quotes hold either'


@dataclass(frozen=True)
class Condition:
    """One field compared with values, of which one must hold (for `!=` none may).

    Attributes:
        field: a column of the catalogue.
        operator: one of OPERATORS; `~` is "contains, whatever the case".
        values: text, or one number each where the column is of numbers.
        kind: `text`, `number` or `list`, of the column.
    """

    field: str
    operator: str
    values: tuple[str | float, ...]
    kind: str


def parse_filter(text: str, kinds: Mapping[str, str]) -> list[Condition]:
    """Conditions of a filter; all must hold.

    Args:
        text: what the user wrote; empty: no condition.
        kinds: `text`, `number` or `list` of every field that can be filtered.

    Raises:
        UserError: it is no filter, names an unknown field, or compares what cannot be compared.
    """
    if not text.strip():
        return []
    if len(text) > LONGEST:
        raise UserError(f"the filter has {len(text):,} characters; at most {LONGEST} are read.")
    parts, at = [], 0
    while at < len(text):
        found = _PARTS.match(text, at)
        if found is None:
            raise UserError(f"the filter {text!r} cannot be read at character {at + 1}; {HOW}.")
        parts.append(found[1])
        at = found.end()
    if len(parts) > MOST:
        raise UserError(f"the filter has {len(parts)} conditions; at most {MOST} are read.")
    return [_condition(part, kinds) for part in parts]


def _condition(text: str, kinds: Mapping[str, str]) -> Condition:
    found = _CONDITION.fullmatch(text)
    if found is None or not found[3]:
        raise UserError(f"the filter has the part {text.strip()!r}; {HOW}.")
    field, operator, rest = found[1], found[2], found[3]
    if field not in kinds:
        raise UserError(f"the filter names the field '{one_line(field)}'; fields here are {join_names(sorted(kinds))}.")
    kind = kinds[field]
    if (operator in ("<", ">", "<=", ">=")) != (kind == "number") and operator not in ("=", "!="):
        better = "~, = and !=" if kind != "number" else "=, !=, <, <=, > and >="
        raise UserError(
            f"the filter compares '{one_line(field)}' by {operator}; a field of kind {kind} takes {better}."
        )
    values: list[str | float] = []
    at = 0
    while at < len(rest):
        choice = _CHOICES.match(rest, at)
        if choice is None:
            raise UserError(f"the filter has the value {rest!r}; {HOW}.")
        value = choice[2] if choice[1] is None else re.sub(r"\\(.)", r"\1", choice[1])
        values.append(_number(field, value) if kind == "number" else value)
        at = choice.end()
    return Condition(field, operator, tuple(values), kind)


def _number(field: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"the filter compares '{one_line(field)}', a number, with {value!r}.")
    return number


def mask(conditions: Sequence[Condition], table: pa.Table) -> NDArray[np.bool_]:
    """Rows of a table (N,) for which every condition holds; a row without the field fails it (also `!=`)."""
    keep = np.ones(table.num_rows, dtype=bool)
    for condition in conditions:
        column = table[condition.field]
        hits = np.zeros(table.num_rows, dtype=bool)
        for value in condition.values:
            hits |= _compare(condition, column, value)
        if condition.operator == "!=":
            hits = ~hits & numbers(column.is_valid())
        keep &= hits
    return keep


def _compare(condition: Condition, column: pa.ChunkedArray, value: str | float) -> NDArray[np.bool_]:
    operator = "=" if condition.operator == "!=" else condition.operator
    if condition.kind == "list":
        lists = column.combine_chunks()
        flat, owner = pc.list_flatten(lists), numbers(pc.list_parent_indices(lists))
        hits = np.zeros(len(lists), dtype=bool)
        hits[owner[_truth(_matches(flat, operator, value))]] = True
        return hits
    return _truth(_matches(column, operator, value))


def _matches(column: pa.ChunkedArray, operator: str, value: str | float) -> pa.ChunkedArray:
    if operator == "~":
        return pc.match_substring(pc.utf8_lower(column), str(value).lower())
    compare = {"=": pc.equal, "<": pc.less, ">": pc.greater, "<=": pc.less_equal, ">=": pc.greater_equal}[operator]
    return compare(column, pa.scalar(value, column.type))


def _truth(found: pa.Array | pa.ChunkedArray) -> NDArray[np.bool_]:
    """Truth values as numpy; what is not known is not true."""
    return np.asarray(
        numbers(pc.equal(found, pa.scalar(True)).cast(pa.uint8()).fill_null(pa.scalar(0, pa.uint8()))) == 1
    )


def sql(conditions: Sequence[Condition]) -> str:
    """The same as an SQL condition for DataFusion; every value is a quoted literal or a number."""
    return " AND ".join(f"({_clause(condition)})" for condition in conditions)


def _clause(condition: Condition) -> str:
    name = f"`{condition.field}`"
    if condition.operator == "!=":
        wrong = " OR ".join(_test(name, condition.kind, "=", value) for value in condition.values)
        return f"{name} IS NOT NULL AND NOT ({wrong})"
    return " OR ".join(_test(name, condition.kind, condition.operator, value) for value in condition.values)


def _test(name: str, kind: str, operator: str, value: str | float) -> str:
    if kind == "number":
        return f"{name} {operator} {float(value)!r}"
    if kind == "list":
        if operator == "~":
            joined = f"lower(array_to_string({name}, '\x1f'))"
            return f"strpos({joined}, {quoted(str(value).lower())}) > 0"
        return f"array_has({name}, {quoted(str(value))})"
    if operator == "~":
        return f"strpos(lower({name}), {quoted(str(value).lower())}) > 0"
    return f"{name} = {quoted(str(value))}"


def quoted(value: str) -> str:
    """A text as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"
