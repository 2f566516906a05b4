"""Between Arrow and numpy without pyarrow's own conversions, which import pandas for a second where it is installed."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

DTYPES = {"halffloat": "f2", "float": "f4", "double": "f8", "uint8": "u1", "int32": "i4", "int64": "i8"}


def numbers(array: pa.Array | pa.ChunkedArray) -> NDArray[Any]:
    """Numbers or truth values without nulls as numpy."""
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array(np.zeros(0), array.type)
    if pa.types.is_boolean(array.type):
        return numbers(array.cast(pa.uint8())).astype(bool)
    kind = np.dtype(DTYPES[str(array.type)])
    if not len(array):
        return np.zeros(0, dtype=kind)
    return np.frombuffer(array.buffers()[1], dtype=kind)[array.offset : array.offset + len(array)]


def positions(rows: NDArray[np.int64]) -> pa.Array:
    """Row numbers as an Arrow array."""
    return pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows, dtype="i8"))])
