"""The engine in process: exact below a size, faiss above it; what changes lies beside what was built.

Searching reads one `View`, which never changes; a change makes another view and puts it in its place, so that searches
and changes may run at the same time. The built part (`main`) and its approximate index stay as they are; what comes
later (`fresh`) is searched exactly, and what is gone is masked. So recall never wears off by changes.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdt.data.bm25 import Postings
from dcdt.serving.ann import EXACT_CELLS, Ann
from dcdt.serving.arrow import numbers, positions
from dcdt.serving.filters import Condition, mask
from dcdt.serving.index import Hits, Matrix, best, vector_column, vectors_of
from dcdt.utils.errors import UserError, format_error
from dcdt.utils.files import atomic_write
from dcdt.utils.text import one_line

SNAPSHOT = "snapshot.arrow"
FEW = 32  # rows that are read cell by cell


@dataclass(frozen=True)
class Part:
    """Consecutive videos: what is shown of them, their vectors, their words."""

    table: pa.Table
    vectors: dict[str, Matrix]
    _postings: dict[str, Postings] = field(default_factory=dict)

    @staticmethod
    def of(table: pa.Table) -> "Part":
        """Split a table into vector columns and the rest."""
        names = [name for name in table.column_names if pa.types.is_fixed_size_list(table.schema.field(name).type)]
        return Part(table.drop_columns(names), {name: vectors_of(table, name) for name in names})

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def postings(self, column: str) -> Postings:
        """Inverted lists of a column of words, made once."""
        if column not in self._postings:
            self._postings[column] = Postings.of(self.table[column])
        return self._postings[column]

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Where each video stands among equals, by a hash of its id, as in every evaluation."""
        digests = [hashlib.sha256(f"0:{name}".encode()).digest()[:8] for name in self.table["id"].to_pylist()]
        return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64).view(np.int64) ^ np.int64(-(2**63))

    def with_rows(self, other: "Part") -> "Part":
        """These videos and then the others."""
        if not len(other):
            return self
        vectors = {name: np.concatenate([matrix, other.vectors[name]]) for name, matrix in self.vectors.items()}
        return Part(pa.concat_tables([self.table, other.table]).combine_chunks(), vectors)


