"""Approximate search through faiss: a narrow index finds candidates, the full vectors rank them.

Vectors wider than `NARROW` are projected on their first principal directions (of the second moment, so that inner
products are kept as far as a projection can); the narrow vectors lie in a graph (HNSW) or in cells (IVF) as fp16. What
the narrow search finds is ranked again by exact inner products with the full vectors. How wide the search is cast is
chosen at build time by recall against exact search, and the recall that was found is kept with the index.
"""

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdt.serving.index import Matrix
from dcdt.utils.errors import UserError
from dcdt.utils.files import atomic_write, parse_json, write_json

EXACT_CELLS = 16_000_000  # numbers up to which a catalogue is searched exactly: 64 MB of fp32, a few milliseconds
HNSW_LIMIT = 100_000  # videos; above it a graph takes too long to build
NARROW = 256  # width of the vectors that are searched first
SAMPLE = 50_000  # vectors that directions and cells are learned from
PROBES = 400  # queries that recall is measured on, half to choose by and half to report
TARGET = 0.99  # recall@10 that the search is widened for; on the other half it is reported
AT = 10
HNSW_LINKS, HNSW_BUILD = 32, 80
BLOCK = 16_384  # vectors that are compared at once
DEPTHS = (100, 200, 400)  # candidates that are ranked again


