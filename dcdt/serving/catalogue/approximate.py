"""Approximate search through faiss: a narrow index finds candidates, the full vectors rank them.

Vectors wider than `NARROW` are projected on their first principal directions (of the second moment, so that inner
products are kept as far as a projection can); faiss holds the narrow vectors in cells as fp16. Candidates are ranked by
exact inner products with the full vectors, so that scores are those of an evaluation. How many cells and candidates a
search takes is chosen at build time by recall against exact search, and the measured recall is kept with the index.
"""

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdt.serving.arrow import Matrix
from dcdt.utils.errors import UserError
from dcdt.utils.files import atomic_write, parse_json, read_limited, write_json

EXACT_CELLS = 16_000_000  # numbers up to which a catalogue is searched exactly: 64 MB of fp32, a few milliseconds
NARROW = 256  # width of the vectors that are searched first
SAMPLE = 50_000  # vectors that directions and cells are learned from
MAX_PROBES = 400  # queries that recall is measured on, half to choose by and half to report
TARGET_RECALL, RECALL_K = 0.99, 10  # that the search is widened for; on the other half it is reported
MAX_CELLS, VECTORS_PER_CELL = 4096, 39  # as many vectors as faiss wants to learn a cell from
BREADTHS = (8, 16, 32, 64, 128)  # cells that are searched
DEPTHS = (100, 200, 400)  # candidates that are ranked again
MAX_SCANNED = 100_000  # vectors up to which all cells are searched where a filter leaves less than half
BLOCK = 16_384  # vectors that are compared at once


