"""hybrid: two scorers and one score, by weighted z-scores or by reciprocal ranks."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dcdt.evaluation.fusion import convex_sum, reciprocal_rank_sum, standardize
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.catalogue.top_k import top_k
from dcdt.serving.graphs import Scores
from dcdt.serving.scorers.base import CatalogueScores, Count, Rows, Section

MODELS = ("hybrid", "hybrid_encoder")
N_CANDIDATES = 200  # of each scorer that a fusion over a large catalogue ranks, at least
SAMPLE = 2048  # videos by which the spread of a fusion over a large catalogue is measured


class Fusion(Section):
    """The fusion of two scorers, or fusions `first` and `second`: `k` of ranks, `weight` of the first's z-scores."""

    kind: Literal["convex", "rrf"]
    k: Count
    weight: Annotated[float, Field(ge=0, le=1)]
    first: "Fusion | None" = None
    second: "Fusion | None" = None

    @property
    def n_scorers(self) -> int:
        """Number of scorers that are fused."""
        return sum(1 if part is None else part.n_scorers for part in (self.first, self.second))

    @property
    def weights(self) -> tuple[float, float]:
        """Of the z-scores of both."""
        return self.weight, 1 - self.weight

    @staticmethod
    def of(model: Any) -> "Fusion":  # noqa: ANN401 - baselines are not imported here
        """The fusion of a trained model."""
        config, weight = model.config, float(model.weight)
        first, second = (None if part.components == [part] else Fusion.of(part) for part in model.components)
        return Fusion(kind=config.fusion, k=config.k, weight=weight, first=first, second=second)


