"""Recall by a model that needs no epochs, then a rank head over what it puts first."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from dcdt.data.datamodule import Positions, RankingDataModule, SideTensors
from dcdt.data.splits import query_groups
from dcdt.data.tables import Tables, padded
from dcdt.evaluation.ranking import judged_ranks, quality, ranking_metrics, tie_order, top_k
from dcdt.models.config import JointTwoStageConfig, OptimizerConfig, TwoStageConfig
from dcdt.models.evidence import KERNELS, Evidence
from dcdt.models.parts import as_mask, make_part, z_scores
from dcdt.models.rank_head import PENALTIES, JointHead, Lists, combined, cross_fitted, fit_weights, joined, spread
from dcdt.models.recommender import QueryBatch, Recommender, query_batch, replace_rows
from dcdt.models.ridge_towers import fitted_sides
from dcdt.samplers.pool import no_negatives
from dcdt.utils.transfer import to_device

N_FOLDS = 5  # of the judged queries, in the choice of the penalty
BELOW = 1e-3  # in z-scores: how far the best video beyond the depth stays beneath the worst within it


class TwoStage(Recommender):
    """The recall's `depth` best videos, re-ranked by a weighted sum of evidence; the others keep their order beneath.

    The score of a recalled video is the recall's z-score plus weighted evidence: the z-scores of the recall's parts
    (BM25 among them, for a hybrid) and of `lexical`, the whitened cosine of each field, and how often similar judged
    queries were answered by it (`dcdt.models.evidence`). The weights are fitted by a listwise softmax, which is convex
    (`fit_weights`), on judged queries whose recall scores come from a fit without them, so that none is flattered. A
    memory may only speak for a video, since in collections that judge each video once it would learn to banish what
    has been an answer before.

    `penalty=null` chooses it by five folds of the judged queries; where no penalty helps there, the recall's order
    stays. With `fit_on=judged` that includes the validation queries; their metrics are then those of heads and recall
    that were fitted without them.

    Args:
        config: the recall and what the head reads.
        tables: the frozen vectors of all fields that the parts read.
        loss: not used.
        optimizer: not used.

    Raises:
        UserError: the recall is a model that is trained.
    """

    fittable: ClassVar[bool] = False
    decoupled: ClassVar[bool] = False
    order: Tensor
    scale: Tensor
    weights: Tensor
    penalty: Tensor

    def __init__(
        self,
        config: TwoStageConfig,
        tables: Tables,
        loss: nn.Module | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(tables, optimizer)
        self.config = config
        self.recall = make_part(config.recall, tables, f"model={config.name}")
        self.lexical = make_part(config.lexical, tables, f"model={config.name}") if config.lexical is not None else None
        self.evidence = Evidence(tables, config.whiten)
        self.reads_validation = config.fit_on == "judged" or self.recall.reads_validation
        scores = [
            "recall",
            *(["recall_part"] if self.recall.n_parts > 1 else []),
            *(["lexical"] if self.lexical else []),
        ]
        self.names = [*scores, *self.evidence.names]
        self.register_buffer("order", torch.arange(tables.videos.shape[1]))
        self.register_buffer("scale", torch.ones(len(self.names)))
        self.register_buffer("weights", torch.eye(len(self.names))[0])
        self.register_buffer("penalty", torch.tensor(float("inf")))
        self._group: dict[int, int] = {}
        self._at: dict[int, int] = {}  # query row to its place among the fitted ones
        self._own_weights = torch.zeros(0, len(self.names))  # (n, E) fitted without each of them

    def prepare(self, data: RankingDataModule) -> None:
        """Prepare the recall, read the lists of judged queries, choose the penalty and fit the head."""
        for part in filter(None, (self.recall, self.lexical)):
            part.prepare(data)
        self.order, device = data.ties.on(self.tables.device), self.tables.device
        sides = fitted_sides(data, self.config.fit_on)
        rows = torch.cat([side.queries for side in sides]).tolist()
        groups = query_groups(data.collection.queries.texts, rows)
        self._group = {row: at for at, same in enumerate(groups.values()) for row in same}
        self.evidence.prepare(data.collection, sides, list(groups.values()))
        lists = self.judged_lists(data, sides)
        fold = (tie_order(list(groups)) % N_FOLDS)[lists.group]  # by a hash of the text
        scale = spread(lists)
        self.scale = scale.to(device)
        penalty = self._choose(lists, fold, scale, data)
        self.penalty.fill_(penalty)
        self.weights = self._fit(lists, scale, penalty).to(device)
        own = cross_fitted(lists, fold, lambda part: self._fit(part, scale, penalty))
        self._own_weights, self._at = own, {row: at for at, row in enumerate(lists.rows.tolist())}
        self._keep(lists, combined(lists.evidence, own / scale))

    def _keep(self, lists: Lists, start: Tensor) -> None:
        """For heads that train further: the lists, and their scores (n, K) by weights fitted without each query."""

    def _choose(self, lists: Lists, fold: Tensor, scale: Tensor, data: RankingDataModule) -> float:
        """The penalty of the best quality over queries that the head was not fitted on; of equals the largest."""
        if self.config.penalty is not None or len(set(fold.tolist())) < 2:
            return self.config.penalty or float("inf")
        found = {}
        for penalty in PENALTIES:
            own = cross_fitted(lists, fold, lambda part, penalty=penalty: self._fit(part, scale, penalty))  # type: ignore[misc]
            ranks = lists.reranked(combined(lists.evidence, own / scale))
            metrics = ranking_metrics(ranks, lists.grades, data.collection.positive_grade, data.ks)
            found[penalty] = float(quality(metrics, data.ks).mean())
        return max(reversed(PENALTIES), key=lambda value: found[value])

    def _fit(self, lists: Lists, scale: Tensor, penalty: float) -> Tensor:
        memories = torch.arange(len(self.names)) >= len(self.names) - len(KERNELS)
        return fit_weights(lists, scale, memories, penalty)

    def judged_lists(self, data: RankingDataModule, sides: list[SideTensors]) -> Lists:
        """What the recall puts first for the queries of the sides, each as if no fit had seen it; on the CPU."""
        free = [side.n_candidates - int((side.removed >= 0).sum(1).max()) for side in sides]
        depth, parts = min(self.config.depth, *free), []
        for side in sides:
            for positions in Positions(side):
                rows, removed = side.queries[positions], side.removed[positions]
                queries = query_batch(data.collection, self.tables, rows, side)
                z, top, evidence = self.read(queries, rows, removed, depth)
                judged, grades = side.judged[positions], side.grades[positions]
                ranks = judged_ranks(without(z[0], removed), judged, self.order, side.mask_on(z[0].device))
                top, evidence = top.cpu(), evidence.cpu()
                positives = judged.masked_fill(grades < data.collection.positive_grade, -1)
                label = (top.unsqueeze(2) == positives.unsqueeze(1)).any(2).float()  # (B, K)
                spared = padded([sorted(videos) for videos in no_negatives(data.collection, rows.tolist())], -1)
                weight = ((top.unsqueeze(2) != spared.unsqueeze(1)).all(2) | (label > 0)).float()
                group = torch.tensor([self._group[row] for row in rows.tolist()])
                parts.append(Lists(rows, group, top, evidence, label, weight, judged, grades, ranks))
        return joined(parts)

    def read(
        self, queries: QueryBatch, rows: Tensor | None = None, removed: Tensor | None = None, depth: int | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """What the head reads of B queries.

        Args:
            queries: B queries.
            rows: (B,) where they are to be scored as if no fit had seen them.
            removed: (B, X) videos that are not to be recalled, padded with -1, on the CPU like the rows.
            depth: how many to recall; as configured, or all candidates, unless given.

        Returns:
            Z-scores (B, N) each, the recall's first; the K recalled videos (B, K), best first; evidence (B, K, E).
        """
        found = self.recall.score_parts(queries, rows)
        found = found[: max(1, len(found) - 1)]  # the last part of a weighted sum says nothing beside the others
        if self.lexical is not None:
            found.append(self.lexical.score(queries))
        z = [z_scores(scores.float(), queries.candidates) for scores in found]
        n_videos = z[0].shape[1]
        if depth is None:
            depth = min(self.config.depth, n_videos if queries.candidates is None else len(queries.candidates))
        top = top_k(without(z[0], removed), depth, self.order, as_mask(queries.candidates, n_videos))[1]
        groups = [self._group.get(row, -1) for row in rows.tolist()] if rows is not None else [-1] * len(top)
        own = to_device(torch.tensor(groups), top.device)
        return z, top, self.evidence(queries.vectors, z, top, own)

    def score(self, queries: QueryBatch) -> Tensor:
        """Scores (B, N): the recall's z-scores, corrected where it put a video among the first."""
        z, top, evidence = self.read(queries)
        return reranked(z[0], top, self.head(queries, top, evidence, self.weights), queries.candidates)

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """Scores (B, N) by recall, memory and weights fitted without each query; right after `prepare` only."""
        z, top, evidence = self.read(queries, rows)
        places = {at: self._at[row] for at, row in enumerate(rows.tolist()) if row in self._at}
        own = to_device(self._own_weights[list(places.values())], top.device)
        weights = replace_rows(self.weights.expand(len(rows), -1), list(places), own)  # (B, E)
        return reranked(z[0], top, self.head(queries, top, evidence, weights), queries.candidates)

    def head(self, queries: QueryBatch, top: Tensor, evidence: Tensor, weights: Tensor) -> Tensor:
        """Scores (B, K) of the recalled videos (B, K) with evidence (B, K, E), by weights (E,) or (B, E)."""
        return combined(evidence, weights / self.scale)

    def facts(self) -> dict[str, float]:
        """The penalty (-1: the recall's order stays), the weights, and what the recall found out."""
        penalty = float(self.penalty)
        found = {"two_stage/penalty": round(penalty, 6) if penalty != float("inf") else -1.0}
        values = zip(self.names, self.weights.tolist(), strict=True)
        weights = {f"two_stage/{name}": round(value, 6) for name, value in values}
        return found | weights | self.recall.facts()


