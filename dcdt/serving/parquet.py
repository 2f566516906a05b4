"""Vectors and metadata as Parquet, to load into another vector database; docs/scaling.md says how for three."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dcdt.serving.arrow import vector_column
from dcdt.serving.recommender import ServedRecommender
from dcdt.utils.errors import UserError, format_error
from dcdt.utils.files import atomic_write

ROWS = 10_000  # of a row group


def write_parquet(served: ServedRecommender, path: Path) -> str:
    """Write one row a video: `id`, what is shown and filtered, `metadata` (JSON), and each `vector_<part>`.

    Scores are inner products with the query vector of the same part; the file's metadata says which model, width and
    measure.

    Returns:
        A line that says what was written.

    Raises:
        UserError: no part of the model has a vector a video can be searched by, or the file cannot be written.
    """
    snapshot = served.catalogue.snapshot
    names = [name for name in snapshot.built.vectors if name.startswith("vector_")]
    if not names:
        raise UserError(f"model={served.name} has no vector to search by; run models with towers can be exported.")
    rows = np.flatnonzero(snapshot.present)
    keep = [name for name in snapshot.table.column_names if not name.startswith(("words_", "popularity_", "changed"))]
    table = snapshot.table.select(keep).take(pa.array(rows))
    for name in names:
        table = table.append_column(name, vector_column(snapshot.vectors_at(rows, name)))
    table = table.replace_schema_metadata({"dcdt": json.dumps(_schema_metadata(served, names))})
    try:
        with atomic_write(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", row_group_size=ROWS)
    except OSError as error:
        raise UserError(format_error(error)) from error
    return f"{path}: {len(rows)} videos, {', '.join(names)}"


def _schema_metadata(served: ServedRecommender, names: list[str]) -> dict[str, Any]:
    pointer = served.catalogue.pointer
    widths = {name: int(served.catalogue.snapshot.built.vectors[name].shape[1]) for name in names}
    return {"model": served.name, "measure": "inner product", "widths": widths, "version": pointer.version}
