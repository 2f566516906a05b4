"""Two stages: recall by a model that needs no epochs, then re-ranking of its first videos."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from dcdt.data.datamodule import Positions, RankingDataModule, SideTensors
from dcdt.data.splits import query_groups
from dcdt.data.tables import Tables, pad_lists
from dcdt.evaluation.fusion import SCORE_GAP
from dcdt.evaluation.ranking import judged_ranks, quality, ranking_metrics, tie_order, top_k
from dcdt.models.components import make_component, z_scores
from dcdt.models.config import JointTwoStageConfig, OptimizerConfig, TwoStageConfig
from dcdt.models.evidence import KERNELS, Evidence
from dcdt.models.query_batch import QueryBatch, query_batch
from dcdt.models.rank_head import (
    PENALTIES,
    CandidateLists,
    JointHead,
    concatenate_lists,
    cross_fit,
    evidence_scale,
    fit_weights,
    weighted_sum,
)
from dcdt.models.recommender import Recommender
from dcdt.models.ridge_towers import fitted_sides
from dcdt.samplers.pool import related_videos
from dcdt.utils.transfer import replace_rows, to_device

N_FOLDS = 5  # of the judged queries, to choose the penalty


class TwoStage(Recommender):
    """Re-rank the recall's `depth` best videos by a weighted sum of evidence; the others keep their order below.

    The score of a recalled video is the recall's z-score plus weighted evidence: the z-scores of its components
    (BM25 among them, for a hybrid) and of `lexical`, the whitened cosine of each field, and how often it is a positive
    of similar judged queries (`dcdt.models.evidence`). The weights are fitted by a listwise softmax, which is convex
    (`fit_weights`), on judged queries whose recall scores come from a fit without them, so that none is overrated. The
    weights of the memory cannot be negative: in collections with one judgment a video it would learn to demote the
    positives of other queries.

    `penalty=null` chooses it by five folds of the judged queries; if no penalty helps, the recall's order is
    kept. With `fit_on=judged` that includes the validation queries; their metrics are then those of heads and recall
    that were fitted without them.

    Args:
        config: the recall and what the head reads.
        tables: the frozen vectors of all fields that the components read.
        optimizer: of a head that is trained; None for a head that is fitted.

    Raises:
        UserError: the recall is a trained model.
    """

    trained_by_epochs: ClassVar[bool] = False
    decoupled: ClassVar[bool] = False
    has_network: ClassVar[bool] = False  # `joint`, which adds to the weighted evidence
    order: Tensor
    scale: Tensor
    weights: Tensor
    penalty: Tensor

    def __init__(self, config: TwoStageConfig, tables: Tables, optimizer: OptimizerConfig | None = None) -> None:
        super().__init__(tables, optimizer)
        self.config = config
        self.recall = make_component(config.recall, tables, f"model={config.name}")
        self.lexical = (
            make_component(config.lexical, tables, f"model={config.name}") if config.lexical is not None else None
        )
        self.evidence = Evidence(tables, config.whiten)
        self.reads_validation = config.fit_on == "judged" or self.recall.reads_validation
        scores = [
            "recall",
            *(["recall_part"] if self.recall.n_components > 1 else []),
            *(["lexical"] if self.lexical else []),
        ]
        self.names = [*scores, *self.evidence.names]
        self.register_buffer("order", torch.arange(tables.videos.shape[1]))
        self.register_buffer("scale", torch.ones(len(self.names)))
        self.register_buffer("weights", torch.eye(len(self.names))[0])
        self.register_buffer("penalty", torch.tensor(float("inf")))
        self._group: dict[int, int] = {}
        self._position: dict[int, int] = {}  # query row to position among the fitted ones
        self._left_out_weights = torch.zeros(0, len(self.names))  # (n, E) fitted without each of them

    @property
    def components(self) -> list[Recommender]:
        """Those of the recall and, last, the lexical one."""
        return [*self.recall.components, *([self.lexical] if self.lexical is not None else [])]

    def on_prepare(self, data: RankingDataModule) -> None:
        """Prepare the recall, read the lists of judged queries, choose the penalty and fit the head."""
        for component in filter(None, (self.recall, self.lexical)):
            component.prepare(data)
        self.order, device = data.ties.on(self.tables.device), self.tables.device
        sides = fitted_sides(data, self.config.fit_on)
        rows = torch.cat([side.queries for side in sides]).tolist()
        groups = query_groups(data.collection.queries.texts, rows)
        self._group = {row: i for i, same in enumerate(groups.values()) for row in same}
        self.evidence.prepare(data.collection, sides, list(groups.values()))
        lists = self.judged_lists(data, sides)
        fold = (tie_order(list(groups)) % N_FOLDS)[lists.group]  # by a hash of the text
        scale = evidence_scale(lists)
        self.scale = scale.to(device)
        penalty = self._choose_penalty(lists, fold, scale, data)
        self.penalty.fill_(penalty)
        self.weights = self._fit(lists, scale, penalty).to(device)
        left_out_weights = cross_fit(lists, fold, lambda subset: self._fit(subset, scale, penalty))
        self._left_out_weights, self._position = left_out_weights, {row: i for i, row in enumerate(lists.rows.tolist())}
        self._store_lists(lists, weighted_sum(lists.evidence, left_out_weights / scale))

    def _store_lists(self, lists: CandidateLists, start: Tensor) -> None:
        """Store the lists and their scores (n, K) by weights fitted without each query, for heads that are trained."""

    def _choose_penalty(self, lists: CandidateLists, fold: Tensor, scale: Tensor, data: RankingDataModule) -> float:
        """Choose the penalty with the best quality over queries that the head was not fitted on; ties: the largest."""
        if self.config.penalty is not None or len(set(fold.tolist())) < 2:
            return self.config.penalty or float("inf")
        quality_of = {}
        for penalty in PENALTIES:
            left_out_weights = cross_fit(lists, fold, lambda subset, penalty=penalty: self._fit(subset, scale, penalty))  # type: ignore[misc]
            ranks = lists.reranked(weighted_sum(lists.evidence, left_out_weights / scale))
            metrics = ranking_metrics(ranks, lists.grades, data.collection.positive_grade, data.ks)
            quality_of[penalty] = float(quality(metrics, data.ks).mean())
        return max(reversed(PENALTIES), key=lambda value: quality_of[value])

    def _fit(self, lists: CandidateLists, scale: Tensor, penalty: float) -> Tensor:
        memories = torch.arange(len(self.names)) >= len(self.names) - len(KERNELS)
        return fit_weights(lists, scale, memories, penalty)

    def judged_lists(self, data: RankingDataModule, sides: list[SideTensors]) -> CandidateLists:
        """Recall videos for the queries of the sides, each by a fit without it; on the CPU."""
        available = [side.n_candidates - int((side.removed >= 0).sum(1).max()) for side in sides]
        depth, lists = min(self.config.depth, *available), []
        for side in sides:
            for positions in Positions(side):
                rows, removed = side.queries[positions], side.removed[positions]
                queries = query_batch(data.collection, self.tables, rows, side)
                z, top, evidence = self.read(queries, rows, removed, depth)
                judged, grades = side.judged[positions], side.grades[positions]
                ranks = judged_ranks(remove_videos(z[0], removed), judged, self.order, side.candidate_mask(z[0].device))
                top, evidence = top.cpu(), evidence.cpu()
                positives = judged.masked_fill(grades < data.collection.positive_grade, -1)
                label = (top.unsqueeze(2) == positives.unsqueeze(1)).any(2).float()  # (B, K)
                excluded = pad_lists([sorted(videos) for videos in related_videos(data.collection, rows.tolist())], -1)
                weight = ((top.unsqueeze(2) != excluded.unsqueeze(1)).all(2) | (label > 0)).float()
                group = torch.tensor([self._group[row] for row in rows.tolist()])
                lists.append(CandidateLists(rows, group, top, evidence, label, weight, judged, grades, ranks))
        return concatenate_lists(lists)

    def read(
        self, queries: QueryBatch, rows: Tensor | None = None, removed: Tensor | None = None, depth: int | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Compute the inputs of the head for B queries.

        Args:
            queries: B queries.
            rows: (B,) of the queries, to score them by fits without them.
            removed: (B, X) videos that must not be recalled, padded with -1, on the CPU like the rows.
            depth: how many to recall; None: as configured, at most all candidates.

        Returns:
            Z-scores (B, N) each, the recall's first; the K recalled videos (B, K), best first; evidence (B, K, E).
        """
        scores = self.recall.component_scores(queries, rows)
        scores = scores[: max(1, len(scores) - 1)]  # the last component follows from the sum and the others
        if self.lexical is not None:
            scores.append(self.lexical.score(queries))
        z = [z_scores(matrix.float(), queries.candidates) for matrix in scores]
        if depth is None:
            n_candidates = z[0].shape[1] if queries.candidates is None else len(queries.candidates)
            depth = min(self.config.depth, n_candidates)
        top = top_k(remove_videos(z[0], removed), depth, self.order, queries.candidate_mask)[1]
        groups = [self._group.get(row, -1) for row in rows.tolist()] if rows is not None else [-1] * len(top)
        own_group = to_device(torch.tensor(groups), top.device)
        return z, top, self.evidence(queries.vectors, z, top, own_group)

    def score(self, queries: QueryBatch) -> Tensor:
        """Score B queries, (B, N): the recall's z-scores, corrected for the recalled videos."""
        z, top, evidence = self.read(queries)
        return rerank_scores(z[0], top, self.head(queries, top, evidence, self.weights), queries.candidate_mask)

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """Score by recall, memory and weights fitted without each query, right after `prepare` only: (B, N)."""
        z, top, evidence = self.read(queries, rows)
        fitted = {i: self._position[row] for i, row in enumerate(rows.tolist()) if row in self._position}
        left_out_weights = to_device(self._left_out_weights[list(fitted.values())], top.device)
        weights = replace_rows(self.weights.expand(len(rows), -1), list(fitted), left_out_weights)  # (B, E)
        return rerank_scores(z[0], top, self.head(queries, top, evidence, weights), queries.candidate_mask)

    def head(self, queries: QueryBatch, top: Tensor, evidence: Tensor, weights: Tensor) -> Tensor:
        """Score recalled videos (B, K) with evidence (B, K, E) by weights (E,) or (B, E): (B, K)."""
        return weighted_sum(evidence, weights / self.scale)

    def statistics(self) -> dict[str, float]:
        """Return the penalty (-1: the recall's order is kept), the weights, and the figures of the recall."""
        penalty = float(self.penalty)
        statistics = {"two_stage/penalty": round(penalty, 6) if penalty != float("inf") else -1.0}
        values = zip(self.names, self.weights.tolist(), strict=True)
        weights = {f"two_stage/{name}": round(value, 6) for name, value in values}
        return statistics | weights | self.recall.statistics()


