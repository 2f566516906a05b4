"""One immutable state of a catalogue in memory, searched exactly below a size and through faiss above it.

A change makes another snapshot, so that searches and changes may run at the same time. The part as built and its
approximate index stay as they are; what is added later is searched exactly beside it, and what is removed is masked. So
recall never wears off by changes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcdt.data.bm25 import Postings
from dcdt.serving.arrow import Matrix, row_array, to_numpy, vector_column, vector_matrix
from dcdt.serving.catalogue.approximate import EXACT_CELLS, ApproximateIndex
from dcdt.serving.catalogue.filters import Condition, matching_rows
from dcdt.serving.catalogue.top_k import top_k
from dcdt.utils.errors import UserError, format_error
from dcdt.utils.files import atomic_write
from dcdt.utils.text import one_line

Rows = NDArray[np.int64]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
SEARCHED = ("vector_", "passages_")  # columns of vectors that the best videos are searched by


@dataclass(frozen=True)
class Segment:
    """Consecutive videos: their table without vectors, their vectors by column, their words."""

    table: pa.Table
    vectors: dict[str, Matrix]
    _postings: dict[str, Postings] = field(default_factory=dict)

    @staticmethod
    def of(table: pa.Table) -> "Segment":
        """Split a table into vector columns and the rest."""
        names = [name for name in table.column_names if pa.types.is_fixed_size_list(table.schema.field(name).type)]
        return Segment(table.drop_columns(names), {name: vector_matrix(table, name) for name in names})

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def columns(self) -> list[str]:
        """Names of all columns, vectors last."""
        return [*self.table.column_names, *self.vectors]

    def to_table(self) -> pa.Table:
        """All columns as one table."""
        table = self.table
        for name, matrix in self.vectors.items():
            table = table.append_column(name, vector_column(matrix))
        return table

    def postings(self, column: str) -> Postings:
        """Inverted lists of a column of words, of each video or of each passage, made once."""
        if column not in self._postings:
            is_ragged = pa.types.is_list(self.table[column].type.value_type)
            self._postings[column] = Postings.of(self.lists(column)[0] if is_ragged else self.table[column])
        return self._postings[column]

    def lists(self, column: str) -> tuple[pa.Array, Rows]:
        """Values (P,) of a column of lists, side by side, and the first of each video and P, (n + 1,)."""
        chunks = self.table[column]
        array = chunks.chunk(0) if chunks.num_chunks == 1 else chunks.combine_chunks()  # the former without a copy
        offsets = to_numpy(array.offsets).astype(np.int64)
        return array.values[offsets[0] : offsets[-1]], offsets - offsets[0]

    def matrix(self, column: str) -> Matrix:
        """Vectors of the videos, or of their passages, (n, W)."""
        if column in self.vectors:
            return self.vectors[column]
        values = self.lists(column)[0]
        return to_numpy(values.flatten()).reshape(len(values), values.type.list_size)

    @cached_property
    def order(self) -> Rows:
        """Rank of each video among equal scores, by a hash of its id, as in every evaluation."""
        digests = [hashlib.sha256(f"0:{name}".encode()).digest()[:8] for name in self.table["id"].to_pylist()]
        return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64).view(np.int64) ^ np.int64(-(2**63))


@dataclass(frozen=True)
class Snapshot:
    """One state of a catalogue, which never changes.

    Attributes:
        built: the videos as built.
        added: those added since.
        present: (N,) false for videos of either segment that were removed.
        version: of the catalogue.
        indexes: approximate index by vector column of `built`, where there are many videos.
    """

    built: Segment
    added: Segment
    present: Mask
    version: int
    indexes: dict[str, ApproximateIndex] = field(default_factory=dict)

    @staticmethod
    def of(videos: pa.Table, version: int = 1) -> "Snapshot":
        """These videos without an approximate index."""
        built = Segment.of(videos)
        return Snapshot(built, Segment.of(videos.slice(0, 0)), np.ones(len(built), dtype=bool), version)

    @staticmethod
    def build(
        videos: pa.Table,
        version: int = 1,
        probes: Mapping[str, Floats | None] | None = None,
        exact_cells: int = EXACT_CELLS,
    ) -> "Snapshot":
        """These videos with an approximate index of each large column of vectors.

        Args:
            videos: the catalogue.
            version: its version.
            probes: queries (P, W) of a vector column, on which recall is measured.
            exact_cells: vectors times width up to which search is exact.
        """
        snapshot = Snapshot.of(videos, version)
        indexes = {
            name: ApproximateIndex.build(matrix, (probes or {}).get(name))
            for name in snapshot.built.columns
            if name.startswith(SEARCHED) and (matrix := snapshot.built.matrix(name)).size > exact_cells
        }
        return replace(snapshot, indexes=indexes)

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        return int(np.count_nonzero(self.present))

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments that hold videos."""
        return (self.built, self.added) if len(self.added) else (self.built,)

    @cached_property
    def order(self) -> Rows:
        """Rank of each row among equal scores, (N,)."""
        return np.concatenate([segment.order for segment in self.segments])

    @cached_property
    def table(self) -> pa.Table:
        """All rows without vectors, also those that were removed."""
        return pa.concat_tables([segment.table for segment in self.segments])

    def rows_of(self, ids: Sequence[str] | pa.Array) -> Rows:
        """Row of each of M distinct ids, (M,); -1 where there is no such video."""
        present = np.flatnonzero(self.present)
        found = pc.index_in(
            self.table["id"], value_set=ids if isinstance(ids, pa.Array) else pa.array(ids, pa.string())
        )
        position = to_numpy(found.fill_null(pa.scalar(-1, pa.int32())))[present]
        rows = np.full(len(ids), -1, dtype=np.int64)
        rows[position[position >= 0]] = present[position >= 0]
        return rows

    def ids(self) -> pa.ChunkedArray:
        """Ids of the videos, in order of their rows."""
        return self.table["id"].filter(pa.array(self.present))

    def scores(self, vector: Floats, column: str) -> Floats:
        """Inner products with all rows (N,), or with all passages (P,)."""
        return np.concatenate([inner_products(segment.matrix(column), vector) for segment in self.segments])

    def offsets(self, column: str) -> Rows:
        """The first passage of each row, and P, (N + 1,)."""
        built = self.built.lists(column)[1]
        return np.append(built, built[-1] + self.added.lists(column)[1][1:]) if len(self.added) else built

    def scores_at(self, rows: Rows, vector: Floats, column: str) -> Floats:
        """Inner products with some rows, (n,)."""
        return self.vectors_at(rows, column) @ vector

    def is_ragged(self, column: str) -> bool:
        """Whether a column holds a list for each row, as long as that of its passages' texts, or of one."""
        is_list = column in self.table.column_names and pa.types.is_list(self.table[column].type)
        counts = np.maximum(np.diff(self.offsets("passage_texts")), 1)
        return is_list and np.array_equal(np.diff(self.offsets(column)), counts)

    def vectors_at(self, rows: Rows, column: str) -> Floats:
        """Vectors of some rows, or of some passages, (n, W) fp32."""
        built = self.built.matrix(column)
        result = np.empty((len(rows), built.shape[1]), dtype=np.float32)
        old = rows < len(built)
        result[old] = built[rows[old]]
        if not old.all():
            result[~old] = self.added.matrix(column)[rows[~old] - len(built)]
        return result

    def rows(self, rows: Rows, columns: Sequence[str]) -> pa.Table:
        """Some rows in this order, by segment: to take from a chunked column, Arrow would join all of it first."""
        old = rows < len(self.built)
        if old.all():
            return self.built.table.select(list(columns)).take(row_array(rows))
        tables = [
            segment.table.select(list(columns)).take(row_array(of_segment))
            for segment, of_segment in ((self.built, rows[old]), (self.added, rows[~old] - len(self.built)))
        ]
        order = np.argsort(np.concatenate([np.flatnonzero(old), np.flatnonzero(~old)]))
        return pa.concat_tables(tables).combine_chunks().take(row_array(order))

    def records(self, rows: Rows, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Some rows as dictionaries, in this order."""
        return self.rows(rows, columns).to_pylist()  # type: ignore[no-any-return]

    def allowed(self, where: Sequence[Condition]) -> Mask:
        """Rows of videos that meet all conditions, (N,)."""
        return self.present & matching_rows(where, self.table) if where else self.present

    def search(self, vector: Floats, k: int, allowed: Mask, column: str) -> tuple[Rows, Floats]:
        """Rows and inner products of the best k among the allowed rows (N,), or passages (P,), the best first."""
        index = self.indexes.get(column)
        count = len(self) if allowed is self.present else int(np.count_nonzero(allowed))
        if index is None or 2 * k > index.info.n:
            scores = np.where(allowed, self.scores(vector, column), -np.inf).astype(np.float32)
            rows = top_k(scores, self.order if column in self.built.vectors else None, k)
            return rows, scores[rows]
        if count * len(vector) <= EXACT_CELLS:  # a filter that leaves little is searched exactly
            rows = np.flatnonzero(allowed)
            scores = self.scores_at(rows, vector, column)
            best = top_k(scores, None, k)
            return rows[best], scores[best]
        n = index.info.n
        rows, scores = index.search(vector, k, None if count == len(allowed) else allowed[:n])
        if len(self.added):
            late = np.flatnonzero(allowed[n:])
            rows = np.concatenate([rows, late + n])
            scores = np.concatenate([scores, inner_products(self.added.matrix(column)[late], vector)])
            best = np.argsort(-scores, kind="stable")[:k]
            rows, scores = rows[best], scores[best]
        return rows, scores

    def apply(self, changed: pa.Table, removed: Sequence[str], version: int) -> "Snapshot":
        """The next state.

        Args:
            changed: rows of new and of edited videos.
            removed: ids of videos that are gone; unknown ones are ignored.
            version: of the next state.
        """
        gone = self.rows_of([*changed["id"].to_pylist(), *removed])
        present = self.present.copy()
        present[gone[gone >= 0]] = False
        added = Segment.of(changed.select(self.built.columns))
        if len(self.added) and len(added):
            old = self.added
            vectors = {name: np.concatenate([matrix, added.vectors[name]]) for name, matrix in old.vectors.items()}
            added = Segment(pa.concat_tables([old.table, added.table]).combine_chunks(), vectors)
        elif len(self.added):
            added = self.added
        present = np.concatenate([present, np.ones(len(changed), dtype=bool)])
        return Snapshot(self.built, added, present, version, self.indexes)._compacted()

    def _compacted(self) -> "Snapshot":
        """The same videos in less room, once removed or added ones take too much; what faiss has indexed stays."""
        n = len(self.built)
        if not self.indexes and len(self.present) > 1000 + 1.25 * n:
            table = pa.concat_tables([segment.to_table() for segment in self.segments])
            return Snapshot.of(table.take(row_array(np.flatnonzero(self.present))).combine_chunks(), self.version)
        if self.indexes and len(self.added) > 1000 + 2 * np.count_nonzero(self.present[n:]):
            rows = row_array(np.flatnonzero(self.present[n:]))
            added = Segment.of(self.added.to_table().take(rows).combine_chunks())
            return replace(
                self, added=added, present=np.concatenate([self.present[:n], np.ones(len(added), dtype=bool)])
            )
        return self

    def save(self, path: Path) -> None:
        """Write one Arrow file, whole or not at all; the approximate indexes are written by `save_indexes`."""
        table = pa.concat_tables([segment.to_table() for segment in self.segments]).append_column(
            "alive", pa.array(self.present)
        )
        metadata = {"version": str(self.version), "main": str(len(self.built)), "anns": " ".join(sorted(self.indexes))}
        table = table.replace_schema_metadata(metadata)
        try:
            with (
                atomic_write(path) as temporary,
                pa.OSFile(str(temporary), "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as writer,
            ):
                writer.write_table(table.combine_chunks())
        except OSError as error:
            raise UserError(format_error(error)) from error

    def save_indexes(self, folder: Path) -> None:
        """Write the approximate indexes, which no change touches, beside the snapshots of a build."""
        for column, index in self.indexes.items():
            index.save(folder / f"{column}.faiss")

    @staticmethod
    def load(path: Path) -> "Snapshot":
        """Restore what `save` and `save_indexes` wrote; the file is mapped, not read.

        Raises:
            UserError: it is missing or corrupt.
        """
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
            table.validate(full=True)  # offsets of a file from elsewhere may point anywhere
            metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            version, n = int(metadata["version"]), int(metadata["main"])
            present = to_numpy(table["alive"])
            if not 0 <= n <= len(table) or not present.any() or table["id"].null_count:
                raise ValueError(f"{len(table)} rows of which {n} are searched approximately")
            table = table.drop_columns(["alive"])
            built, added = Segment.of(table.slice(0, n)), Segment.of(table.slice(n))
            matrices = {column: built.matrix(column) for column in metadata["anns"].split()}
        except (OSError, pa.ArrowException, LookupError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is missing or corrupt ({one_line(error, 120)}).") from error
        indexes = {
            name: ApproximateIndex.load(path.with_name(f"{name}.faiss"), matrix) for name, matrix in matrices.items()
        }
        return Snapshot(built, added, present, version, indexes)


def inner_products(matrix: Matrix, vector: Floats, chunk: int = 16_384) -> Floats:
    """Inner products of rows (n, W) with a vector (W,), fp32 also where the rows are fp16."""
    if matrix.dtype == np.float32:
        return np.asarray(matrix @ vector, dtype=np.float32)
    chunks = [matrix[start : start + chunk].astype(np.float32) @ vector for start in range(0, len(matrix), chunk)]
    return np.concatenate([np.zeros(0, dtype=np.float32), *chunks])
