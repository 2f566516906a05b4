"""The tables of a report: rows, columns and cells, independent of the output format."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dcdt.evaluation.statistics import FEW_UNITS, spread
from dcdt.reporting.cells import Number

Cell = Number | str
CELL_CAPTION = (
    "Cell: mean over queries [95 % interval by units, conditional on the training sets: bootstrap, or with fewer than "
    f"{FEW_UNITS} units a t interval with the jackknife's standard error] ± standard deviation over runs (folds and "
    "seeds). Bold: the best at the printed precision, with all ties."
)


@dataclass(frozen=True)
class Row:
    """A row: its name, its cells by column, and a note."""

    name: str
    cells: dict[str, Cell] = field(default_factory=dict)
    note: str = ""

    @property
    def without_result(self) -> bool:
        """Whether nothing of it was measured, so that its note replaces its cells."""
        return bool(self.note) and all(key.startswith("reported_") for key in self.cells)


@dataclass(frozen=True)
class Table:
    """A table. `columns` maps keys of cells to headings; `stub` is the heading of the rows' names."""

    name: str
    title: str
    columns: dict[str, str]
    rows: list[Row]
    caption: str = ""
    notes: list[str] = field(default_factory=list)
    stub: str = "Model"

    @property
    def measured(self) -> list[str]:
        """Keys of the columns that are not the paper's, which are last."""
        return [key for key in self.columns if not key.startswith("reported_")]


def metric_name(metric: str) -> str:
    """Return the printed name of a ranking metric.

    >>> metric_name("mrr"), metric_name("ndcg@10"), metric_name("recall@5")
    ('MRR', 'nDCG@10', 'recall@5')
    """
    name, separator, k = metric.partition("@")
    return {"mrr": "MRR", "map": "MAP", "ndcg": "nDCG"}.get(name, name) + separator + k


def mark_best(rows: list[Row], columns: set[str], eligible: set[str]) -> list[Row]:
    """Mark the highest value of each column among the eligible rows, with all that print the same."""
    best: dict[str, str] = {}
    for key in columns:
        column_cells = [row.cells[key] for row in rows if row.name in eligible and key in row.cells]
        numbers = [cell for cell in column_cells if isinstance(cell, Number)]
        if len(numbers) > 1:
            best[key] = max(numbers, key=lambda number: number.value).text()
    marked = []
    for row in rows:
        cells = {
            key: replace(cell, best=True)
            if isinstance(cell, Number) and row.name in eligible and best.get(key) == cell.text()
            else cell
            for key, cell in row.cells.items()
        }
        marked.append(replace(row, cells=cells))
    return marked


def format_counts(n_queries: int, n_units: int) -> str:
    """Format the numbers of queries and of their units.

    >>> format_counts(44, 30), format_counts(44, 44)
    ('n = 44 in 30 units', 'n = 44')
    """
    return f"n = {n_queries}" + (f" in {n_units} units" if n_units < n_queries else "")


def mean_number(values: Sequence[float], digits: int) -> Number:
    """Compute the mean over runs with their standard deviation."""
    return Number(float(np.mean(values)), spread=spread(values), digits=digits)


def format_span(values: Sequence[int]) -> str:
    """Format the lowest and the highest of ascending numbers."""
    return str(values[0]) if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def format_ranges(values: Sequence[int]) -> str:
    """Format ascending numbers, with ranges of three and more.

    >>> format_ranges([0, 1, 2, 3, 7])
    '0 to 3, 7'
    """
    groups: list[list[int]] = []
    for value in values:
        if groups and value == groups[-1][-1] + 1:
            groups[-1].append(value)
        else:
            groups.append([value])
    ranges = [f"{group[0]} to {group[-1]}" if len(group) > 2 else ", ".join(map(str, group)) for group in groups]
    return ", ".join(ranges)
