"""Fusion of two models' scores: what practitioners deploy, BM25 beside dense vectors by default."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from dcdt.data.datamodule import Positions, RankingDataModule, side_tensors
from dcdt.data.tables import Tables
from dcdt.evaluation.ranking import quality, top_k
from dcdt.models.config import OptimizerConfig
from dcdt.models.parts import as_mask, make_part, z_scores
from dcdt.models.recommender import QueryBatch, Recommender, query_batch, rank_side

from .config import HybridConfig

WEIGHTS = sorted((step / 10 for step in range(11)), key=lambda weight: abs(weight - 0.5))  # of equals the most even


class Hybrid(Recommender):
    """Two models, neither of which is trained, and one score.

    `fusion=convex`: `w z(first) + (1 - w) z(second)`, z being z-scores over the query's candidate videos, w of 0, 0.1
    to 1 chosen by the MRR of the validation queries (`tune_on=judged`: by MRR and nDCG of these and the training
    queries, which parts that are fitted score as if they had been left out); of equals the most even.
    `fusion=rrf`: reciprocal-rank fusion, `1 / (k + rank)` summed (Cormack, Clarke and Büttcher 2009), ranks among the
    candidates with ties broken as everywhere.

    Args:
        config: how to fuse, and the configuration of each part.
        tables: the frozen vectors of all fields that the parts read.
        loss: not used.
        optimizer: not used.

    Raises:
        UserError: a part is a model that is trained.
    """

    fittable: ClassVar[bool] = False
    decoupled: ClassVar[bool] = False
    n_parts: ClassVar[int] = 3
    weight: Tensor
    order: Tensor

    def __init__(
        self,
        config: HybridConfig,
        tables: Tables,
        loss: nn.Module | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(tables)
        self.config = config
        self.first, self.second = (make_part(part, tables, "model=hybrid") for part in (config.first, config.second))
        self.reads_validation = self.first.reads_validation or self.second.reads_validation
        self.needs_question = self.first.needs_question or self.second.needs_question
        self.register_buffer("weight", torch.tensor(0.5))
        self.register_buffer("order", torch.arange(tables.videos.shape[1]))

    def prepare(self, data: RankingDataModule) -> None:
        """Prepare both parts, then choose the weight."""
        self.first.prepare(data)
        self.second.prepare(data)
        self.order = data.ties.on(self.tables.device)
        if self.config.fusion == "convex":
            found = value_of_weights(self, data, self.config.tune_on == "judged")
            self.weight.fill_(max(WEIGHTS, key=lambda weight: found[weight]))

    def facts(self) -> dict[str, float]:
        """The chosen weight of the first part, and what the parts found out."""
        weight = {"hybrid/weight": round(float(self.weight), 1)} if self.config.fusion == "convex" else {}
        return weight | self.first.facts() | self.second.facts()

    def score(self, queries: QueryBatch) -> Tensor:
        """Fused scores (B, N); beyond the candidates they mean nothing."""
        return self._fused(self.first.score(queries), self.second.score(queries), queries.candidates)

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """Fused scores for validation queries: of parts that read these, as fitted without each query."""
        first, second = (_new_scores(part, queries, rows, "val") for part in (self.first, self.second))
        return self._fused(first, second, queries.candidates)

    def score_parts(self, queries: QueryBatch, rows: Tensor | None = None) -> list[Tensor]:
        """Fused scores and those of each part, (B, N) each; as if left out where `rows` (B,) are given."""
        parts = [part.score_parts(queries, rows)[0].float() for part in (self.first, self.second)]
        return [self._fused(parts[0], parts[1], queries.candidates), *parts]

    def _fused(self, first: Tensor, second: Tensor, candidates: Tensor | None) -> Tensor:
        first, second = first.float(), second.float()
        if self.config.fusion == "rrf":
            k = self.config.k
            found = [1 / (k + ranks(part, self.order, candidates).double()) for part in (first, second)]
            return (found[0] + found[1]).float()
        return fuse(first, second, self.weight, candidates)


def value_of_weights(model: Hybrid, data: RankingDataModule, judged: bool = False) -> dict[float, float]:
    """MRR of the validation queries at every weight; where `judged`, `quality` of these and the training queries."""
    sides = [data.sides["val"], *([side_tensors("train", data.split.train, data.collection)] if judged else [])]
    sums = dict.fromkeys(WEIGHTS, 0.0)
    for side in sides:
        for positions in Positions(side):
            rows = side.queries[positions]
            queries = query_batch(data.collection, model.tables, rows, side)
            first, second = (_new_scores(part, queries, rows, side.name) for part in (model.first, model.second))
            measure = (lambda found: quality(found, data.ks)) if judged else (lambda found: found["mrr"].double())
            for weight in WEIGHTS:
                scores = fuse(first, second, weight, queries.candidates)
                _, metrics, _ = rank_side(side, positions, scores, model.order, data.collection.positive_grade, data.ks)
                sums[weight] += float(measure(metrics).sum())
    return {weight: total / sum(len(side.queries) for side in sides) for weight, total in sums.items()}


def _new_scores(part: Recommender, queries: QueryBatch, rows: Tensor, side: str) -> Tensor:
    left_out = side == "train" or part.reads_validation
    return (part.score_left_out(queries, rows) if left_out else part.score(queries)).float()


def fuse(first: Tensor, second: Tensor, weight: float | Tensor, candidates: Tensor | None) -> Tensor:
    """Weighted sum of the z-scores of two score matrices, (B, N) each, over the candidates' rows (C,)."""
    return weight * z_scores(first, candidates) + (1 - weight) * z_scores(second, candidates)


def ranks(scores: Tensor, order: Tensor, candidates: Tensor | None) -> Tensor:
    """Rank from 1 of every candidate, rows (C,), (B, N); the others stand after all of them."""
    n = scores.shape[1] if candidates is None else len(candidates)
    best = top_k(scores, n, order, as_mask(candidates, scores.shape[1]))[1]  # (B, n)
    places = torch.arange(1, n + 1, device=scores.device).expand_as(best)
    return torch.full_like(scores, n + 1, dtype=torch.int64).scatter_(1, best, places)