class JointTwoStage(TwoStage):
    """Two stages whose head is the paper's joint network `[q; t; d]` on top of the weighted evidence.

    The network adds to the weighted sum, and starts at 0: untrained, the order is that of `two_stage`. It is trained on
    the recalled videos of the training queries alone, each with the scores of fits that left it out.

    Args:
        config: that of `two_stage`, and the network's.
        tables: the frozen vectors.
        loss: takes similarities (the scores), or distances, which then are `1 - sigmoid(score)` (eq. 7).
        optimizer: learning rate, weight decay and schedule.
    """

    fittable: ClassVar[bool] = True
    starts_useful: ClassVar[bool] = True

    def __init__(
        self, config: JointTwoStageConfig, tables: Tables, loss: nn.Module, optimizer: OptimizerConfig
    ) -> None:
        super().__init__(config, tables, loss, optimizer)
        self.loss = loss
        self.joint = JointHead(tables.width, len(tables.fields), config.rank, config.width, config.dropout)
        self._last: tuple[Tensor, tuple[list[Tensor], Tensor, Tensor]] | None = None

    def _keep(self, lists: Lists, start: Tensor) -> None:
        self._last = None
        self._lists, self._start = lists, start  # (n, K)

    def read(
        self, queries: QueryBatch, rows: Tensor | None = None, removed: Tensor | None = None, depth: int | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """As for any two stages; the last judged chunk is kept, since validation asks for it after every epoch."""
        if rows is None or removed is not None:
            return super().read(queries, rows, removed, depth)
        if self._last is None or not torch.equal(self._last[0], rows):
            self._last = (rows, super().read(queries, rows))
        return self._last[1]

    def head(self, queries: QueryBatch, top: Tensor, evidence: Tensor, weights: Tensor) -> Tensor:
        """Weighted evidence plus what the network says of query and videos, (B, K)."""
        videos = self.tables.videos  # (F, N, D)
        if top.device.type == "cpu":
            distinct, place = torch.unique(top, return_inverse=True)
            videos = videos[:, distinct]
        elif top.numel() < videos.shape[1]:  # how many are distinct would have to be waited for
            videos, place = videos[:, top.flatten()], torch.arange(top.numel(), device=top.device).view_as(top)
        else:
            place = top
        correction: Tensor = self.joint(queries.vectors, videos, place)
        return super().head(queries, top, evidence, weights) + correction

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Mean loss over the lists of the batch's queries; those of which nothing was recalled count nothing."""
        at = torch.tensor([self._at[row] for row in batch["query_rows"].tolist()])
        at = at[self._lists.label[at].any(1)]
        lists, device = self._lists.part(at), self.tables.device
        distinct, place = (to_device(part, device) for part in torch.unique(lists.top, return_inverse=True))
        n_positives = int(lists.label.sum(1).max()) if len(at) else 1
        lists, start = lists.to(device), to_device(self._start[at], device)
        scores = start + self.joint(self.tables.queries[lists.rows], self.tables.videos[:, distinct], place)
        measured = 1 - scores.sigmoid() if self.loss.measure == "distance" else scores
        # without a single list the sum is 0, and so is its gradient
        loss: Tensor = (
            self.loss(measured, lists.label, lists.weight, start, n_positives).mean() if len(at) else scores.sum()
        )
        self.note_loss(loss.detach(), max(len(at), 1))
        return loss


def reranked(z: Tensor, top: Tensor, scores: Tensor, candidates: Tensor | None) -> Tensor:
    """The scores (B, K) in the place of the videos `top` (B, K), all others (B, N) in their order beneath them.

    Where some other video would come among them, the others are lowered together.
    """
    inside = torch.zeros_like(z, dtype=torch.bool).scatter_(1, top, True)
    mask = as_mask(candidates, z.shape[1])
    outside = ~inside if mask is None else ~inside & mask
    best = z.masked_fill(~outside, float("-inf")).amax(1, keepdim=True)  # (B, 1) of the others
    gap = best - scores.amin(1, keepdim=True)
    lowered = torch.where(gap > 0, z - gap - BELOW, z)
    return lowered.scatter(1, top, scores)


def without(scores: Tensor, removed: Tensor | None) -> Tensor:
    """Scores (B, N) with -inf at the videos `removed` (B, X), padded with -1."""
    if removed is None:
        return scores
    hidden = torch.zeros(len(scores), scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    places = to_device(removed, scores.device) % hidden.shape[1]  # padding points to the added column
    return scores.masked_fill(hidden.scatter_(1, places, True)[:, :-1], float("-inf"))