class JointTwoStage(TwoStage):
    """Two stages whose head is the paper's joint network `[q; t; d]` on top of the weighted evidence.

    The network adds to the weighted sum and starts at 0: untrained, the order is that of `two_stage`. It is trained on
    the recalled videos of the training queries alone, each with the scores of fits without it.

    Args:
        config: that of `two_stage`, and the network's.
        tables: the frozen vectors.
        loss: takes similarities (the scores), or distances, which then are `1 - sigmoid(score)` (eq. 7).
        optimizer: learning rate, weight decay and schedule.
    """

    trained_by_epochs: ClassVar[bool] = True
    has_network: ClassVar[bool] = True
    starts_useful: ClassVar[bool] = True

    def __init__(
        self, config: JointTwoStageConfig, tables: Tables, loss: nn.Module, optimizer: OptimizerConfig
    ) -> None:
        super().__init__(config, tables, optimizer)
        self.loss = loss
        self.joint = JointHead(tables.width, len(tables.fields), config.rank, config.width, config.dropout)
        self._last: tuple[Tensor, tuple[list[Tensor], Tensor, Tensor]] | None = None

    def _store_lists(self, lists: CandidateLists, start: Tensor) -> None:
        self._last = None
        self._lists, self._start = lists, start  # (n, K)

    def read(
        self, queries: QueryBatch, rows: Tensor | None = None, removed: Tensor | None = None, depth: int | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Compute the inputs of the head; those of the last judged chunk are cached, as validation repeats it."""
        if rows is None or removed is not None:
            return super().read(queries, rows, removed, depth)
        if self._last is None or not torch.equal(self._last[0], rows):
            self._last = (rows, super().read(queries, rows))
        return self._last[1]

    def head(self, queries: QueryBatch, top: Tensor, evidence: Tensor, weights: Tensor) -> Tensor:
        """Score recalled videos by weighted evidence plus the network's correction, (B, K)."""
        videos = self.tables.videos  # (F, N, D)
        if top.device.type == "cpu":
            distinct, position = torch.unique(top, return_inverse=True)
            videos = videos[:, distinct]
        elif top.numel() < videos.shape[1]:  # counting distinct ones would wait for the device
            videos, position = videos[:, top.flatten()], torch.arange(top.numel(), device=top.device).view_as(top)
        else:
            position = top
        correction: Tensor = self.joint(queries.vectors, videos, position)
        return super().head(queries, top, evidence, weights) + correction

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Compute the mean loss over the lists of the batch's queries, without those that have no recalled positive."""
        positions = torch.tensor([self._position[row] for row in batch["query_rows"].tolist()])
        positions = positions[self._lists.label[positions].any(1)]
        lists, device = self._lists.select(positions), self.tables.device
        distinct, video_position = (
            to_device(tensor, device) for tensor in torch.unique(lists.top, return_inverse=True)
        )
        n_positives = int(lists.label.sum(1).max()) if len(positions) else 1
        lists, start = lists.to(device), to_device(self._start[positions], device)
        scores = start + self.joint(self.tables.queries[lists.rows], self.tables.videos[:, distinct], video_position)
        measured = 1 - scores.sigmoid() if self.loss.measure == "distance" else scores
        # without a list the sum is 0, and so is its gradient
        loss: Tensor = (
            self.loss(measured, lists.label, lists.weight, start, n_positives).mean()
            if len(positions)
            else scores.sum()
        )
        self.record_loss(loss.detach(), max(len(positions), 1))
        return loss


def rerank_scores(z: Tensor, top: Tensor, scores: Tensor, mask: Tensor | None) -> Tensor:
    """Put scores (B, K) at the videos `top` (B, K) of z-scores (B, N), all others in their order below them.

    If another candidate, of the mask (N,), would come between them, all others are lowered together.
    """
    inside = torch.zeros_like(z, dtype=torch.bool).scatter_(1, top, True)
    outside = ~inside if mask is None else ~inside & mask
    best = z.masked_fill(~outside, float("-inf")).amax(1, keepdim=True)  # (B, 1) of the others
    gap = best - scores.amin(1, keepdim=True)
    lowered = torch.where(gap > 0, z - gap - SCORE_GAP, z)
    return lowered.scatter(1, top, scores)


def remove_videos(scores: Tensor, removed: Tensor | None) -> Tensor:
    """Set scores (B, N) to -inf at the videos `removed` (B, X), padded with -1."""
    if removed is None:
        return scores
    is_removed = torch.zeros(len(scores), scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    columns = to_device(removed, scores.device) % is_removed.shape[1]  # padding points to the added column
    return scores.masked_fill(is_removed.scatter_(1, columns, True)[:, :-1], float("-inf"))
