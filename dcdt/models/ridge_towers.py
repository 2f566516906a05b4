"""Linear towers that start from the identity and are fitted in closed form: DCDT for few judgments."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor, nn

from dcdt.data.datamodule import Positions, RankingDataModule, SideTensors, side_tensors
from dcdt.data.splits import query_groups
from dcdt.data.tables import Tables
from dcdt.data.types import Collection
from dcdt.evaluation.ranking import quality
from dcdt.models.config import RidgeConfig
from dcdt.models.passages import make_pooling
from dcdt.models.query_batch import QueryBatch
from dcdt.models.ranking import rank_side
from dcdt.models.recommender import Recommender
from dcdt.models.whitening import catalogue_whitening
from dcdt.utils.transfer import replace_rows, to_device

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, float("inf"))  # inf: the identity, nothing is learned


class RidgeTowers(Recommender):
    """Query, title and description towers that are linear maps, the fields summed, cosine interaction.

    The field towers are the whitening of the catalogue, and each video is smoothed with the mean of its `neighbours`
    nearest ones (by `neighbour_weight`), which helps short descriptions. The query tower is `x + M x` of the
    whitened query x, where M minimises `|x + M x - y|^2` summed over the training queries `+ penalty |M|^2`, and y is
    the direction of the mean vector of a query's positives: ridge regression towards the identity, one SVD, no epochs,
    no seed.

    `penalty=null` chooses it among PENALTIES by the quality of the fitted queries, each ranked by towers fitted without
    it (the closed form of leave-one-out: Allen 1974, PRESS). Queries with the same text are one, so that none is judged
    by its duplicate. Since nothing is left to choose on validation, `fit_on=judged` fits its queries too; their metrics
    and pair scores are then those of towers fitted without each.

    Args:
        config: fields, whitening, neighbours and penalty.
        tables: the frozen vectors.
    """

    trained_by_epochs: ClassVar[bool] = False
    adds_passages: ClassVar[bool] = True
    whitening: Tensor
    query_map: Tensor
    penalty: Tensor
    _left_out: Tensor

    def __init__(self, config: RidgeConfig, tables: Tables) -> None:
        super().__init__(tables)
        self.config = config
        self.pooling = make_pooling(config.passages, tables)
        self.neighbours, self.neighbour_weight = config.neighbours, config.neighbour_weight
        self.reads_validation = config.fit_on == "judged"
        self.register_buffer("whitening", torch.eye(tables.width))
        self.register_buffer("query_map", torch.eye(tables.width))
        self.register_buffer("penalty", torch.tensor(float("inf")))
        self.register_buffer("_left_out", None, persistent=False)  # (n, D) queries mapped by fits without them

    def on_prepare(self, data: RankingDataModule) -> None:
        """Whiten, choose the penalty by leave-one-out, fit."""
        sides = fitted_sides(data, self.config.fit_on)
        if self.config.whiten == "soft":
            candidates = torch.stack([side.candidates for side in sides]).any(0)
            self.whitening = catalogue_whitening(self.tables.videos, candidates)
        self._vectors = None
        videos = self.video_vectors()
        best_passages = None if self.pooling is None else self._best_passages
        groups, targets, weights = fitting_targets(data.collection, sides, videos, best_passages)
        device = self.tables.device
        first = to_device(torch.tensor([rows[0] for rows in groups]), device)
        inputs = self.tables.queries[first] @ self.whitening  # (n, D)
        root = weights.sqrt().unsqueeze(1)  # (n, 1), by which weighted least squares multiply both sides
        fit = ridge(nn.functional.normalize(inputs, dim=-1).cpu() * root, targets * root)
        self._group = {row: i for i, rows in enumerate(groups) for row in rows}
        penalty = self.config.penalty
        if penalty is None:
            quality_of = {
                value: self._left_out_quality(fit.left_out(value).to(device), sides, data) for value in PENALTIES
            }
            penalty = max(reversed(PENALTIES), key=lambda value: quality_of[value])  # of equals the largest
        self.penalty.fill_(penalty)
        self.query_map = self.whitening + self.whitening @ fit.matrix(penalty).to(device)
        self._left_out = nn.functional.normalize(fit.left_out(penalty).to(device), dim=-1)

    def _left_out_quality(self, query_vectors: Tensor, sides: list[SideTensors], data: RankingDataModule) -> float:
        """Compute the quality over the queries of the sides, mapped by the fits without their group, groups (n, D)."""
        self._left_out = nn.functional.normalize(query_vectors, dim=-1)
        order, values, weighted = data.ties.on(self.tables.device), list[Tensor](), data.collection.weights
        for side in sides:
            for positions in Positions(side):
                scores = self._scores_left_out(side.queries[positions])
                _, metrics, _ = rank_side(side, positions, scores, order, data.collection.positive_grade, data.ks)
                values.append(quality(metrics, data.ks).cpu())
        counts = torch.tensor([row not in weighted for side in sides for row in side.queries.tolist()])
        return float(torch.cat(values)[counts | ~counts.any()].mean())  # weighted ones, if there are no others

    def statistics(self) -> dict[str, float]:
        """Return the penalty; -1 where nothing was learned."""
        penalty = float(self.penalty)
        return {"dcdt_ridge/penalty": round(penalty, 6) if penalty != float("inf") else -1.0}

    def encode_queries(self, vectors: Tensor) -> Tensor:
        """Encode frozen query vectors (B, D) as unit vectors (B, D)."""
        return nn.functional.normalize(vectors @ self.query_map, dim=-1)

    def linear_query(self) -> Tensor | None:
        """Return the matrix (D, D) by which questions are multiplied."""
        return self.query_map

    def encode_videos(self, fields: Tensor) -> Tensor:
        """Encode frozen field vectors (F, ..., D) as unit video vectors (..., D)."""
        return nn.functional.normalize(fields.sum(0) @ self.whitening, dim=-1)

    def field_contributions(self, fields: Tensor) -> dict[str, Tensor]:
        """Compute what each field adds to a video's vector before it is smoothed: name to (..., D)."""
        return {name: vectors @ self.whitening for name, vectors in zip(self.tables.fields, fields, strict=True)}

    def video_vectors(self) -> Tensor:
        """Return the vectors of the whole catalogue (N, D), smoothed with their neighbours."""
        if self._vectors is None:
            videos = self.encode_videos(self.tables.videos)
            self._vectors = smooth_with_neighbours(videos, self.neighbours, self.neighbour_weight)
        return self._vectors

    def encode_others(self) -> Tensor:
        """Encode the fields of all videos beside the transcript, smoothed with their neighbours: (N, D)."""
        return smooth_with_neighbours(super().encode_others(), self.neighbours, self.neighbour_weight)

    def _best_passages(self, query: int, videos: list[int]) -> Tensor:
        """Return the vectors (n, D), on the CPU, of videos with the passage that is nearest to a query."""
        assert self.tables.passages is not None
        vector = self.tables.queries[query : query + 1] @ self.whitening  # (1, D)
        passages = [self.passage_vectors(self.tables.passages.rows_of(video)) for video in videos]  # (p, D) each
        best = torch.cat([rows[(vector @ rows.T).argmax(1)] for rows in passages])
        return (best + self.other_vectors()[to_device(torch.tensor(videos), best.device)]).cpu()

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """Score queries by towers fitted without each, right after `prepare` only; other queries as usual: (B, N)."""
        fitted = [i for i, row in enumerate(rows.tolist()) if row in self._group]
        return replace_rows(self.score(queries), fitted, self._scores_left_out(rows[fitted]))

    def _scores_left_out(self, rows: Tensor) -> Tensor:
        """Score fitted queries of rows (B,) by the fits without each: (B, N)."""
        groups = torch.tensor([self._group[row] for row in rows.tolist()], dtype=torch.int64)
        return self.score_encoded(self._left_out[to_device(groups, self._left_out.device)])


