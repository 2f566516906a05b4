"""The durable catalogue: a LanceDB table, in a folder or an object store, versioned, read by many processes at once.

Each change is one commit, so that a kill leaves the old version or the new one. The column `changed` holds the version
a row came with, by which other processes follow; `writer` says which change brought it. Where another machine committed
first, rows are stamped again, and an id that it has taken is given up: Lance itself would keep both.
"""

import os
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdt.serving.filters import Condition, quoted, sql
from dcdt.serving.index import Hits
from dcdt.utils.errors import UserError
from dcdt.utils.redaction import redact
from dcdt.utils.text import one_line

TABLE, STAMPS = "videos", ("changed", "writer")
GRAPH_ROWS = 500_000  # of one graph: several at once are each searched, and cells miss what lies at their borders
PROBES, BREADTH, REFINED = 8, 100, 3  # graphs searched, candidates in each, how many times k full vectors are compared
INDEX_ROWS = 20_000  # above it, Lance's own approximate index is made
KEPT = timedelta(days=7)  # how long old versions can still be read
PATIENCE = {"connect_timeout": "5s", "timeout": "60s", "client_max_retries": "3"}  # with an object store
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
        patience = PATIENCE if "://" in url else None
        self._database = self._try(lambda: lancedb.connect(url, storage_options=patience))
        self._table: Any = None
        self._columns: set[str] | None = None  # that an index was made of, as far as that was looked up

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
        self._columns = None
        return self.version

    def build(self, videos: pa.Table) -> None:
        """Start from these videos; where there are many, make Lance's approximate index of each `vector_` column."""
        table = _stamped(videos, 1, 0)
        self._table = self._try(lambda: self._database.create_table(TABLE, table, mode="overwrite"))
        self._make_indexes()

    def add(self, videos: pa.Table) -> None:
        """Add new videos in one version.

        Raises:
            UserError: an id exists, or the catalogue cannot be written.
        """
        known = self._known(videos["id"].to_pylist())
        if known:
            raise UserError(f"the id '{one_line(sorted(known)[0])}' exists already; change it by update.")
        taken = self._merge(videos, lambda merge: merge.when_not_matched_insert_all())
        if taken:
            raise UserError(
                f"another machine added the id '{one_line(taken[0])}' just now and keeps it; the others were added."
            )

    def update(self, videos: pa.Table) -> None:
        """Put these videos in the place of those with the same ids, in one version.

        Raises:
            UserError: an id is unknown, or the catalogue cannot be written.
        """
        self._demand(videos["id"].to_pylist())
        self._merge(videos, lambda merge: merge.when_matched_update_all())

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
        found = self.nearest(vector, k, where, column, ["id", "_distance"])
        return Hits(found["id"].to_pylist(), 1 - found["_distance"].to_numpy().astype(np.float32))

    def nearest(
        self,
        vector: NDArray[np.float32],
        k: int,
        where: Sequence[Condition] = (),
        column: str = "vector_0",
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Rows of the k videos with the largest inner product with a vector (W,), best first; all columns or some."""

        def run() -> pa.Table:
            query = self.table.search(vector, vector_column_name=column).distance_type("dot")
            if where:
                query = query.where(sql(where), prefilter=True)
            if column in self._indexed():
                query = query.nprobes(PROBES).ef(max(BREADTH, REFINED * k)).refine_factor(REFINED)
            return (query if columns is None else query.select(list(columns))).limit(k).to_arrow()

        return self._try(run)

    def lookup(self, ids: Sequence[str]) -> pa.Table:
        """Rows of the videos with these ids, as far as they are there, in any order."""
        some = ids if ids else [""]
        query = lambda: self.table.search().where(_among(some)).limit(len(some)).to_arrow()  # noqa: E731
        return self._try(query)

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
        return found.drop_columns([name for name in ("_rowid", "_score", "writer") if name in found.column_names])

    def at(self, version: int) -> None:
        """Read a version, whatever came after it; `refresh` goes back to the latest."""
        self._try(lambda: self.table.checkout(version))
        self._columns = None

    def restore(self, version: int) -> None:
        """Make an earlier version the latest again."""
        self._try(lambda: self.table.checkout(version))
        self._try(lambda: self.table.restore())
        self.refresh()

    def tidy(self) -> None:
        """Merge small files, index what came since, and drop versions older than a week."""
        self._make_indexes()
        self._try(lambda: self.table.optimize(cleanup_older_than=KEPT))

    def _merge(self, videos: pa.Table, how: Callable[[Any], Any]) -> list[str]:
        """Commit rows stamped with the version they come with; again, where another machine took that version.

        Returns:
            Ids that the other machine had added meanwhile, and that were given up.
        """
        stamp, writer, taken = self.version + 1, secrets.randbits(62), list[str]()
        table = _stamped(videos, stamp, writer)
        done = self._try(lambda: how(self.table.merge_insert("id")).execute(table))
        if self._reached(done) > stamp:
            taken = self._give_up(videos["id"].to_pylist(), writer)
        mine = f"writer = {writer}" + (f" OR {_among(taken)}" if taken else "")
        while (reached := self._reached(done)) > stamp:
            stamp = reached + 1
            done = self._try(lambda stamp=stamp: self.table.update(where=mine, values={"changed": stamp}))  # type: ignore[misc]
        return taken

    def _reached(self, done: Any) -> int:  # noqa: ANN401 - lancedb's own
        """The version that a change became."""
        return int(getattr(done, "version", None) or self.refresh())

    def _give_up(self, ids: Sequence[str], writer: int) -> list[str]:
        """Delete those of a writer's rows whose ids stand in the table twice."""
        self.refresh()
        found = self._try(lambda: self.table.search().where(_among(ids)).select(["id"]).to_arrow())
        counts = Counter(found["id"].to_pylist())
        taken = sorted(name for name, count in counts.items() if count > 1)
        if taken:
            self._try(lambda: self.table.delete(f"writer = {writer} AND {_among(taken)}"))
        return taken

    def _indexed(self) -> set[str]:
        """Columns that an approximate index was made of; what came since, Lance searches beside it."""
        if self._columns is None:
            found = self._try(lambda: self.table.list_indices())
            self._columns = {name for index in found for name in index.columns}
        return self._columns

    def _make_indexes(self) -> None:
        """Of every `vector_` column that has none, where there are many videos."""
        self._columns = None
        if len(self) <= INDEX_ROWS:
            return
        names = [name for name in self.table.schema.names if name.startswith("vector_")]
        for name in [name for name in names if name not in self._indexed()]:
            self._try(lambda name=name: self._make_index(name))  # type: ignore[misc]
        self._columns = None

    def _make_index(self, column: str) -> None:
        self.table.create_index(
            metric="dot", vector_column_name=column, index_type="IVF_HNSW_SQ", m=20, ef_construction=150,
            num_partitions=-(-len(self) // GRAPH_ROWS),
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
        known = self._known(ids)
        unknown = [name for name in ids if name not in known]
        if unknown:
            raise UserError(f"there is no video with the id '{one_line(unknown[0])}'.")

    def _try(self, action: Callable[[], T]) -> T:
        """Lance's errors, of which there are many kinds, in the words of the user."""
        try:
            return action()
        except UserError:
            raise
        except Exception as error:
            reason = redact(" ".join(str(error).split()))[:200]
            remedy = "Free some space, or check the folder; python -m dcdt.index RUN build makes the catalogue anew."
            if "://" in self.url:
                remedy = "Check the address, the network, and the keys in the environment (AWS_ACCESS_KEY_ID, ...)."
            raise UserError(f"the catalogue {self.url} cannot be used: {reason}\n{remedy}") from error


def check_address(text: str) -> str:
    """The address of a catalogue: a folder, made absolute, or an object store without keys in it.

    Raises:
        UserError: it is neither.
    """
    if "://" not in text:
        return str(Path(text).expanduser().resolve())
    scheme, _, rest = text.partition("://")
    if scheme not in ("s3", "gs", "az") or not rest.strip("/"):
        raise UserError(
            f"the catalogue's address begins with {scheme}://; give a folder, s3://BUCKET/PATH, gs:// or az://."
        )
    if set("@?#") & set(rest):
        raise UserError(
            "the catalogue's address holds @, ? or #; keys and options come from the environment (AWS_...)."
        )
    return text.rstrip("/")


def _stamped(videos: pa.Table, version: int, writer: int) -> pa.Table:
    kept = videos.select([name for name in videos.column_names if name not in STAMPS])
    for name, value in zip(STAMPS, (version, writer), strict=True):
        kept = kept.append_column(name, pa.array(np.full(len(videos), value, dtype=np.int64)))
    return kept


def _among(ids: Sequence[str]) -> str:
    return f"id IN ({', '.join(quoted(name) for name in ids)})"
