"""Linear towers that start from the identity and are fitted in closed form: DCDT for few judgments."""

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
from dcdt.models.config import OptimizerConfig, RidgeConfig
from dcdt.models.recommender import QueryBatch, Recommender, rank_side, replace_rows
from dcdt.models.whitening import catalogue_whitening
from dcdt.utils.transfer import to_device

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, float("inf"))  # inf: the identity, training is refused


class RidgeTowers(Recommender):
    """Query, title and description towers that are linear maps, the fields summed, cosine interaction.

    The field towers are the whitening of the catalogue, and each video leans towards the mean of its `neighbours`
    nearest ones (by `neighbour_weight`), so that a short description says more. The query tower is `x + M x` of the
    whitened query x, where M minimises `|x + M x - y|^2` summed over the training queries `+ penalty |M|^2`, and y is
    the direction of the mean vector of a query's positives: ridge regression towards the identity, one SVD, no epochs,
    no seed.

    `penalty=null` chooses it among PENALTIES by the quality of the fitted queries, each ranked by towers fitted without
    it (the closed form of leave-one-out: Allen 1974, PRESS). Queries with the same text are one, so that none is judged
    by its twin. Since nothing is left to choose on validation, `fit_on=judged` fits its queries too; their metrics and
    pair scores are then those of towers fitted without each.

    Args:
        config: fields, whitening, neighbours and penalty.
        tables: the frozen vectors.
        loss: not used.
        optimizer: not used.
    """

    fittable: ClassVar[bool] = False
    whitening: Tensor
    query_map: Tensor
    penalty: Tensor
    _left_out: Tensor

    def __init__(
        self,
        config: RidgeConfig,
        tables: Tables,
        loss: nn.Module | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(tables)
        self.config = config
        self.reads_validation = config.fit_on == "judged"
        self.register_buffer("whitening", torch.eye(tables.width))
        self.register_buffer("query_map", torch.eye(tables.width))
        self.register_buffer("penalty", torch.tensor(float("inf")))
        self.register_buffer("_left_out", None, persistent=False)  # (n, D) what fits without them make of the queries

    def prepare(self, data: RankingDataModule) -> None:
        """Whiten, choose the penalty by leave-one-out, fit."""
        sides = fitted_sides(data, self.config.fit_on)
        if self.config.whiten == "soft":
            candidates = torch.stack([side.candidates for side in sides]).any(0)
            self.whitening = catalogue_whitening(self.tables.videos, candidates)
        self._vectors = None
        videos = self.video_vectors()
        groups, targets = fitting_targets(data.collection, sides, videos)
        device = self.tables.device
        first = to_device(torch.tensor([rows[0] for rows in groups]), device)
        asked = self.tables.queries[first] @ self.whitening  # (n, D)
        fit = ridge(nn.functional.normalize(asked, dim=-1), targets)
        self._group = {row: at for at, rows in enumerate(groups) for row in rows}
        penalty = self.config.penalty
        if penalty is None:
            found = {value: self._judge(fit.left_out(value).to(device), sides, data) for value in PENALTIES}
            penalty = max(reversed(PENALTIES), key=lambda value: found[value])  # of equals the largest
        self.penalty.fill_(penalty)
        self.query_map = self.whitening + self.whitening @ fit.matrix(penalty).to(device)
        self._left_out = nn.functional.normalize(fit.left_out(penalty).to(device), dim=-1)

    def _judge(self, asked: Tensor, sides: list[SideTensors], data: RankingDataModule) -> float:
        """Quality over the queries of the sides, each asked as the fit without its group maps it, groups (n, D)."""
        self._left_out = nn.functional.normalize(asked, dim=-1)
        order, total = data.ties.on(self.tables.device), 0.0
        for side in sides:
            for positions in Positions(side):
                scores = self._scores_left_out(side.queries[positions])
                _, metrics, _ = rank_side(side, positions, scores, order, data.collection.positive_grade, data.ks)
                total += float(quality(metrics, data.ks).sum())
        return total / sum(len(side.queries) for side in sides)

    def facts(self) -> dict[str, float]:
        """The penalty; -1 where training was refused."""
        penalty = float(self.penalty)
        return {"dcdt_ridge/penalty": round(penalty, 6) if penalty != float("inf") else -1.0}

    def encode_queries(self, vectors: Tensor) -> Tensor:
        """Unit query vectors (B, D) of frozen vectors (B, D)."""
        return nn.functional.normalize(vectors @ self.query_map, dim=-1)

    def linear_query(self) -> Tensor | None:
        """The matrix (D, D) by which questions are multiplied."""
        return self.query_map

    def encode_videos(self, fields: Tensor) -> Tensor:
        """Unit video vectors (..., D) of frozen field vectors (F, ..., D)."""
        return nn.functional.normalize(fields.sum(0) @ self.whitening, dim=-1)

    def video_parts(self, fields: Tensor) -> dict[str, Tensor]:
        """What each field adds to a video's vector before it leans on others; name to (..., D)."""
        return {name: part @ self.whitening for name, part in zip(self.tables.fields, fields, strict=True)}

    def video_vectors(self) -> Tensor:
        """Vectors of the whole catalogue (N, D), each leaning towards its neighbours."""
        if self._vectors is None:
            config, videos = self.config, self.encode_videos(self.tables.videos)
            self._vectors = lean_on_neighbours(videos, config.neighbours, config.neighbour_weight)
        return self._vectors

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """Scores (B, N) by towers fitted without each query; right after `prepare` only. Others as they are."""
        fitted = [at for at, row in enumerate(rows.tolist()) if row in self._group]
        return replace_rows(self.score(queries), fitted, self._scores_left_out(rows[fitted]))

    def _scores_left_out(self, rows: Tensor) -> Tensor:
        """Scores (B, N) of fitted queries, rows (B,)."""
        groups = torch.tensor([self._group[row] for row in rows.tolist()], dtype=torch.int64)
        return self._left_out[to_device(groups, self._left_out.device)] @ self.video_vectors().T


def lean_on_neighbours(videos: Tensor, k: int, weight: float, chunk: int = 1024) -> Tensor:
    """Unit vectors (N, D) plus `weight` times the direction of the mean of their k nearest others, normalised.

    With fewer than k others, all of them count. Memory is bounded by chunk x N similarities.
    """
    k = min(k, len(videos) - 1)
    if k == 0 or weight == 0:
        return videos
    means = []
    for start in range(0, len(videos), chunk):
        alike = videos[start : start + chunk] @ videos.T  # (chunk, N)
        rows = torch.arange(len(alike), device=alike.device)
        alike[rows, start + rows] = float("-inf")
        means.append(videos[alike.topk(k, dim=1).indices].mean(1))  # (chunk, k, D) -> (chunk, D)
    directions = nn.functional.normalize(torch.cat(means), dim=-1)
    return nn.functional.normalize(videos + weight * directions, dim=-1)


def fitted_sides(data: RankingDataModule, fit_on: str) -> list[SideTensors]:
    """The training side and, where the fit may read them, the validation queries."""
    train = side_tensors("train", data.split.train, data.collection)
    return [train, data.sides["val"]] if fit_on == "judged" else [train]


@dataclass(frozen=True)
class Ridge:
    """A ridge regression of targets on inputs towards the identity, for any penalty from one SVD.

    Attributes:
        left: (n, r) left singular vectors of the inputs.
        values: (r,) singular values.
        right: (r, D) right singular vectors.
        rest: (n, D) targets less inputs.
        targets: (n, D).
    """

    left: Tensor
    values: Tensor
    right: Tensor
    rest: Tensor
    targets: Tensor

    def matrix(self, penalty: float) -> Tensor:
        """(D, D): M of `x + x M`."""
        weights = self.values / (self.values.square() + penalty)  # (r,)
        return ((self.right.T * weights) @ (self.left.T @ self.rest)).float()

    def left_out(self, penalty: float) -> Tensor:
        """What each input is mapped to by a fit without it, (n, D): `y - (r - H r) / (1 - diag H)`."""
        weights = self.values.square() / (self.values.square() + penalty)  # (r,)
        fitted = (self.left * weights) @ (self.left.T @ self.rest)  # (n, D)
        own = (self.left.square() * weights).sum(1, keepdim=True)  # (n, 1): diag H
        return (self.targets - (self.rest - fitted) / (1 - own).clamp(min=1e-9)).float()


def ridge(inputs: Tensor, targets: Tensor) -> Ridge:
    """Prepare the regression of targets (n, D) on inputs (n, D), in double precision, which not every device has."""
    x, y = inputs.cpu().double(), targets.cpu().double()
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    return Ridge(left, values, right, y - x, y)


def fitting_targets(collection: Collection, sides: list[SideTensors], videos: Tensor) -> tuple[list[list[int]], Tensor]:
    """The queries of the sides, those of equal text together, and the direction of the mean of their positives.

    Args:
        collection: the texts.
        sides: whose queries and positives are used.
        videos: (N, D) unit video vectors.

    Returns:
        n groups of query rows, and targets (n, D) on the CPU.
    """
    of_query: dict[int, list[int]] = {}
    for side in sides:
        for row, judged, grades in zip(side.queries.tolist(), side.judged.tolist(), side.grades.tolist(), strict=True):
            marked = zip(judged, grades, strict=True)
            of_query[row] = [video for video, grade in marked if video >= 0 and grade >= collection.positive_grade]
    groups = list(query_groups(collection.queries.texts, sorted(of_query)).values())
    positives = [sorted({video for row in rows for video in of_query[row]}) for rows in groups]
    distinct, place = torch.unique(torch.tensor([*chain.from_iterable(positives)]), return_inverse=True)
    parts = place.split([len(videos_of) for videos_of in positives])
    vectors = videos[to_device(distinct, videos.device)].cpu()  # one transfer
    means = [vectors[part].mean(0) for part in parts]
    return groups, nn.functional.normalize(torch.stack(means), dim=-1)
