"""Import existing vectors into a cache: `.npy` or `.parquet`, with their texts or ids."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcdt.data.table_reader import read_lines
from dcdt.data.types import Collection
from dcdt.embeddings.cache import VectorCache, check_vectors
from dcdt.utils.errors import UserError
from dcdt.utils.files import parse_json
from dcdt.utils.text import one_line

SHARD_ROWS = 20_000  # vectors a shard
VECTOR_COLUMNS = ("vector", "embedding")
NAME_COLUMNS = ("text", "_id", "id")


def import_vectors(
    cache: VectorCache, vectors: Path, names: Path | None, collection: Collection, field: str, normalise: bool
) -> tuple[int, int]:
    """Store vectors under their texts; texts that are cached already keep their vector.

    Args:
        cache: to add to.
        vectors: `.npy` (n, D), or `.parquet` with a column `vector` or `embedding` and one of text, `_id`, `id`.
        names: for `.npy`, the text or id of each row: `.jsonl` with `text` or `_id`, or `.txt` with an id a line.
        collection: of the ids.
        field: of the text that an id stands for: a video's `title`, `text` or another field, or `query`.
        normalise: normalise the vectors first.

    Returns:
        Number of vectors added, and of rows left out because their text was cached already.

    Raises:
        UserError: a file is not readable, a row has no text, or a vector is invalid in the space. Nothing is added
            before all rows have been checked.
    """
    matrix, texts = _read(vectors, names, collection, field)
    if len(texts) != len(matrix):
        raise UserError(f"{vectors} has {len(matrix)} rows, but {names} names {len(texts)}. Row n is of line n.")
    if matrix.ndim != 2 or matrix.shape[1] != cache.space.dimensions:
        raise UserError(
            f"{vectors}: vectors of shape {matrix.shape}; {cache.space.model} has (n, {cache.space.dimensions}).\n"
            "Choose the embedder that made them: embedder=... embedder.model=... embedder.dimensions=N"
        )
    rows = _new_rows(cache, texts)
    for store in (False, True):  # check all before storing the first
        for start in range(0, len(rows), SHARD_ROWS):
            shard_rows = rows[start : start + SHARD_ROWS]
            shard = np.array(matrix[shard_rows], dtype=np.float32)  # (p, D)
            if normalise:
                shard /= np.maximum(np.linalg.norm(shard, axis=1, keepdims=True), 1e-12)
            shard_texts = [texts[row] for row in shard_rows]
            if store:
                cache.add(shard_texts, shard)
            else:
                check_vectors(
                    shard, shard_texts, cache.space, str(vectors), "import.normalise=true brings lengths to 1."
                )
    return len(rows), len(texts) - len(rows)


def _new_rows(cache: VectorCache, texts: Sequence[str]) -> list[int]:
    """Return the rows whose text the cache lacks, the first of each text."""
    missing, rows = set(cache.missing(texts)), []
    for row, text in enumerate(texts):
        if text in missing:
            missing.discard(text)
            rows.append(row)
    return rows


def _read(
    vectors: Path, names: Path | None, collection: Collection, field: str
) -> tuple[NDArray[np.floating], list[str]]:
    """Read the matrix (n, D), memory-mapped if possible, and the text of each row."""
    if vectors.suffix == ".parquet":
        return _read_parquet(vectors, collection, field)
    if vectors.suffix != ".npy":
        raise UserError(f"import.vectors is '{vectors}'; a .npy or a .parquet file is needed.")
    if names is None:
        raise UserError(f"import.names is not set: the texts or ids of the rows of {vectors} (.jsonl or .txt).")
    try:
        matrix = np.load(vectors, mmap_mode="r", allow_pickle=False)
        if not isinstance(matrix, np.ndarray) or matrix.dtype.kind not in "fiu":
            raise TypeError("no array of numbers")
        if matrix.ndim != 2:
            raise TypeError(f"its shape is {matrix.shape}, not (rows, numbers)")
    except Exception as error:  # numpy, its header's parser and zip each have their own kinds
        raise UserError(f"{vectors} is not a readable .npy file of numbers ({error}).") from error
    return matrix, _names(names, collection, field)


def _read_parquet(path: Path, collection: Collection, field: str) -> tuple[NDArray[np.floating], list[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        vector_columns = [name for name in VECTOR_COLUMNS if name in table.column_names]
        name_columns = [name for name in NAME_COLUMNS if name in table.column_names]
        if not vector_columns or not name_columns:
            raise UserError(
                f"{path} has the columns {', '.join(table.column_names)}; needed are one of "
                f"{', '.join(VECTOR_COLUMNS)} and one of {', '.join(NAME_COLUMNS)}."
            )
        flat = table[vector_columns[0]].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        matrix = flat.reshape(table.num_rows, -1)
        values = ["" if value is None else str(value).strip() for value in table[name_columns[0]].to_pylist()]
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a readable table of vectors of one width ({error}).") from error
    if "" in values:
        raise UserError(f"{path} row {values.index('')}: '{name_columns[0]}' is empty.")
    locations = [f"{path} row {row}" for row in range(len(values))]
    return matrix, _texts(name_columns[0] == "text", values, locations, collection, field)


def _names(path: Path, collection: Collection, field: str) -> list[str]:
    """Read the texts of the rows from a list of ids or records."""
    values, locations, kinds = [], [], set()
    for number, line in read_lines(path):
        if path.suffix == ".jsonl":
            try:
                record = parse_json(line)
                kind = "text" if "text" in record else "_id"
                values.append("" if record[kind] is None else str(record[kind]).strip())
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{path}:{number}: a JSON object with 'text' or '_id' is needed.") from error
            kinds.add(kind)
            if len(kinds) > 1 or not values[-1]:
                fault = "is not what the lines before have" if len(kinds) > 1 else "is empty"
                raise UserError(f"{path}:{number}: '{kind}' {fault}. Every line needs 'text', or every line '_id'.")
        else:
            values.append(line.strip())
        locations.append(f"{path}:{number}")
    return _texts(kinds == {"text"}, values, locations, collection, field)


def _texts(
    are_texts: bool, values: Sequence[str], locations: Sequence[str], collection: Collection, field: str
) -> list[str]:
    """Return the values if they are texts, else the texts of these ids."""
    if are_texts:
        return list(values)
    is_query = field == "query"
    rows = collection.queries.row_of if is_query else collection.videos.row_of
    texts = collection.queries.texts if is_query else collection.field_texts(field)
    for value, location in zip(values, locations, strict=True):
        if value not in rows:
            raise UserError(
                f"{location}: the id '{one_line(value)}' is no {'query' if is_query else 'video'} of {collection.path}."
            )
    return [texts[rows[value]] for value in values]