def smooth_with_neighbours(videos: Tensor, k: int, weight: float, chunk: int = 1024) -> Tensor:
    """Add to unit vectors (N, D) `weight` times the direction of the mean of their k nearest others, normalised.

    With fewer than k others, all of them count. Memory is bounded by chunk x N similarities.
    """
    k = min(k, len(videos) - 1)
    if k == 0 or weight == 0:
        return videos
    means = []
    for start in range(0, len(videos), chunk):
        similarity = videos[start : start + chunk] @ videos.T  # (chunk, N)
        rows = torch.arange(len(similarity), device=similarity.device)
        similarity[rows, start + rows] = float("-inf")
        means.append(videos[similarity.topk(k, dim=1).indices].mean(1))  # (chunk, k, D) -> (chunk, D)
    directions = nn.functional.normalize(torch.cat(means), dim=-1)
    return nn.functional.normalize(videos + weight * directions, dim=-1)


def fitted_sides(data: RankingDataModule, fit_on: str) -> list[SideTensors]:
    """Return the training side and, with `fit_on=judged`, the validation side."""
    train = side_tensors("train", data.split.train, data.collection)
    return [train, data.sides["val"]] if fit_on == "judged" else [train]


@dataclass(frozen=True)
class Ridge:
    """A ridge regression of targets on inputs towards the identity, for any penalty from one SVD.

    Attributes:
        left: (n, r) left singular vectors of the inputs.
        values: (r,) singular values.
        right: (r, D) right singular vectors.
        residual: (n, D) targets less inputs.
        targets: (n, D).
    """

    left: Tensor
    values: Tensor
    right: Tensor
    residual: Tensor
    targets: Tensor

    def matrix(self, penalty: float) -> Tensor:
        """Compute the matrix M (D, D) of `x + x M`."""
        weights = self.values / (self.values.square() + penalty)  # (r,)
        return ((self.right.T * weights) @ (self.left.T @ self.residual)).float()

    def left_out(self, penalty: float) -> Tensor:
        """Map each input by a fit without it, (n, D): `y - (r - H r) / (1 - diag H)`."""
        weights = self.values.square() / (self.values.square() + penalty)  # (r,)
        fitted = (self.left * weights) @ (self.left.T @ self.residual)  # (n, D)
        leverage = (self.left.square() * weights).sum(1, keepdim=True)  # (n, 1): diag H
        return (self.targets - (self.residual - fitted) / (1 - leverage).clamp(min=1e-9)).float()