@dataclass(frozen=True)
class View:
    """One state of a catalogue, which never changes.

    Attributes:
        main: the videos as built.
        fresh: those that came since.
        alive: (N,) false for videos of either part that are gone.
        anns: approximate index of a vector column of `main`, where there are many.
        version: of the catalogue.
    """

    main: Part
    fresh: Part
    alive: NDArray[np.bool_]
    version: int
    anns: dict[str, Ann] = field(default_factory=dict)

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        return int(np.count_nonzero(self.alive))

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that hold something."""
        return (self.main, self.fresh) if len(self.fresh) else (self.main,)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Where each row stands among equals, (N,)."""
        return np.concatenate([part.order for part in self.parts])

    @cached_property
    def table(self) -> pa.Table:
        """All rows, without vectors, also those that are gone."""
        return pa.concat_tables([part.table for part in self.parts])

    def scores(self, vector: NDArray[np.float32], column: str) -> NDArray[np.float32]:
        """Inner products with all rows, (N,)."""
        return np.concatenate([multiply(part.vectors[column], vector) for part in self.parts])

    def scores_at(self, rows: NDArray[np.int64], vector: NDArray[np.float32], column: str) -> NDArray[np.float32]:
        """Inner products with some rows, (n,)."""
        return self.vectors_at(rows, column) @ vector

    def vectors_at(self, rows: NDArray[np.int64], column: str) -> NDArray[np.float32]:
        """Vectors of some rows, (n, W) fp32."""
        result = np.empty((len(rows), self.main.vectors[column].shape[1]), dtype=np.float32)
        old = rows < len(self.main)
        result[old] = self.main.vectors[column][rows[old]]
        if not old.all():
            result[~old] = self.fresh.vectors[column][rows[~old] - len(self.main)]
        return result

    def rows(self, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Some rows in this order, part by part: to take from a column in pieces, Arrow joins all of it first."""
        old = rows < len(self.main)
        if old.all():
            return self.main.table.select(list(columns)).take(positions(rows))
        taken = [
            part.table.select(list(columns)).take(positions(at))
            for part, at in ((self.main, rows[old]), (self.fresh, rows[~old] - len(self.main)))
        ]
        place = np.argsort(np.concatenate([np.flatnonzero(old), np.flatnonzero(~old)]))
        return pa.concat_tables(taken).combine_chunks().take(positions(place))

    def row(self, row: int, columns: Sequence[str]) -> dict[str, Any]:
        """One row."""
        part, at = (self.main, row) if row < len(self.main) else (self.fresh, row - len(self.main))
        return {name: part.table[name][at].as_py() for name in columns}

    def allowed(self, where: Sequence[Condition]) -> NDArray[np.bool_]:
        """Rows that are there and meet all conditions, (N,)."""
        return self.alive & mask(where, self.table) if where else self.alive

    def search(
        self, vector: NDArray[np.float32], k: int, allowed: NDArray[np.bool_], column: str
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and inner products of the best k among the allowed rows, the best first."""
        ann = self.anns.get(column)
        count = len(self) if allowed is self.alive else int(np.count_nonzero(allowed))
        if ann is None or 2 * k > ann.facts.n:
            scores = np.where(allowed, self.scores(vector, column), -np.inf).astype(np.float32)
            rows = best(scores, self.order, k)
            return rows, scores[rows]
        if count * len(vector) <= EXACT_CELLS:  # a filter that leaves little is searched exactly
            rows = np.flatnonzero(allowed)
            scores = self.scores_at(rows, vector, column)
            at = best(scores, None, k)
            return rows[at], scores[at]
        n = len(self.main)
        rows, scores = ann.search(vector, k, None if count == len(allowed) else allowed[:n])
        if len(self.fresh):
            late = np.flatnonzero(allowed[n:])
            rows = np.concatenate([rows, late + n])
            scores = np.concatenate([scores, multiply(self.fresh.vectors[column][late], vector)])
            at = np.argsort(-scores, kind="stable")[:k]
            rows, scores = rows[at], scores[at]
        return rows, scores


class MemoryIndex:
    """A catalogue in memory (`dcdt.serving.index.Index`).

    Args:
        kind: of the approximate index, `hnsw` or `ivf`; by size where not given.
        exact_cells: vectors times width up to which search is exact.
    """

    def __init__(self, kind: str | None = None, exact_cells: int = EXACT_CELLS) -> None:
        self.kind, self.exact_cells = kind, exact_cells
        self.view: View | None = None
        self._row_of: dict[str, int] = {}
        self._unsaved: set[str] = set()  # columns whose approximate index is on no disk
        self._lock = threading.Lock()

    @property
    def version(self) -> int:
        """Rises with every change."""
        return self.state.version

    @property
    def state(self) -> View:
        """The current view."""
        if self.view is None:
            raise UserError("the index is empty; build or load it first.")
        return self.view

    def __len__(self) -> int:
        return len(self.state)

    def build(self, videos: pa.Table, version: int = 1, probes: dict[str, NDArray[np.float32]] | None = None) -> None:
        """Start from these videos; approximate indexes are made for `vector_` columns above `exact_cells`.

        Args:
            videos: the catalogue.
            version: its version.
            probes: queries (P, W) of a vector column, on which recall is measured.
        """
        main = Part.of(videos)
        anns = {
            name: Ann.build(matrix, (probes or {}).get(name), self.kind)
            for name, matrix in main.vectors.items()
            if name.startswith("vector_") and matrix.size > self.exact_cells
        }
        self._unsaved = set(anns)
        self._take(View(main, Part.of(videos.slice(0, 0)), np.ones(len(main), dtype=bool), version, anns))

    def copy(self) -> "MemoryIndex":
        """Another index over the same view; what changes in one is not seen in the other."""
        other = MemoryIndex(self.kind, self.exact_cells)
        other.view, other._row_of, other._unsaved = self.view, dict(self._row_of), set(self._unsaved)
        return other

    def relabel(self, version: int) -> None:
        """Give the current view the version of the catalogue it was made from."""
        self.view = replace(self.state, version=version)

    def add(self, videos: pa.Table) -> None:
        """Add new videos.

        Raises:
            UserError: an id exists.
        """
        with self._lock:
            for name in videos["id"].to_pylist():
                if name in self._row_of:
                    raise UserError(f"the id '{one_line(name)}' exists already; change it by update.")
            self._change([], videos)

    def update(self, videos: pa.Table) -> None:
        """Put these videos in the place of those with the same ids.

        Raises:
            UserError: an id is unknown.
        """
        with self._lock:
            self._change(self.rows_of(videos["id"].to_pylist()), videos)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove videos.

        Raises:
            UserError: an id is unknown.
        """
        with self._lock:
            self._change(self.rows_of(ids), None)

    def unknown(self, ids: Sequence[str]) -> list[str]:
        """Which of these ids no video has."""
        return [name for name in ids if name not in self._row_of]

    def apply(self, changed: pa.Table, gone: Sequence[str], version: int) -> None:
        """Follow another index: rows that are new or changed there, ids that are gone, and its version."""
        with self._lock:
            names = [*changed["id"].to_pylist(), *gone]
            self._change([self._row_of[name] for name in names if name in self._row_of], changed, version)

    def search(
        self, vector: NDArray[np.float32], k: int, where: Sequence[Condition] = (), column: str = "vector_0"
    ) -> Hits:
        """The k videos with the largest inner product with a vector (W,), among those that meet all conditions."""
        view = self.state
        rows, scores = view.search(vector, k, view.allowed(where), column)
        return Hits([view.table["id"][int(row)].as_py() for row in rows], scores)

    def save(self, folder: Path, name: str = SNAPSHOT) -> None:
        """Write the view as one Arrow file and its approximate indexes, whole or not at all."""
        view = self.state
        tables = [_whole(part) for part in view.parts]
        table = pa.concat_tables(tables).append_column("alive", pa.array(view.alive))
        facts = {"version": str(view.version), "main": str(len(view.main)), "anns": " ".join(sorted(view.anns))}
        table = table.replace_schema_metadata(facts)
        for column, ann in view.anns.items():
            if column in self._unsaved or not (folder / f"{column}.faiss").exists():
                ann.save(folder / f"{column}.faiss")
        self._unsaved = set()
        try:
            with (
                atomic_write(folder / name) as temporary,
                pa.OSFile(str(temporary), "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as writer,
            ):
                writer.write_table(table.combine_chunks())
        except OSError as error:
            raise UserError(format_error(error)) from error

    def load(self, folder: Path, name: str = SNAPSHOT) -> None:
        """Restore what `save` wrote; the file is mapped, not read.

        Raises:
            UserError: it is missing or corrupt.
        """
        path = folder / name
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
            table.validate(full=True)  # offsets of a file from elsewhere may point anywhere
            facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            version, n = int(facts["version"]), int(facts["main"])
            alive = numbers(table["alive"])
            if not 0 <= n <= len(table) or not alive.any() or table["id"].null_count:
                raise ValueError(f"{len(table)} rows of which {n} are searched approximately")
            main, fresh = (Part.of(part.drop_columns(["alive"])) for part in (table.slice(0, n), table.slice(n)))
            matrices = {column: main.vectors[column] for column in facts["anns"].split()}
        except (OSError, pa.ArrowException, LookupError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is missing or corrupt ({one_line(error, 120)}).") from error
        anns = {column: Ann.load(folder / f"{column}.faiss", matrix) for column, matrix in matrices.items()}
        self._take(View(main, fresh, alive, version, anns))

    def rows_of(self, ids: Sequence[str]) -> list[int]:
        """The rows of videos. Raises UserError where an id is unknown."""
        for name in ids:
            if name not in self._row_of:
                raise UserError(f"there is no video with the id '{one_line(name)}'.")
        return [self._row_of[name] for name in ids]

    def _take(self, view: View) -> None:
        ids = view.table["id"].to_pylist()
        self._row_of = {ids[row]: row for row in np.flatnonzero(view.alive).tolist()}
        self.view = view

    def _change(self, gone: list[int], videos: pa.Table | None, version: int | None = None) -> None:
        view = self.state
        alive = view.alive.copy()
        alive[gone] = False
        view = replace(view, alive=alive, version=view.version + 1 if version is None else version)
        if videos is not None and videos.num_rows:
            fresh = view.fresh.with_rows(Part.of(videos.select(_columns(view.main))))
            view = replace(view, fresh=fresh, alive=np.concatenate([alive, np.ones(videos.num_rows, dtype=bool)]))
        if not view.anns and len(view.alive) > 1000 + 1.25 * len(view.main):
            self._take(compacted(view))
            return
        if view.anns and len(view.fresh) > 1000 + 2 * np.count_nonzero(view.alive[len(view.main) :]):
            self._take(without_gone(view))
            return
        for row in gone:
            del self._row_of[view.table["id"][row].as_py()]
        start = len(view.alive) - (videos.num_rows if videos is not None else 0)
        for at, name in enumerate(videos["id"].to_pylist() if videos is not None else []):
            self._row_of[name] = start + at
        self.view = view


def compacted(view: View) -> View:
    """The same catalogue in one part, without the rows that are gone; for views without an approximate index."""
    rows = positions(np.flatnonzero(view.alive))
    table = pa.concat_tables([_whole(part) for part in view.parts]).take(rows).combine_chunks()
    main = Part.of(table)
    return View(main, Part.of(table.slice(0, 0)), np.ones(len(main), dtype=bool), view.version)


def without_gone(view: View) -> View:
    """The same catalogue without what came since the build and is gone again; the built part stays as it is."""
    n = len(view.main)
    rows = positions(np.flatnonzero(view.alive[n:]))
    fresh = Part.of(_whole(view.fresh).take(rows).combine_chunks())
    return replace(view, fresh=fresh, alive=np.concatenate([view.alive[:n], np.ones(len(fresh), dtype=bool)]))


def multiply(matrix: Matrix, vector: NDArray[np.float32], chunk: int = 16_384) -> NDArray[np.float32]:
    """Inner products of rows (n, W) with a vector (W,), fp32 also where the rows are fp16."""
    if matrix.dtype == np.float32:
        return matrix @ vector
    parts = [matrix[at : at + chunk].astype(np.float32) @ vector for at in range(0, len(matrix), chunk)]
    return np.concatenate([np.zeros(0, dtype=np.float32), *parts])


def _columns(part: Part) -> list[str]:
    return [*part.table.column_names, *part.vectors]


def _whole(part: Part) -> pa.Table:
    table = part.table
    for name, matrix in part.vectors.items():
        table = table.append_column(name, vector_column(matrix))
    return table


def rows_as_dicts(view: View, rows: NDArray[np.int64], columns: Sequence[str]) -> list[dict[str, Any]]:
    """What is shown of some rows; of few, cell by cell, which takes half the time."""
    if len(rows) <= FEW:
        return [view.row(row, columns) for row in rows.tolist()]
    found: list[dict[str, Any]] = view.rows(rows, columns).to_pylist()
    return found
