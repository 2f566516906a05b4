"""Conversion between Arrow and numpy without pyarrow's own, which imports pandas for a second where it is installed."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Matrix = NDArray[np.float32] | NDArray[np.float16]
DTYPES = {"halffloat": "f2", "float": "f4", "double": "f8", "uint8": "u1", "int32": "i4", "int64": "i8"}


def to_numpy(array: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """Numbers or truth values without nulls as numpy."""
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array(np.zeros(0), array.type)
    if pa.types.is_boolean(array.type):
        return to_numpy(array.cast(pa.uint8())).astype(bool)
    dtype = np.dtype(DTYPES[str(array.type)])
    if not len(array):
        return np.zeros(0, dtype=dtype)
    return np.frombuffer(array.buffers()[1], dtype=dtype)[array.offset : array.offset + len(array)]


def row_array(rows: NDArray[np.int64]) -> pa.Array:
    """Row numbers as an Arrow array."""
    return pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows, dtype="i8"))])


def vector_matrix(table: pa.Table, column: str) -> Matrix:
    """A vector column as a matrix (n, W), without a copy where it is in one piece."""
    array = table[column].combine_chunks() if isinstance(table[column], pa.ChunkedArray) else table[column]
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return to_numpy(array.flatten()).reshape(len(array), array.type.list_size)


def vector_column(matrix: Matrix) -> pa.FixedSizeListArray:
    """A matrix (n, W) as a vector column."""
    flat = np.ascontiguousarray(matrix).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), matrix.shape[1])