@dataclass(frozen=True)
class IndexInfo:
    """Kind, vectors, width of the narrow index, cells searched, candidates ranked again, and recall@10."""

    kind: str
    n: int
    width: int
    breadth: int
    depth: int
    recall: float

    def check(self, learned: dict[str, NDArray[np.float32]], width: int) -> None:
        """Raise ValueError where a value, or what was learned of vectors of a width, is not what an index has."""
        for name in ("n", "width", "breadth", "depth"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
                raise ValueError(f"{name} is {value!r}")
        if not isinstance(self.recall, int | float):
            raise ValueError(f"recall is {self.recall!r}")
        project = (width, self.width) if self.width != width else (0, 0)
        for name, shape in {"mean": (width,), "moment": (width, width), "project": project}.items():
            if learned[name].shape != shape or learned[name].dtype != np.float32:
                raise ValueError(f"{name} is of shape {learned[name].shape}")
            if not np.isfinite(learned[name]).all():
                raise ValueError(f"{name} is not finite")


class ApproximateIndex:
    """A faiss index over narrow vectors, and the matrix of full ones.

    Attributes:
        matrix: (N, W) the full vectors, fp32 or fp16.
        learned: of a sample: `mean` (W,) and second `moment` (W, W), from which mean and deviation of a query's scores
            follow, and `project` (W, w), empty where W is narrow already.
        info: measured at build time.
    """

    def __init__(self, index: Any, matrix: Matrix, learned: dict[str, NDArray[np.float32]], info: IndexInfo) -> None:  # noqa: ANN401
        self.index, self.matrix, self.learned, self.info = index, matrix, learned, info
        self.project = learned["project"] if learned["project"].size else None

    @staticmethod
    def build(matrix: Matrix, probes: NDArray[np.float32] | None = None, seed: int = 0) -> "ApproximateIndex":
        """Index vectors (N, W) and choose the breadth of the search.

        Args:
            matrix: the vectors.
            probes: (P, W) queries as they come, to measure recall on; perturbed rows where there are none.
            seed: of the samples.
        """
        import faiss

        rng = np.random.default_rng(seed)
        n, width = matrix.shape
        sample = matrix[np.sort(rng.choice(n, min(n, SAMPLE), replace=False))].astype(np.float32)
        learned = learn_moments(sample)
        project = learned["project"] if width > NARROW else None
        cells = int(max(1, min(MAX_CELLS, 2 * n**0.5, n / VECTORS_PER_CELL)))
        info = IndexInfo("ivf", n, min(width, NARROW), BREADTHS[0], DEPTHS[0], 0.0)
        index = faiss.index_factory(info.width, f"IVF{cells},SQfp16", faiss.METRIC_INNER_PRODUCT)
        index.by_residual = False
        index.cp.min_points_per_centroid = 10  # below which faiss warns; a sample gives at least 12
        index.train(_narrow(sample, project))
        for start in range(0, n, SAMPLE):
            index.add(_narrow(matrix[start : start + SAMPLE].astype(np.float32), project))
        built = ApproximateIndex(index, matrix, learned, info)
        if probes is None or not len(probes):
            probes = perturbed(matrix, MAX_PROBES, rng)
        built._choose_breadth(probes[:MAX_PROBES])
        return built

    def _choose_breadth(self, probes: NDArray[np.float32]) -> None:
        """Take the least breadth and depth that reach the target on half of the probes; report the other's recall."""
        exact = exact_top_k(self.matrix, probes, RECALL_K)
        half = (len(probes) + 1) // 2
        for breadth, depth in [(breadth, depth) for breadth in BREADTHS for depth in DEPTHS]:
            self.info = replace(self.info, breadth=breadth, depth=depth)
            if self.recall(probes[:half], exact[:half]) >= TARGET_RECALL:
                break
        self.info = replace(self.info, recall=self.recall(probes[half:], exact[half:]))

    def recall(self, probes: NDArray[np.float32], exact: NDArray[np.int64]) -> float:
        """Share of the exact best (P, k) that the search finds."""
        k = exact.shape[1]
        shares = [np.isin(best, self.search(probe, k)[0]).mean() for probe, best in zip(probes, exact, strict=True)]
        return float(np.mean(shares)) if shares else 0.0

    def search(
        self, vector: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and inner products of the best k for a vector (W,), the best first; fewer where fewer are allowed.

        A larger k and fewer allowed rows widen the search in proportion; where it still finds too few, it is widened
        until all is searched.

        Args:
            vector: the query.
            k: how many.
            allowed: (N,) rows that may be found; None for all.
        """
        n, cells = self.info.n, int(self.index.nlist)
        n_allowed = n if allowed is None else int(np.count_nonzero(allowed))
        depth = max(self.info.depth, 2 * k)
        narrow = _narrow(vector[None].astype(np.float32), self.project)  # (1, w)
        scale = depth / self.info.depth * n / max(n_allowed, 1)
        is_scarce = 2 * n_allowed < n <= MAX_SCANNED  # what a filter leaves may lie far from the query
        breadth = cells if is_scarce else min(cells, int(np.ceil(self.info.breadth * scale)))
        rows = self._candidates(narrow, depth, breadth, allowed)
        while len(rows) < min(depth, n_allowed) and breadth < cells:
            breadth = min(cells, 4 * breadth)
            rows = self._candidates(narrow, depth, breadth, allowed)
        scores = np.concatenate(
            [self.matrix[part].astype(np.float32) @ vector for part in np.array_split(rows, 1 + len(rows) // BLOCK)]
        )  # (depth, W) @ (W,)
        order = np.argsort(-scores, kind="stable")[:k]
        return rows[order], scores[order]

    def _candidates(
        self, narrow: NDArray[np.float32], depth: int, breadth: int, allowed: NDArray[np.bool_] | None
    ) -> NDArray[np.int64]:
        """Rows that the narrow index finds for a narrow vector (1, w), at most `depth`."""
        import faiss

        selector = None if allowed is None else faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        try:
            _, found = self.index.search(narrow, depth, params=faiss.SearchParametersIVF(nprobe=breadth, sel=selector))
        except RuntimeError as error:
            raise UserError("the approximate index is corrupt: faiss cannot search it. Build it anew.") from error
        rows: NDArray[np.int64] = found[0][found[0] >= 0]
        if len(rows) and rows.max() >= len(self.matrix):
            raise UserError("the approximate index is corrupt: it finds videos that are not there. Build it anew.")
        return rows

    def spread(self, vector: NDArray[np.float32]) -> tuple[float, float]:
        """Mean and standard deviation of a query's inner products with all vectors, without computing them.

        The second moment counts along the directions of the projection; what it leaves out counts as equal in all
        others, so that the whole of it, 9 MB at 1536 numbers, need not pass through the caches for every question.
        """
        mean = float(self.learned["mean"] @ vector)
        if self.project is None:
            square = float(vector @ self.learned["moment"] @ vector)
        else:
            along, others = self._directions
            narrow = vector @ self.project  # (w,)
            square = float(along @ narrow**2) + others * max(float(vector @ vector - narrow @ narrow), 0.0)
        return mean, max(square - mean**2, 0.0) ** 0.5

    @cached_property
    def _directions(self) -> tuple[NDArray[np.float32], float]:
        """Second moment along each direction of the projection (w,), and its mean along the others."""
        moment, project = self.learned["moment"], self.learned["project"]
        along = ((moment @ project) * project).sum(0)
        rest = float(np.trace(moment) - along.sum()) / (len(moment) - len(along))
        return along, max(rest, 0.0)

    def save(self, path: Path) -> None:
        """Write PATH (faiss's own format) and, beside it, .npz and .json, each whole or not at all."""
        import faiss

        with atomic_write(path) as temporary:
            faiss.write_index(self.index, str(temporary))
        with atomic_write(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **self.learned)
        write_json(path.with_suffix(".json"), asdict(self.info))

    @staticmethod
    def load(path: Path, matrix: Matrix) -> "ApproximateIndex":
        """Read what `save` wrote, over the same matrix.

        Raises:
            UserError: a file is missing, corrupt or of another catalogue.
        """
        import faiss

        try:
            info = IndexInfo(**parse_json(read_limited(path.with_suffix(".json"))))
            index = faiss.read_index(str(path))
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
                learned = {name: arrays[name] for name in ("mean", "moment", "project")}
            info.check(learned, matrix.shape[1])
            if not isinstance(index, faiss.IndexIVF):
                raise ValueError("it is no index of cells")
            if index.ntotal != info.n or info.n != len(matrix) or index.d != info.width:
                raise ValueError(f"it holds {index.ntotal} vectors, the catalogue {len(matrix)}")
        except Exception as error:  # faiss, numpy and zip each have their own kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UserError(f"{path} is corrupt or of another catalogue ({reason[:120]}).") from error
        return ApproximateIndex(index, matrix, learned, info)


def learn_moments(sample: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Mean, second moment and, for wide vectors, the first NARROW principal directions of a sample (n, W)."""
    moment = (sample.T @ sample).astype(np.float64) / len(sample)
    project = np.zeros((0, 0), dtype=np.float32)
    if sample.shape[1] > NARROW:
        _, directions = np.linalg.eigh(moment)
        project = np.ascontiguousarray(directions[:, ::-1][:, :NARROW], dtype=np.float32)
    return {"mean": sample.mean(0), "moment": moment.astype(np.float32), "project": project}


def exact_top_k(matrix: Matrix, probes: NDArray[np.float32], k: int, block: int = 65_536) -> NDArray[np.int64]:
    """Rows of the k largest inner products of each probe (P, W), (P, k), a block of the matrix at a time."""
    from faiss import METRIC_INNER_PRODUCT
    from faiss.contrib.exhaustive_search import knn_ground_truth

    blocks = (matrix[start : start + block].astype(np.float32) for start in range(0, len(matrix), block))
    rows: NDArray[np.int64] = knn_ground_truth(probes, blocks, k, METRIC_INNER_PRODUCT)[1]
    return rows


def perturbed(matrix: Matrix, n: int, rng: np.random.Generator, noise: float = 0.7) -> NDArray[np.float32]:
    """Rows with noise of `noise` times their length added, (n, W), normalised: queries near, but not at, a video."""
    rows = matrix[np.sort(rng.choice(len(matrix), min(n, len(matrix)), replace=False))].astype(np.float32)
    rows = rows[rng.permutation(len(rows))]
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    shift = rng.standard_normal(rows.shape, dtype=np.float32)
    mixed = rows + noise * shift / np.linalg.norm(shift, axis=1, keepdims=True)
    return np.asarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True), dtype=np.float32)


def _narrow(vectors: NDArray[np.float32], project: NDArray[np.float32] | None) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors if project is None else vectors @ project)
