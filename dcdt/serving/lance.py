"""The durable catalogue: a LanceDB table, in a folder or an object store, versioned, read by many processes at once.

Each change is one commit, so that a kill leaves the old version or the new one. The column `changed` holds the version
a row came with, by which other processes follow.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdt.errors import UserError
from dcdt.serving.filters import Condition, quoted, sql
from dcdt.serving.index import Hits

TABLE = "videos"
INDEX_ROWS = 20_000  # above it, Lance's own approximate index is made
KEPT = timedelta(days=7)  # how long old versions can still be read
T = TypeVar("T")


class LanceIndex:
    """A catalogue in LanceDB (`dcdt.serving.index.Index`).

    Args:
        url: a folder, or an object store such as `s3://bucket/path`.

    Raises:
        UserError: lancedb is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        for name in ("LANCE_LOG", "LANCEDB_LOG"):  # read when lancedb is first imported
            os.environ.setdefault(name, "error")
        try:
            import lancedb
        except ImportError as error:
            raise UserError("the catalogue needs the extra 'serve': pip install 'dcdt[serve]'.") from error
        self._database = self._try(lambda: lancedb.connect(url))
        self._table: Any = None

    @property
    def table(self) -> Any:  # noqa: ANN401 - lancedb's own type is not exported
        """The open table.

        Raises:
            UserError: there is none, or it is corrupt.
        """
        if self._table is None:
            self._table = self._try(lambda: self._database.open_table(TABLE))
        return self._table

    @property
    def version(self) -> int:
        """Rises with every change, and when the table is optimised."""
        return int(self._try(lambda: self.table.version))

    def __len__(self) -> int:
        return int(self._try(lambda: self.table.count_rows()))

    def refresh(self) -> int:
        """Go to the latest version and return it."""
        self._try(lambda: self.table.checkout_latest())
        return self.version

    def build(self, videos: pa.Table) -> None:
        """Start from these videos; where there are many, make Lance's approximate index of each `vector_` column."""
        table = _stamped(videos, 1)
        self._table = self._try(lambda: self._database.create_table(TABLE, table, mode="overwrite"))
        if len(videos) > INDEX_ROWS:
            for name in [name for name in videos.column_names if name.startswith("vector_")]:
                self._try(lambda name=name: self._make_index(name))  # type: ignore[misc]

    def add(self, videos: pa.Table) -> None:
        """Add new videos in one version.

        Raises:
            UserError: an id exists, or the catalogue cannot be written.
        """
        known = self._known(videos["id"].to_pylist())
        if known:
            raise UserError(f"the id '{sorted(known)[0]}' exists already; change it by update.")
        table = _stamped(videos, self.version + 1)
        self._try(lambda: self.table.merge_insert("id").when_not_matched_insert_all().execute(table))

    def update(self, videos: pa.Table) -> None:
        """Put these videos in the place of those with the same ids, in one version.

        Raises:
            UserError: an id is unknown, or the catalogue cannot be written.
        """
        self._demand(videos["id"].to_pylist())
        table = _stamped(videos, self.version + 1)
        self._try(lambda: self.table.merge_insert("id").when_matched_update_all().execute(table))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove videos in one version.

        Raises:
            UserError: an id is unknown, or the catalogue cannot be written.
        """
        self._demand(ids)
        self._try(lambda: self.table.delete(_among(ids)))

    def search(
        self, vector: NDArray[np.float32], k: int, where: Sequence[Condition] = (), column: str = "vector_0"
    ) -> Hits:
        """The k videos with the largest inner product with a vector (W,), among those that meet all conditions."""

        def run() -> pa.Table:
            query = self.table.search(vector, vector_column_name=column).distance_type("dot")
            if where:
                query = query.where(sql(where), prefilter=True)
            if len(self) > INDEX_ROWS:
                query = query.nprobes(20).refine_factor(10)
            return query.select(["id", "_distance"]).limit(k).to_arrow()

        found = self._try(run)
        return Hits(found["id"].to_pylist(), 1 - found["_distance"].to_numpy().astype(np.float32))

    def save(self, folder: Path) -> None:
        """Nothing to do: every change is on disk when it returns."""

    def load(self, folder: Path) -> None:
        """Open the latest version of the table."""
        self._table = None
        self.refresh()

    def rows(self, since: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, or those that came after a version."""

        def run() -> pa.Table:
            query = self.table.search().limit(max(len(self), 1))
            if since is not None:
                query = query.where(f"changed > {int(since)}")
            if columns is not None:
                query = query.select(list(columns))
            return query.to_arrow()

        found = self._try(run)
        return found.drop_columns([name for name in ("_rowid", "_score") if name in found.column_names])

    def at(self, version: int) -> None:
        """Read a version, whatever came after it; `refresh` goes back to the latest."""
        self._try(lambda: self.table.checkout(version))

    def restore(self, version: int) -> None:
        """Make an earlier version the latest again."""
        self._try(lambda: self.table.checkout(version))
        self._try(lambda: self.table.restore())
        self.refresh()

    def tidy(self) -> None:
        """Merge small files, index what came since, and drop versions older than a week."""
        self._try(lambda: self.table.optimize(cleanup_older_than=KEPT))

    def _make_index(self, column: str) -> None:
        width = self.table.schema.field(column).type.list_size
        cells = int(max(1, min(4096, len(self) ** 0.5)))
        self.table.create_index(
            metric="dot", vector_column_name=column, index_type="IVF_HNSW_SQ", num_partitions=cells // 8 or 1,
            m=20, ef_construction=150, num_sub_vectors=width,
        )  # fmt: skip

    def _known(self, ids: Sequence[str]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(ids), 1000):
            part = ids[start : start + 1000]
            table = self._try(lambda part=part: self._where(part))  # type: ignore[misc]
            found |= set(table["id"].to_pylist())
        return found

    def _where(self, ids: Sequence[str]) -> pa.Table:
        return self.table.search().where(_among(ids)).select(["id"]).limit(len(ids)).to_arrow()

    def _demand(self, ids: Sequence[str]) -> None:
        unknown = [name for name in ids if name not in self._known(ids)]
        if unknown:
            raise UserError(f"there is no video with the id '{unknown[0][:200]}'.")

    def _try(self, action: Callable[[], T]) -> T:
        """Lance's errors, of which there are many kinds, in the words of the user."""
        try:
            return action()
        except UserError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            remedy = "Free some space, or check the folder; python -m dcdt.index RUN build makes the catalogue anew."
            raise UserError(f"the catalogue {self.url} cannot be used: {reason}\n{remedy}") from error


def _stamped(videos: pa.Table, version: int) -> pa.Table:
    names = [name for name in videos.column_names if name != "changed"]
    return videos.select(names).append_column("changed", pa.array(np.full(len(videos), version, dtype=np.int64)))


def _among(ids: Sequence[str]) -> str:
    return f"id IN ({', '.join(quoted(name) for name in ids)})"
