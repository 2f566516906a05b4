"""Linear towers that start from the identity and are fitted in closed form: DCDT for few judgments."""

from collections.abc import Callable, Iterator
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
from dcdt.models.sums import Sums, query_weights
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
    fits_from_sums = True
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
        sides = self._prepare_videos(data)
        inputs, targets, weights, by_group = self._fitting_data(data, sides)
        root = by_group.float().sqrt()  # (n, 1), by which weighted least squares multiply both sides
        fit = ridge(inputs.cpu() * root, targets * root)
        penalty = self.config.penalty
        if penalty is None:
            quality_of = {
                value: self._left_out_quality(fit.left_out(value, inputs, targets, by_group), sides, data, weights)
                for value in PENALTIES
            }
            penalty = max(reversed(PENALTIES), key=lambda value: quality_of[value])  # of equals the largest
        self._use(penalty, fit.matrix(penalty), fit.left_out(penalty, inputs, targets, by_group))

    def _prepare_videos(self, data: RankingDataModule) -> list[SideTensors]:
        """Whiten by the catalogue; returns the sides whose queries are fitted."""
        sides = fitted_sides(data, self.config.fit_on)
        self._group: dict[int, int] = {}
        if self.config.whiten == "soft":
            candidates = torch.stack([side.candidates for side in sides]).any(0)
            self.whitening = catalogue_whitening(self.tables.videos, candidates)
        self._vectors = None
        return sides

    def _fitting_data(
        self, data: RankingDataModule, sides: list[SideTensors], clip: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return inputs and targets (n, D) of groups of equal text, and weights of query rows (Q,) and groups (n, 1).

        With `clip` each query is a group, so that what one learner asks is in no other's.
        """
        videos = self.video_vectors()
        best_passages = None if self.pooling is None else self._best_passages
        groups, targets, of_judgments = fitting_targets(data.collection, sides, videos, best_passages, clip is None)
        first = torch.tensor([rows[0] for rows in groups])
        inputs = self.tables.queries[to_device(first, self.tables.device)] @ self.whitening  # (n, D)
        self._group = {row: i for i, rows in enumerate(groups) for row in rows}
        weights = query_weights(data.collection, sides, clip)
        by_group = (weights[first] * of_judgments).unsqueeze(1)
        return nn.functional.normalize(inputs, dim=-1), targets, self._quality_weights(weights, data), by_group

    def _quality_weights(self, weights: Tensor, data: RankingDataModule) -> Tensor:
        """Set the weight of queries with weighted judgments to 0, unless there are no others: (Q,)."""
        weighted = [row for row in self._group if row in data.collection.weights]
        weights[weighted if len(weighted) < len(self._group) else []] = 0
        return weights

    def _use(self, penalty: float, matrix: Tensor, left_out: Tensor) -> None:
        """Take the fit with a penalty: its matrix M (D, D), and the queries mapped by the fits without each, (n, D)."""
        self.penalty.fill_(penalty)
        self.query_map = self.whitening + self.whitening @ matrix.to(self.tables.device)
        self._left_out = nn.functional.normalize(left_out.to(self.tables.device), dim=-1)

    def _left_out_quality(
        self, query_vectors: Tensor, sides: list[SideTensors], data: RankingDataModule, weights: Tensor
    ) -> float:
        """Sum the weighted quality over the queries of the sides, mapped by the fits without their group, (n, D)."""
        self._left_out = nn.functional.normalize(query_vectors.to(self.tables.device), dim=-1)
        order, total = data.ties.on(self.tables.device), 0.0
        for side in sides:
            for positions in Positions(side):
                rows = side.queries[positions]
                scores = self._scores_left_out(rows)
                _, metrics, _ = rank_side(side, positions, scores, order, data.collection.positive_grade, data.ks)
                total += float((quality(metrics, data.ks) * weights[rows]).sum())
        return total

    def sum_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of `X'X` and `X'Y` over inputs X and targets Y (n, D)."""
        return {name: (self.tables.width, self.tables.width) for name in ("gram", "cross")}

    def loss_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of the quality by penalty, where one is to be chosen."""
        return {"quality": (len(PENALTIES),)} if self.config.penalty is None else {}

    def sum_training(self, data: RankingDataModule, clip: int | None = None) -> Sums:
        """Sum `x x'` and `x y'`, both of norm 1, over the fitted queries."""
        inputs, targets, _, weights = self._fitting_data(data, self._prepare_videos(data), clip)
        x, y = inputs.cpu().double(), targets.cpu().double()
        return Sums({"gram": (x * weights).T @ x, "cross": (x * weights).T @ y}, len(x), 2**0.5 * (clip or 1))

    def sum_losses(self, data: RankingDataModule, sums: dict[str, Tensor], clip: int | None = None) -> Sums:
        """Sum the quality at each penalty."""
        values = torch.tensor(list(self.candidates(data, sums, clip)), dtype=torch.float64)
        return Sums({"quality": values}, len(self._group), (clip or 1) * len(values) ** 0.5)

    def candidates(self, data: RankingDataModule, sums: dict[str, Tensor], clip: int | None) -> Iterator[float]:
        """Fit with each penalty in turn, and yield the summed quality."""
        sides = self._prepare_videos(data)
        inputs, targets, weights, by_group = self._fitting_data(data, sides, clip)
        fit = ridge_of_sums(sums["gram"], sums["cross"])
        for penalty in PENALTIES if self.config.penalty is None else (self.config.penalty,):
            left_out = fit.left_out(penalty, inputs, targets, by_group)
            total = self._left_out_quality(left_out, sides, data, weights)
            if not self.reads_validation:  # else every query that is scored is left out
                self._use(penalty, fit.matrix(penalty), left_out)
            yield total

    def fit_sums(
        self, data: RankingDataModule, sums: dict[str, Tensor], losses: dict[str, Tensor], included: bool
    ) -> int:
        """Fit from `X'X` and `X'Y`, with the penalty of the best summed quality, of equals the largest."""
        sides, fit = self._prepare_videos(data), ridge_of_sums(sums["gram"], sums["cross"])
        best, penalty = 0, self.config.penalty
        if penalty is None:
            best = max(reversed(range(len(PENALTIES))), key=lambda i: float(losses["quality"][i]))
            penalty = PENALTIES[best]
        inputs, targets = self._fitting_data(data, sides)[:2] if included else torch.zeros(2, 0, self.tables.width)
        self._use(penalty, fit.matrix(penalty), fit.left_out(penalty, inputs, targets))
        self._is_prepared = True
        return best

    def check_sums(self, sums: dict[str, Tensor], n: int) -> None:
        """Raise ValueError for sums that are not over n pairs of unit vectors."""
        if n and not abs(float(sums["gram"].trace()) - n) <= 1e-3 * n:
            raise ValueError(f"the trace of 'gram' is {float(sums['gram'].trace()):.6g}, of {n:,} queries it is {n:,}")
        for name in sums:
            norm = float(torch.linalg.matrix_norm(sums[name]))
            if n and norm > 1.001 * n:
                raise ValueError(f"the norm of '{name}' is {norm:.6g}, of {n:,} queries it is at most {n:,}")

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
    """A ridge regression of targets on inputs towards the identity, for any penalty from one decomposition.

    Attributes:
        values: (r,) eigenvalues of `X'X`, X being the inputs (n, D).
        basis: (D, r) its eigenvectors.
        projected: (r, D) `X'(Y - X)` in this basis, Y being the targets (n, D).
    """

    values: Tensor
    basis: Tensor
    projected: Tensor

    def matrix(self, penalty: float) -> Tensor:
        """Compute the matrix M (D, D) of `x + x M`."""
        return (self.basis @ (self.projected / (self.values + penalty).unsqueeze(1))).float()

    def left_out(self, penalty: float, inputs: Tensor, targets: Tensor, weights: Tensor | float = 1.0) -> Tensor:
        """Map fitted inputs, of weights (n, 1), by fits without each, (n, D): `y - (r - H r) / (1 - diag H)`."""
        x, y = inputs.cpu().double(), targets.cpu().double()
        rotated = x @ self.basis  # (n, r)
        scaled = rotated / (self.values + penalty)
        leverage = (scaled * rotated).sum(1, keepdim=True) * weights  # (n, 1): diag H
        return (y - (y - x - scaled @ self.projected) / (1 - leverage).clamp(min=1e-9)).float()


def ridge(inputs: Tensor, targets: Tensor) -> Ridge:
    """Prepare the regression of targets (n, D) on inputs (n, D), in double precision, which not every device has."""
    x, y = inputs.cpu().double(), targets.cpu().double()
    left, values, right = torch.linalg.svd(x, full_matrices=False)
    return Ridge(values.square(), right.T, values.unsqueeze(1) * (left.T @ (y - x)))


def ridge_of_sums(gram: Tensor, cross: Tensor) -> Ridge:
    """Prepare the regression from `X'X` and `X'Y`, (D, D) each; noise may have made eigenvalues negative."""
    values, basis = torch.linalg.eigh(gram)
    return Ridge(values.clamp(min=0), basis, basis.T @ (cross - gram))


def fitting_targets(
    collection: Collection,
    sides: list[SideTensors],
    videos: Tensor,
    best_passages: Callable[[int, list[int]], Tensor] | None = None,
    grouped: bool = True,
) -> tuple[list[list[int]], Tensor, Tensor]:
    """Group the queries of the sides by text, and compute the direction of the weighted mean of their positives.

    Args:
        collection: the texts.
        sides: whose queries and positives are used.
        videos: (N, D) unit video vectors.
        best_passages: from a query row and its positives to the vectors (k, D) that take the place of theirs.
        grouped: whether queries of equal text are one; else each is a group.

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
    groups = [[row] for row in sorted(positives_of)]
    if grouped:
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