@dataclass(frozen=True)
class Facts:
    """What was found at build time: kind, width of the narrow index, breadth, candidates, and recall@10."""

    kind: str
    n: int
    width: int
    breadth: int
    depth: int
    recall: float

    def check(self, learned: dict[str, NDArray[np.float32]], width: int) -> None:
        """Raise ValueError where a fact, or what was learned of vectors of a width, is not what an index has."""
        for name in ("n", "width", "breadth", "depth"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**31:
                raise ValueError(f"{name} is {value!r}")
        if self.kind not in ("hnsw", "ivf") or not isinstance(self.recall, int | float):
            raise ValueError(f"kind is {self.kind!r}, recall {self.recall!r}")
        project = (width, self.width) if self.width != width else (0, 0)
        shapes = {"mean": (width,), "moment": (width, width), "project": project}
        for name, shape in shapes.items():
            if learned[name].shape != shape or learned[name].dtype != np.float32:
                raise ValueError(f"{name} is of shape {learned[name].shape}")
            if not np.isfinite(learned[name]).all():
                raise ValueError(f"{name} is not finite")


class Ann:
    """A faiss index over narrow vectors, and the matrix of full ones.

    Attributes:
        matrix: (N, W) the full vectors, fp32 or fp16.
        learned: of a sample: `mean` (W,) and second `moment` (W, W), from which mean and deviation of a query's scores
            follow, and `project` (W, w), empty where W is narrow already.
        facts: what was measured at build time.
    """

    def __init__(self, index: Any, matrix: Matrix, learned: dict[str, NDArray[np.float32]], facts: Facts) -> None:  # noqa: ANN401
        self.index, self.matrix, self.learned, self.facts = index, matrix, learned, facts
        self.project = learned["project"] if learned["project"].size else None

    @staticmethod
    def build(
        matrix: Matrix, probes: NDArray[np.float32] | None = None, kind: str | None = None, seed: int = 0
    ) -> "Ann":
        """Index vectors (N, W) and choose the breadth of the search.

        Args:
            matrix: the vectors.
            probes: (P, W) queries as they come, to measure recall on; perturbed rows where there are none.
            kind: `hnsw` or `ivf`; by size where not given.
            seed: of the samples.
        """
        import faiss

        rng = np.random.default_rng(seed)
        n, width = matrix.shape
        rows = np.sort(rng.choice(n, min(n, SAMPLE), replace=False))
        sample = matrix[rows].astype(np.float32)
        learned = learn(sample)
        project = learned["project"] if width > NARROW else None
        narrow_width = width if project is None else NARROW
        kind = kind or ("hnsw" if n <= HNSW_LIMIT else "ivf")
        if kind == "hnsw":
            index = faiss.IndexHNSWSQ(
                narrow_width, faiss.ScalarQuantizer.QT_fp16, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT
            )
            index.hnsw.efConstruction = HNSW_BUILD
        else:
            cells = int(max(1, min(4096, 2 * n**0.5, n / 39)))  # faiss wants 39 vectors a cell
            quantizer = faiss.IndexFlatIP(narrow_width)
            index = faiss.IndexIVFScalarQuantizer(
                quantizer, narrow_width, cells, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
            )
            index.cp.min_points_per_centroid = 10  # below which faiss warns; a sample gives at least 12
        index.train(_narrow(sample, project))
        for start in range(0, n, SAMPLE):
            index.add(_narrow(matrix[start : start + SAMPLE].astype(np.float32), project))
        found = Ann(index, matrix, learned, Facts(kind, n, narrow_width, 8, DEPTHS[0], 0.0))
        if probes is None or not len(probes):
            probes = perturbed(matrix, PROBES, rng)
        found.facts = found._choose(probes[:PROBES])
        return found

    def _choose(self, probes: NDArray[np.float32]) -> Facts:
        """The least breadth and depth that reach the target on half of the probes, with the recall on the other."""
        exact = exact_top(self.matrix, probes, AT)
        half = (len(probes) + 1) // 2
        facts = self.facts
        breadths = (32, 64, 128, 256, 512) if facts.kind == "hnsw" else (4, 8, 16, 32, 64, 128)
        for breadth in breadths:
            for depth in DEPTHS:
                self.facts = Facts(facts.kind, facts.n, facts.width, breadth, depth, 0.0)
                if self.recall(probes[:half], exact[:half]) >= TARGET:
                    reported = self.recall(probes[half:], exact[half:]) if half < len(probes) else 0.0
                    return Facts(facts.kind, facts.n, facts.width, breadth, depth, reported)
        return Facts(facts.kind, facts.n, facts.width, breadth, depth, self.recall(probes[half:], exact[half:]))

    def recall(self, probes: NDArray[np.float32], exact: NDArray[np.int64]) -> float:
        """Share of the exact best (P, k) that the search finds."""
        k = exact.shape[1]
        found = [np.isin(best, self.search(probe, k)[0]).mean() for probe, best in zip(probes, exact, strict=True)]
        return float(np.mean(found)) if found else 0.0

    def search(
        self, vector: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and inner products of the best k for a vector (W,), the best first; fewer where fewer are allowed.

        More that is asked for, and fewer rows that may be found, widen the search in proportion; where it still finds
        too few, it is widened until all is searched. Where a filter leaves less than half of a graph, which holds at
        most `HNSW_LIMIT` rows, what is left is compared exactly.

        Args:
            vector: the query.
            k: how many.
            allowed: (N,) rows that may be found; None for all.
        """
        n = self.facts.n
        may = n if allowed is None else int(np.count_nonzero(allowed))
        depth = max(self.facts.depth, 2 * k)
        narrow = vector[None] if self.project is None else vector[None] @ self.project  # (1, w)
        narrow = np.ascontiguousarray(narrow, dtype=np.float32)
        whole = n if self.facts.kind == "hnsw" else int(self.index.nlist)
        breadth = min(whole, int(np.ceil(self.facts.breadth * depth / self.facts.depth * n / max(may, 1))))
        scarce = self.facts.kind == "hnsw" and 2 * may < n  # a graph is walked through rows that do not count
        rows = np.zeros(0, dtype=np.int64) if scarce else self._candidates(narrow, depth, breadth, allowed)
        while not scarce and len(rows) < min(depth, may) and breadth < whole:
            breadth = min(whole, 4 * breadth)
            rows = self._candidates(narrow, depth, breadth, allowed)
        if len(rows) < min(k, may):
            rows = np.arange(n) if allowed is None else np.flatnonzero(allowed)
        scores = np.concatenate(
            [self.matrix[part].astype(np.float32) @ vector for part in np.array_split(rows, 1 + len(rows) // BLOCK)]
        )  # (depth, W) @ (W,)
        order = np.argsort(-scores, kind="stable")[:k]
        return rows[order], scores[order]

    def _candidates(
        self,
        narrow: NDArray[np.float32],
        depth: int,
        breadth: int,
        allowed: NDArray[np.bool_] | None,
    ) -> NDArray[np.int64]:
        """Rows that the narrow index finds for a narrow vector (1, w), at most `depth`."""
        import faiss

        options: dict[str, Any] = {}
        if allowed is not None:
            options["sel"] = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        if self.facts.kind == "hnsw":
            params = faiss.SearchParametersHNSW(efSearch=max(breadth, depth), **options)
        else:
            params = faiss.SearchParametersIVF(nprobe=breadth, **options)
        try:
            _, found = self.index.search(narrow, depth, params=params)
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
        """Write PATH (faiss's own format) and, beside it, .npz and .json, whole or not at all."""
        import faiss

        with atomic_write(path) as temporary:
            faiss.write_index(self.index, str(temporary))
        with atomic_write(path.with_suffix(".npz")) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **self.learned)
        write_json(path.with_suffix(".json"), asdict(self.facts))

    @staticmethod
    def load(path: Path, matrix: Matrix) -> "Ann":
        """Read what `save` wrote, over the same matrix.

        Raises:
            UserError: a file is missing, corrupt or of another catalogue.
        """
        import faiss

        try:
            facts = Facts(**parse_json(path.with_suffix(".json").read_text(encoding="utf-8")))
            index = faiss.read_index(str(path))
            kind = faiss.IndexHNSW if facts.kind == "hnsw" else faiss.IndexIVF
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
                learned = {name: arrays[name] for name in ("mean", "moment", "project")}
            facts.check(learned, matrix.shape[1])
            if not isinstance(index, kind):
                raise ValueError(f"it is no index of kind {facts.kind}")
            if index.ntotal != facts.n or facts.n != len(matrix) or index.d != facts.width:
                raise ValueError(f"it holds {index.ntotal} vectors, the catalogue {len(matrix)}")
        except Exception as error:  # faiss, numpy and zip each have their own kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UserError(f"{path} is corrupt or of another catalogue ({reason[:120]}).") from error
        return Ann(index, matrix, learned, facts)


def learn(sample: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Mean, second moment and, for wide vectors, the first NARROW principal directions of a sample (n, W)."""
    moment = (sample.T @ sample).astype(np.float64) / len(sample)
    project = np.zeros((0, 0), dtype=np.float32)
    if sample.shape[1] > NARROW:
        _, directions = np.linalg.eigh(moment)
        project = np.ascontiguousarray(directions[:, ::-1][:, :NARROW], dtype=np.float32)
    return {"mean": sample.mean(0), "moment": moment.astype(np.float32), "project": project}


def exact_top(matrix: Matrix, probes: NDArray[np.float32], k: int, chunk: int = 65_536) -> NDArray[np.int64]:
    """Rows of the k largest inner products of each probe (P, W), (P, k), a block of the matrix at a time."""
    scores = np.full((len(probes), k), -np.inf, dtype=np.float32)
    rows = np.full((len(probes), k), -1, dtype=np.int64)
    for start in range(0, len(matrix), chunk):
        block = probes @ matrix[start : start + chunk].astype(np.float32).T  # (P, chunk)
        both = np.concatenate([scores, block], axis=1)
        ids = np.concatenate([rows, np.broadcast_to(np.arange(start, start + block.shape[1]), block.shape)], axis=1)
        top = np.argsort(-both, axis=1, kind="stable")[:, :k] if both.shape[1] < 4 * k else _top(both, k)
        scores, rows = np.take_along_axis(both, top, 1), np.take_along_axis(ids, top, 1)
    return rows


def perturbed(matrix: Matrix, n: int, rng: np.random.Generator, noise: float = 0.7) -> NDArray[np.float32]:
    """Rows with noise of `noise` times their length added, (n, W), normalised: queries near, but not at, a video."""
    rows = matrix[np.sort(rng.choice(len(matrix), min(n, len(matrix)), replace=False))].astype(np.float32)
    rows = rows[rng.permutation(len(rows))]
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    shift = rng.standard_normal(rows.shape, dtype=np.float32)
    mixed = rows + noise * shift / np.linalg.norm(shift, axis=1, keepdims=True)
    return np.asarray(mixed / np.linalg.norm(mixed, axis=1, keepdims=True), dtype=np.float32)


def _top(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    part = np.argpartition(-scores, k, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, part, 1), axis=1, kind="stable")
    return np.take_along_axis(part, order, 1)


def _narrow(vectors: NDArray[np.float32], project: NDArray[np.float32] | None) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors if project is None else vectors @ project)
