"""Towers of an exported run: ONNX graphs and arrays, run without torch."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dcdt.utils.errors import UserError, needs_extra
from dcdt.utils.text import one_line

QUERY_MAP = "query_map"
Floats = NDArray[np.float32]
Scores = NDArray[np.float64]


class Towers:
    """The query tower and the video tower of a scorer; each is loaded when it is first needed.

    Args:
        folder: that holds `query_<number>.onnx` and `video_<number>.onnx`.
        number: of the scorer.
        width: W, of what the video tower gives.
        query_width: of what the query tower gives; where it is less, a learner's history makes up the rest.
        is_linear: whether the query tower is one matrix and a normalisation. Then numpy multiplies by `QUERY_MAP` of
            the arrays, which for one question takes less time than ONNX Runtime does; the graph says the same.
        stretches: [start, end) of the embedder's numbers that the towers read, one after the other; empty: all.

    Raises:
        UserError: a graph is missing, corrupt, or gives vectors of another width.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        width: int,
        query_width: int,
        is_linear: bool = False,
        stretches: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.folder, self.number, self.width, self.query_width = folder, number, width, query_width
        self.is_linear, self.stretches = is_linear, stretches

    def query(self, vectors: Floats) -> tuple[Floats, Floats | None]:
        """Query vectors (B, W) of frozen vectors (B, D), and the weights over the fields (B, F) where it has some."""
        vectors = self._read(vectors)
        if self.is_linear:
            encoded = unit(vectors @ self._map(vectors.shape[1]))
            if not np.isfinite(encoded).all():
                raise UserError(f"{arrays_path(self.folder, self.number)} gives numbers that are not finite.")
            return encoded, None
        outputs = self._run(self._query, "query", {"vectors": vectors}, (len(vectors), self.query_width))
        return outputs[0], outputs[1] if len(outputs) > 1 else None

    def videos(self, fields: Floats) -> tuple[Floats, Floats]:
        """Video vectors (B, W) of frozen field vectors (F, B, D), and what each field adds to them (P, B, W)."""
        fields = self._read(fields)
        outputs = self._run(self._video, "video", {"fields": fields}, (fields.shape[1], self.width))
        return outputs[0], outputs[1]

    def _read(self, vectors: Floats) -> Floats:
        """The numbers that the towers read of vectors (..., D), with length 1."""
        if not self.stretches:
            return vectors
        if max(end for _, end in self.stretches) > vectors.shape[-1]:
            raise UserError(f"{self.folder} is corrupt: its towers read over {vectors.shape[-1]} numbers a vector.")
        return unit(np.concatenate([vectors[..., start:end] for start, end in self.stretches], axis=-1))

    def _run(self, graph: Any, name: str, inputs: dict[str, Floats], shape: tuple[int, int]) -> list[Floats]:  # noqa: ANN401
        """The outputs of a graph, the first of them of this shape."""
        try:
            outputs: list[Floats] = graph.run(None, inputs)
            first = outputs[0].shape
        except Exception as error:  # onnxruntime's errors share no base but Exception
            reason = one_line(error, 100)
            raise UserError(f"{self.folder / name}_{self.number}.onnx cannot be run ({reason}).") from error
        if not all(np.isfinite(part).all() for part in outputs):
            raise UserError(f"{self.folder / name}_{self.number}.onnx gives numbers that are not finite.")
        if first != shape:
            raise UserError(f"{self.folder / name}_{self.number}.onnx gives {first}; {shape} is expected.")
        return outputs

    @cached_property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays of the scorer, read when they are first needed."""
        return read_arrays(self.folder, self.number)

    def _map(self, width: int) -> NDArray[Any]:
        """The matrix of a linear query tower, (width, query_width)."""
        matrix = self.arrays.get(QUERY_MAP)
        if matrix is None or matrix.shape != (width, self.query_width) or matrix.dtype != np.float32:
            wanted = f"{QUERY_MAP} of shape {(width, self.query_width)}"
            raise UserError(f"{arrays_path(self.folder, self.number)} is corrupt: it holds no {wanted} in float32.")
        return matrix

    @cached_property
    def _query(self) -> Any:  # noqa: ANN401 - onnxruntime has no types
        return session(self.folder / f"query_{self.number}.onnx")

    @cached_property
    def _video(self) -> Any:  # noqa: ANN401
        return session(self.folder / f"video_{self.number}.onnx")


def arrays_path(folder: Path, number: int) -> Path:
    """The path of the arrays of a scorer."""
    return folder / f"arrays_{number}.safetensors"


def read_arrays(folder: Path, number: int) -> dict[str, NDArray[Any]]:
    """The arrays of a scorer.

    Raises:
        UserError: the file is missing or corrupt.
    """
    path = arrays_path(folder, number)
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{path} is missing or corrupt ({one_line(error, 120)}).") from error


def session(path: Path) -> Any:  # noqa: ANN401
    """An ONNX graph, ready to run on one thread.

    Raises:
        UserError: onnxruntime is not installed, or the file is missing or corrupt.
    """
    with needs_extra("answering", "serve", "onnxruntime"):
        from onnxruntime import InferenceSession, SessionOptions
    options = SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors share no base but Exception
        raise UserError(f"{path} is missing or corrupt ({one_line(error, 100)}).") from error


def unit(vectors: Floats) -> Floats:
    """Vectors (..., D) of length 1; a vector of zeros stays."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12), dtype=np.float32)


def softmax(values: NDArray[Any]) -> Scores:
    """Weights (n,) that sum to 1."""
    weights = np.exp(values.astype(np.float64) - values.max())
    return np.asarray(weights / weights.sum())
