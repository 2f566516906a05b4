"""The durable table of videos in LanceDB: in a folder or an object store, versioned, read by many processes at once.

Each change is one commit, so that a kill leaves the old version or the new one. Rows carry the version that they were
last changed in, by which other processes follow. Where another machine commits first, LanceDB tries again; its primary
key keeps two of them from adding the same id.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dcdt.serving.catalogue.filters import Condition, quote, to_sql
from dcdt.utils.errors import UserError, needs_extra
from dcdt.utils.redaction import redact
from dcdt.utils.text import one_line

NAME = "videos"
CHANGED, CREATED = "_row_last_updated_at_version", "_row_created_at_version"  # LanceDB's own columns
PRIMARY_KEY = {"lance-schema:unenforced-primary-key": "true"}
MAX_GRAPH_ROWS = 500_000  # several graphs are each searched, and cells miss what lies at their borders
GRAPHS_SEARCHED, CANDIDATES, REFINE_FACTOR = 8, 100, 3  # full vectors of REFINE_FACTOR * k videos are compared
MIN_INDEX_ROWS = 20_000  # above it, LanceDB's own approximate index is made
MAX_LISTED = 1000  # ids that are looked up by a condition; for more, all ids are read
KEEP_VERSIONS, KEEP_TIME = 50, timedelta(days=7)  # how many old versions can still be read, and how long
STORAGE = {"new_table_enable_stable_row_ids": "true"}  # so that rows carry their versions
NETWORK = {"connect_timeout": "5s", "timeout": "60s", "client_max_retries": "3"}  # with an object store


class VideoTable:
    """A table of videos with a vector column for each part of the model.

    Args:
        url: a folder, or an object store such as `s3://bucket/path`.

    Raises:
        UserError: lancedb is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        for name in ("LANCE_LOG", "LANCEDB_LOG"):  # read when lancedb is first imported
            os.environ.setdefault(name, "error")
        with needs_extra("the catalogue", "serve", "lancedb"):
            import lancedb
        with self._user_errors():
            self._database = lancedb.connect(url, storage_options=STORAGE | (NETWORK if "://" in url else {}))
        self._table: Any = None

    @property
    def table(self) -> Any:  # noqa: ANN401 - lancedb's own type is not exported
        """The open table.

        Raises:
            UserError: there is none, or it is corrupt.
        """
        if self._table is None:
            with self._user_errors():
                self._table = self._database.open_table(NAME)
        return self._table

    @property
    def version(self) -> int:
        """Rises with every change, and when the table is optimised."""
        with self._user_errors():
            return int(self.table.version)

    def __len__(self) -> int:
        with self._user_errors():
            return int(self.table.count_rows())

    def create(self, videos: pa.Table) -> None:
        """Start from these videos; where there are many, make LanceDB's approximate index of each `vector_` column."""
        key = pa.field("id", pa.string(), nullable=False, metadata=PRIMARY_KEY)
        index = videos.column_names.index("id")
        with self._user_errors():
            self._table = self._database.create_table(
                NAME, videos.set_column(index, key, videos["id"]), mode="overwrite"
            )
            self._create_indexes()

    def add(self, videos: pa.Table) -> None:
        """Add new videos in one version.

        Raises:
            UserError: an id exists, or the table cannot be written.
        """
        present = self._is_present(videos["id"])
        if present.any():
            name = videos["id"][int(np.argmax(present))].as_py()
            raise UserError(f"the id '{one_line(name)}' exists already; change it by update.")
        with self._user_errors():
            merge = self.table.merge_insert("id").when_not_matched_insert_all()
            done = merge.execute(self._as_rows(videos))
            if done.num_inserted_rows == len(videos):
                return
            self.checkout(done.version)
            inserted = self._where(f"{CREATED} = {done.version}", len(self), ["id"])["id"].to_pylist()
            self.refresh()
        existing = min(set(videos["id"].to_pylist()) - set(inserted))
        raise UserError(
            f"another machine added the id '{one_line(existing)}' just now and keeps it; the others were added."
        )

    def update(self, videos: pa.Table) -> None:
        """Replace the videos with the same ids, in one version.

        Raises:
            UserError: an id is unknown, or the table cannot be written.
        """
        self._require(videos["id"])
        with self._user_errors():
            self.table.merge_insert("id").when_matched_update_all().execute(self._as_rows(videos))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove videos in one version.

        Raises:
            UserError: an id is unknown, or the table cannot be written.
        """
        self._require(pa.chunked_array([pa.array(ids, pa.string())]))
        with self._user_errors():
            self.table.delete(_id_in(ids))

    def nearest(
        self,
        vector: NDArray[np.float32],
        k: int,
        where: Sequence[Condition] = (),
        column: str = "vector_0",
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        """Rows of the k videos with the largest inner product with a vector (W,), best first.

        All columns or some, and `_distance`: 1 less the inner product; of passages, equally long, less the best cosine.
        """
        kind = "dot" if column.startswith("vector_") else "cosine"
        with self._user_errors():
            query = self.table.search(vector, vector_column_name=column).distance_type(kind).limit(k)
            query = query.nprobes(GRAPHS_SEARCHED).ef(max(CANDIDATES, REFINE_FACTOR * k)).refine_factor(REFINE_FACTOR)
            query = query.where(to_sql(where), prefilter=True) if where else query
            return (query if columns is None else query.select(list(columns))).to_arrow()

    def lookup(self, ids: Sequence[str]) -> pa.Table:
        """Rows of the videos with these ids that exist, in any order."""
        return self._where(_id_in(ids or [""]), max(len(ids), 1))

    def rows(self, since: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows, or those that were changed after a version; all columns or some."""
        return self._where(None if since is None else f"{CHANGED} > {int(since)}", max(len(self), 1), columns)

    def refresh(self) -> int:
        """Go to the latest version and return it."""
        with self._user_errors():
            self.table.checkout_latest()
        return self.version

    def checkout(self, version: int) -> None:
        """Read a version, whatever came after it; `refresh` goes back to the latest."""
        with self._user_errors():
            self.table.checkout(version)

    def restore(self, version: int) -> None:
        """Make an earlier version the latest again."""
        with self._user_errors():
            self.table.checkout(version)
            self.table.restore()
        self.refresh()

    def optimize(self) -> None:
        """Merge small files, index what came since, and drop versions older than a week or than the last 50."""
        with self._user_errors():
            self._create_indexes()
            times = sorted(version["timestamp"] for version in self.table.list_versions())
            ages = [datetime.now(time.tzinfo) - time for time in times[-KEEP_VERSIONS:][:1]]
            self.table.optimize(cleanup_older_than=min([KEEP_TIME, *ages]))

    def _as_rows(self, videos: pa.Table) -> pa.Table:
        """Columns and types as the table has them."""
        return videos.select(self.table.schema.names).cast(self.table.schema)

    def _where(self, condition: str | None, limit: int, columns: Sequence[str] | None = None) -> pa.Table:
        with self._user_errors():
            query = self.table.search().limit(limit)
            query = query if condition is None else query.where(condition)
            rows = (query if columns is None else query.select(list(columns))).to_arrow()
        return pa.Table.from_arrays(rows.columns, rows.column_names)  # without the primary key's mark

    def _is_present(self, ids: pa.ChunkedArray) -> NDArray[np.bool_]:
        """Mark the ids (n,) that a video has."""
        few = len(ids) <= MAX_LISTED
        rows = self._where(_id_in(ids.to_pylist()), len(ids), ["id"]) if few else self.rows(columns=["id"])
        return np.array(pc.is_in(ids, value_set=rows["id"]).to_pylist(), dtype=bool)

    def _require(self, ids: pa.ChunkedArray) -> None:
        present = self._is_present(ids)
        if not present.all():
            name = ids[int(np.argmin(present))].as_py()
            raise UserError(f"there is no video with the id '{one_line(name)}'.")

    def _create_indexes(self) -> None:
        """Index every column of vectors that has no index yet, where there are many videos."""
        if len(self) <= MIN_INDEX_ROWS:
            return
        from lancedb.index import HnswSq, IvfSq

        indexed = {name for index in self.table.list_indices() for name in index.columns}
        graphs = -(-len(self) // MAX_GRAPH_ROWS)
        for name in self.table.schema.names:
            if name.startswith("vector_") and name not in indexed:
                config = HnswSq(distance_type="dot", m=20, ef_construction=150, num_partitions=graphs)
                self.table.create_index(name, config=config)
            elif name.startswith("passages_") and name not in indexed:  # all in 8 bits: graphs miss passages
                self.table.create_index(name, config=IvfSq(distance_type="cosine", num_partitions=graphs))

    @contextmanager
    def _user_errors(self) -> Iterator[None]:
        """Convert LanceDB's errors, of which there are many kinds, to UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = redact(" ".join(str(error).split()))[:200]
            remedy = (
                "Try again; free some space, or check the folder. If its files are broken, python -m dcdt.index RUN "
                "build starts anew, without later changes."
            )
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


def _id_in(ids: Sequence[str]) -> str:
    return f"id IN ({', '.join(map(quote, ids))})"