class FusedScores(CatalogueScores):
    """The fused scores of two parts, which may be fused themselves."""

    def __init__(self, parts: Sequence[CatalogueScores], fusion: Fusion) -> None:
        super().__init__(parts[0].snapshot)
        self.parts, self.fusion = parts, fusion

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        rows, scores = np.flatnonzero(self.snapshot.present), np.zeros(len(self.snapshot.present))
        scores[rows] = fuse(self.parts, self.fusion, rows, self.snapshot)
        return scores

    def top(self, k: int, allowed: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """Rows and scores of the best k among the allowed rows."""
        return fused_top(self.parts, self.fusion, self.snapshot, k, allowed)

    def scores_of(self, rows: Rows) -> Scores:
        """Scores of some rows (n,)."""
        return fuse(self.parts, self.fusion, rows, self.snapshot) if self.snapshot.indexes else super().scores_of(rows)

    def mean_and_deviation(self) -> tuple[float, float]:
        """Mean and standard deviation over the catalogue."""
        if not self.snapshot.indexes or self.fusion.kind == "rrf":
            return super().mean_and_deviation()
        rows = candidates(self.parts, 1, self.snapshot.present)
        return 0.0, fused_deviation(self.parts, self.fusion, rows, self.snapshot)

    def passage_scores(self, row: int) -> Scores | None:
        """Weighted z-scores, over the passages of a row (p,), of the parts that score passages."""
        total: Scores | None = None
        weights = self.fusion.weights if self.fusion.kind == "convex" else (0.5, 0.5)
        for part, weight in zip(self.parts, weights, strict=True):
            if (scores := part.passage_scores(row)) is not None:
                z = weight * standardized(scores, float(scores.mean()), float(np.ptp(scores) and scores.std()))
                total = z if total is None else total + z
        return total


def combine(scores: Iterator[CatalogueScores], fusion: Fusion | None) -> CatalogueScores:
    """Fuse scorers' scores, in the order of their numbers."""
    if fusion is None:
        return next(scores)
    return FusedScores([combine(scores, part) for part in (fusion.first, fusion.second)], fusion)


def fused_top(
    scores: Sequence[CatalogueScores], fusion: Fusion, snapshot: Snapshot, k: int, allowed: NDArray[np.bool_]
) -> tuple[Rows, Scores]:
    """The best k of two scorers together: exactly over a catalogue that is scored whole, else among their candidates.

    Over a large catalogue a candidate's scores are exact, and so is their mean over the catalogue; the deviation of
    vectors that are searched narrowed is that along the directions kept, with what is left spread evenly
    (`Ann.spread`). A video outside the best `N_CANDIDATES` of both is not considered. Ranks are counted among the
    candidates.
    """
    if not snapshot.indexes:
        every = np.full(len(snapshot.present), -np.inf)
        rows = np.flatnonzero(snapshot.present)
        every[rows] = fuse(scores, fusion, rows, snapshot)
        every[~allowed] = -np.inf
        top = top_k(every, snapshot.order, k)
        return top, every[top]
    rows = candidates(scores, k, allowed)
    fused = fuse(scores, fusion, rows, snapshot)
    top = top_k(fused, None, k)
    return rows[top], fused[top]


def candidates(scores: Sequence[CatalogueScores], k: int, allowed: NDArray[np.bool_]) -> Rows:
    """Find the allowed rows that some scorer has among its best, for a choice of the best k."""
    wide = max(N_CANDIDATES, 4 * k)
    return np.unique(np.concatenate([part.top(wide, allowed)[0] for part in scores]))


def fuse(scores: Sequence[CatalogueScores], fusion: Fusion, rows: Rows, snapshot: Snapshot) -> Scores:
    """Fused scores of some rows (n,), by z-scores or by reciprocal ranks."""
    first, second = scores
    if fusion.kind == "rrf":
        ranks = [_ranks(part.scores_of(rows), snapshot, rows) for part in (first, second)]
        return np.asarray(reciprocal_rank_sum(ranks[0], ranks[1], fusion.k))
    return np.asarray(convex_sum(z_scores(first, rows), z_scores(second, rows), fusion.weight))


def z_scores(scores: CatalogueScores, rows: Rows) -> Scores:
    """Scores of some rows (n,) less the catalogue's mean, over its deviation; 0 where that is 0."""
    return standardized(scores.scores_of(rows), *scores.mean_and_deviation())


def standardized(scores: Scores, mean: float, deviation: float) -> Scores:
    """Scores less a mean, over a deviation; 0 where that is 0."""
    return np.asarray(standardize(scores, mean, deviation)) if deviation > 0 else np.zeros(len(scores))


def fused_deviation(scores: Sequence[CatalogueScores], fusion: Fusion, rows: Rows, snapshot: Snapshot) -> float:
    """Deviation over a large catalogue of a weighted sum of z-scores, whose mean is 0.

    It needs their correlation: exact for the candidates, rows (n,), where the large scores are, and measured on a
    sample of the others.
    """
    n, weight = len(snapshot), fusion.weight
    sample = np.random.default_rng(0).integers(0, len(snapshot.present), SAMPLE)
    sample = np.setdiff1d(sample[snapshot.present[sample]], rows)
    products = [z_scores(scores[0], part) * z_scores(scores[1], part) for part in (rows, sample)]
    rest = float(products[1].mean()) if len(sample) else 0.0
    correlation = min(1.0, max(-1.0, (float(products[0].sum()) + (n - len(rows)) * rest) / n))
    varies = [float(part.mean_and_deviation()[1] > 0) for part in scores]  # equal scores have z-scores of 0
    square = (weight * varies[0]) ** 2 + ((1 - weight) * varies[1]) ** 2 + 2 * weight * (1 - weight) * correlation
    return float(max(square, 0.0) ** 0.5)


def tie_order(snapshot: Snapshot, rows: Rows) -> Rows:
    """Return the order of rows among equal scores, as in every evaluation; by row in a large catalogue."""
    return rows if snapshot.indexes else snapshot.order[rows]


def _ranks(scores: Scores, snapshot: Snapshot, rows: Rows) -> Scores:
    ranks = np.empty(len(rows))
    ranks[np.lexsort((tie_order(snapshot, rows), -scores))] = np.arange(1, len(rows) + 1)
    return ranks