def ridge(inputs: Tensor, targets: Tensor) -> Ridge:
    """Prepare the regression of targets (n, D) on inputs (n, D), in double precision, which not every device has."""
    x, y = inputs.cpu().double(), targets.cpu().double()
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    return Ridge(left, values, right, y - x, y)


def fitting_targets(
    collection: Collection,
    sides: list[SideTensors],
    videos: Tensor,
    best_passages: Callable[[int, list[int]], Tensor] | None = None,
) -> tuple[list[list[int]], Tensor, Tensor]:
    """Group the queries of the sides by text, and compute the direction of the weighted mean of their positives.

    Args:
        collection: the texts.
        sides: whose queries and positives are used.
        videos: (N, D) unit video vectors.
        best_passages: from a query row and its positives to the vectors (k, D) that take the place of theirs.

    Returns:
        n groups of query rows, targets (n, D) and the mean weight of the positives (n,), on the CPU.
    """
    positives_of: dict[int, dict[int, float]] = {}  # with their weights
    for side in sides:
        for row, judged, grades in zip(side.queries.tolist(), side.judged.tolist(), side.grades.tolist(), strict=True):
            weights, judgments = collection.weights.get(row, {}), zip(judged, grades, strict=True)
            positives_of[row] = {
                video: weights.get(video, 1.0)
                for video, grade in judgments
                if video >= 0 and grade >= collection.positive_grade
            }
    groups = list(query_groups(collection.queries.texts, sorted(positives_of)).values())
    # of equal questions the largest weight counts
    positives = [dict(sorted(item for row in rows for item in positives_of[row].items())) for rows in groups]
    columns = [torch.tensor([*weights.values()]).unsqueeze(1) for weights in positives]  # (k, 1) each
    if best_passages is not None:
        vectors_of = [best_passages(rows[0], [*videos]) for rows, videos in zip(groups, positives, strict=True)]
    else:
        distinct, position = torch.unique(torch.tensor([*chain.from_iterable(positives)]), return_inverse=True)
        vectors = videos[to_device(distinct, videos.device)].cpu()  # one transfer
        vectors_of = [vectors[rows] for rows in position.split([*map(len, positives)])]
    means = [(rows * column).mean(0) for rows, column in zip(vectors_of, columns, strict=True)]
    return groups, nn.functional.normalize(torch.stack(means), dim=-1), torch.stack([one.mean() for one in columns])
