"""Fusion of two models' scores: BM25 and dense vectors by default."""

from typing import ClassVar

import torch
from torch import Tensor

from dcdt.data.datamodule import Positions, RankingDataModule, side_tensors
from dcdt.data.tables import Tables
from dcdt.evaluation.fusion import convex_sum, reciprocal_rank_sum
from dcdt.evaluation.ranking import quality, top_k
from dcdt.models.components import make_component, z_scores
from dcdt.models.query_batch import QueryBatch, query_batch
from dcdt.models.ranking import rank_side
from dcdt.models.recommender import Recommender
from dcdt.models.sums import Sums, query_weights

from .config import HybridConfig, HybridEncoderConfig

WEIGHTS = sorted((step / 10 for step in range(11)), key=lambda weight: abs(weight - 0.5))  # ties go to the most even


class Hybrid(Recommender):
    """Fuse the scores of two models, neither of which is trained; either may be a hybrid itself.

    `fusion=convex`: `w z(first) + (1 - w) z(second)`, z being z-scores over the query's candidate videos, w of 0, 0.1
    to 1 chosen by the MRR of the validation queries (`tune_on=judged`: by MRR and nDCG of these and the training
    queries, scored by fits without each of them); ties go to the most even. `weight` gives w instead.
    `fusion=rrf`: reciprocal-rank fusion, `1 / (k + rank)` summed (Cormack, Clarke and Büttcher 2009), ranks among the
    candidates with ties broken as everywhere.

    Args:
        config: how to fuse, and the configuration of each component.
        tables: the frozen vectors of all fields that the components read.

    Raises:
        UserError: a component is a trained model.
    """

    trained_by_epochs: ClassVar[bool] = False
    decoupled: ClassVar[bool] = False
    n_components: ClassVar[int] = 3
    weight: Tensor
    order: Tensor
    config: HybridConfig | HybridEncoderConfig

    def __init__(self, config: HybridConfig, tables: Tables) -> None:
        super().__init__(tables)
        self.config = config
        self.first, self.second = (
            make_component(component, tables, "model=hybrid") for component in (config.first, config.second)
        )
        self.reads_validation = self.first.reads_validation or self.second.reads_validation
        self.needs_question = self.first.needs_question or self.second.needs_question
        parts = self.first, self.second
        self.fits_from_sums = sum(bool(part.sum_shapes()) for part in parts) == 1 and all(
            part.fits_from_sums and len(part.components) == 1 for part in parts
        )
        self.register_buffer("weight", torch.tensor(0.5))
        self.register_buffer("order", torch.arange(tables.videos.shape[1]))

    @property
    def components(self) -> list[Recommender]:
        """Both models."""
        return [self.first, self.second]

    @property
    def fitted_part(self) -> Recommender:
        """The component that is fitted from sums."""
        return self.first if self.first.sum_shapes() else self.second

    @property
    def _chooses_weight(self) -> bool:
        return self.config.fusion == "convex" and self.config.weight is None

    def on_prepare(self, data: RankingDataModule) -> None:
        """Prepare both components, then choose the weight."""
        self.prepare_components(data)
        if self.config.weight is not None:
            self.weight.fill_(self.config.weight)
        elif self.config.fusion == "convex":
            self.choose_weight(data, self.config.tune_on == "judged")

    def loss_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return those of that component, and the quality by its P candidate values and weight, (P, 11)."""
        shapes = self.fitted_part.loss_shapes()
        n_candidates = next((shape[0] for shape in shapes.values()), 1)
        return {**shapes, "weights": (n_candidates, len(WEIGHTS))} if self._chooses_weight else shapes

    def sum_losses(self, data: RankingDataModule, sums: dict[str, Tensor], clip: int | None = None) -> Sums:
        """Sum the quality of each candidate value of the fitted component and, with each of them, of each weight."""
        self.prepare_components(data, fit=False)
        sides = [side_tensors("train", data.split.train, data.collection), data.sides["val"]]
        weight_of_query = query_weights(data.collection, sides, clip)
        rows: dict[str, list[object]] = {"quality": [], "weights": []}
        for value in self.fitted_part.candidates(data, sums, clip):
            rows["quality"].append(value)
            if self._chooses_weight:
                by_weight, _ = sum_weights(self, data, self.config.tune_on == "judged", weight_of_query)
                rows["weights"].append(list(by_weight.values()))
        losses = {name: torch.tensor(rows[name], dtype=torch.float64) for name in self.loss_shapes()}
        n_values = sum(values.numel() for values in losses.values())
        return Sums(losses, sum(len(side.queries) for side in sides), (clip or 1) * n_values**0.5)

    def fit_sums(
        self, data: RankingDataModule, sums: dict[str, Tensor], losses: dict[str, Tensor], included: bool
    ) -> int:
        """Fit the component that is fitted, and take the best weight for its value."""
        self.prepare_components(data, fit=False)
        best = self.fitted_part.fit_sums(data, sums, losses, included)
        if self._chooses_weight:
            self.weight.fill_(WEIGHTS[int(losses["weights"][best].argmax())])
        elif self.config.weight is not None:
            self.weight.fill_(self.config.weight)
        self._is_prepared = True
        return best

    def prepare_components(self, data: RankingDataModule, fit: bool = True) -> None:
        """Prepare both components, or without `fit` the one that fits nothing; take the order of equal scores."""
        for component in (self.first, self.second):
            if fit or component is not self.fitted_part:
                component.prepare(data)
        self.order = data.ties.on(self.tables.device)

    def choose_weight(self, data: RankingDataModule, judged: bool = False) -> None:
        """Take the best weight for the validation queries; if `judged`, for these and the training queries."""
        value_of = validate_weights(self, data, judged)
        self.weight.fill_(max(WEIGHTS, key=lambda weight: value_of[weight]))

    def statistics(self) -> dict[str, float]:
        """Return the chosen weight of the first component, and the figures of both."""
        statistics = {"hybrid/weight": round(float(self.weight), 1)} if self.config.fusion == "convex" else {}
        for name, component in (("first", self.first), ("second", self.second)):
            for key, value in component.statistics().items():
                is_own = key in statistics and not key.endswith("/cold_queries")  # as of a hybrid in a hybrid
                statistics[f"{name}/{key}" if is_own else key] = value
        return statistics

    def score(self, queries: QueryBatch) -> Tensor:
        """Score B queries, (B, N); only the scores of candidates are meaningful."""
        return self._fuse(self.first.score(queries), self.second.score(queries), queries)

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """Score validation queries, by fits without each of them where a component was fitted on them."""
        first, second = (_scores_for_side(component, queries, rows, "val") for component in (self.first, self.second))
        return self._fuse(first, second, queries)

    def component_scores(self, queries: QueryBatch, rows: Tensor | None = None) -> list[Tensor]:
        """Compute the fused scores and those of each component, (B, N) each; with `rows` (B,) by fits without them."""
        scores = [component.component_scores(queries, rows)[0].float() for component in (self.first, self.second)]
        return [self._fuse(scores[0], scores[1], queries), *scores]

    def passage_scores(self, queries: QueryBatch, video: int) -> Tensor | None:
        """Sum the weighted z-scores, over the passages of one video, of the components that score passages: (B, p)."""
        weights = (float(self.weight), 1 - float(self.weight)) if self.config.fusion == "convex" else (0.5, 0.5)
        total: Tensor | None = None
        for component, weight in zip((self.first, self.second), weights, strict=True):
            scores = component.passage_scores(queries, video)
            if scores is not None:
                z = weight * z_scores(scores, None).to(self.weight.device)
                total = z if total is None else total + z
        return total

    def _fuse(self, first: Tensor, second: Tensor, queries: QueryBatch) -> Tensor:
        first, second = first.float(), second.float()
        if self.config.fusion == "rrf":
            n = first.shape[1] if queries.candidates is None else len(queries.candidates)
            ranks = [
                candidate_ranks(scores, self.order, n, queries.candidate_mask).double() for scores in (first, second)
            ]
            fused: Tensor = reciprocal_rank_sum(ranks[0], ranks[1], self.config.k).float()
            return fused
        return fuse(first, second, self.weight, queries.candidates)


def validate_weights(model: Hybrid, data: RankingDataModule, judged: bool = False) -> dict[float, float]:
    """Compute the validation MRR at every weight; if `judged`, the `quality` of validation and training queries."""
    sums, n = sum_weights(model, data, judged, torch.ones(len(data.collection.queries), dtype=torch.float64))
    return {weight: total / n for weight, total in sums.items()}


def sum_weights(
    model: Hybrid, data: RankingDataModule, judged: bool, weight_of_query: Tensor
) -> tuple[dict[float, float], int]:
    """Sum what `validate_weights` takes the mean of, weighted by query row (Q,), and count the queries."""
    sides = [data.sides["val"], *([side_tensors("train", data.split.train, data.collection)] if judged else [])]
    sums = dict.fromkeys(WEIGHTS, 0.0)
    for side in sides:
        for positions in Positions(side):
            rows = side.queries[positions]
            queries = query_batch(data.collection, model.tables, rows, side)
            first, second = (
                _scores_for_side(component, queries, rows, side.name) for component in (model.first, model.second)
            )
            value_of = (lambda values: quality(values, data.ks)) if judged else (lambda values: values["mrr"].double())
            for weight in WEIGHTS:
                scores = fuse(first, second, weight, queries.candidates)
                _, metrics, _ = rank_side(side, positions, scores, model.order, data.collection.positive_grade, data.ks)
                sums[weight] += float((value_of(metrics) * weight_of_query[rows]).sum())
    return sums, sum(len(side.queries) for side in sides)


def _scores_for_side(component: Recommender, queries: QueryBatch, rows: Tensor, side: str) -> Tensor:
    left_out = side == "train" or component.reads_validation
    return (component.component_scores(queries, rows)[0] if left_out else component.score(queries)).float()


def fuse(first: Tensor, second: Tensor, weight: float | Tensor, candidates: Tensor | None) -> Tensor:
    """Sum the weighted z-scores, over the candidates' rows (C,), of two score matrices (B, N)."""
    fused: Tensor = convex_sum(z_scores(first, candidates), z_scores(second, candidates), weight)
    return fused


def candidate_ranks(scores: Tensor, order: Tensor, n: int, mask: Tensor | None) -> Tensor:
    """Rank the n candidates, of the mask (N,), from 1; all other videos have rank n + 1: (B, N)."""
    best = top_k(scores, n, order, mask)[1]  # (B, n)
    positions = torch.arange(1, n + 1, device=scores.device).expand_as(best)
    return torch.full_like(scores, n + 1, dtype=torch.int64).scatter_(1, best, positions)
