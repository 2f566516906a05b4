"""DCDT with the learner's watch history in the query tower, beside the question or without one."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dcdt.data.datamodule import Positions, RankingDataModule
from dcdt.data.histories import Histories, fittable_watches, held_out_askers
from dcdt.data.interactions import Interactions, load_interactions
from dcdt.data.tables import Tables
from dcdt.data.types import Collection, Rows
from dcdt.models.config import HistoryConfig
from dcdt.models.history_tower import HistoryTower, NextVideos, fit_tower, next_video_examples
from dcdt.models.query_batch import QueryBatch, query_batch
from dcdt.models.ranking import rank_side
from dcdt.models.recommender import Recommender
from dcdt.models.whitening import catalogue_whitening
from dcdt.utils.errors import NotApplicable

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)  # of the history beside a question; ties go to the smallest


class HistoryTowers(Recommender):
    """Cosine with the question plus `weight` times the score of a tower over the learner's history.

    The question and the videos are the frozen vectors, whitened if configured: without a history it is `zero_shot`. The
    tower (`history_tower.py`) works on their first `width` principal components and is fitted on which video learners
    watched next. The sum is the dot product of `[question; weight * learner; weight * a]` with a vector of the video,
    so it stays decoupled. `weight` is chosen by the MRR of the validation queries, and may be 0, which turns
    personalisation off; without questions it is 1.

    Leaks are avoided as in `collaborative`: the tower is fitted on interactions before the split's cutoff and, of
    a learner who asks a held-out query, before the first such query; a query is scored from the asking learner's
    interactions strictly before it. Without such a history only the popularity of a video is added; these queries
    are counted (`cold_queries`).

    Args:
        config: whitening, pooling, and how the tower is fitted.
        tables: the frozen vectors.
    """

    trained_by_epochs: ClassVar[bool] = False
    tower_type: ClassVar[type[HistoryTower]] = HistoryTower
    histories: Histories
    decoupled: ClassVar[bool] = False
    needs_question = False
    whitening: Tensor
    basis: Tensor
    weight: Tensor

    def __init__(self, config: HistoryConfig, tables: Tables) -> None:
        super().__init__(tables)
        self.config = config
        width = min(config.width, tables.width)
        self.tower = self.tower_type(config, tables.videos.shape[1], width)
        self.histories = Histories()
        self.cold: dict[str, float] = {}
        self.register_buffer("whitening", torch.eye(tables.width))
        self.register_buffer("basis", torch.eye(tables.width, width))
        self.register_buffer("weight", torch.tensor(1.0))

    @torch.no_grad()
    def on_prepare(self, data: RankingDataModule) -> None:
        """Whiten, fit the tower, choose the weight.

        Raises:
            NotApplicable: there are no interactions before the held-out queries, or no learner watched a second video.
            UserError: the file is invalid, or a query's timestamp is no number.
        """
        collection = data.collection
        watches = load_interactions(collection.path / "interactions.csv", collection.videos.row_of)
        askers = held_out_askers(data)
        keep = fittable_watches(watches, (asker for side in askers.values() for asker in side), data.split.cutoff)
        candidates = torch.from_numpy(data.split.train.candidates)
        keep &= data.split.train.candidates[watches.item]  # no held-out video is seen in fitting
        self.histories = Histories(watches)
        if self.config.whiten == "soft":
            self.whitening = catalogue_whitening(self.tables.videos, candidates)
        self._vectors = None
        self.basis = principal_directions(self.video_vectors()[candidates.to(self.tables.device)], self.basis.shape[1])
        self._vectors = None
        counts = np.bincount(watches.item[keep], minlength=len(collection.videos))
        self.tower.popularity = torch.from_numpy(counts).float().log1p().to(self.tables.device)
        units = self.find_units(collection, watches)
        self.units = None if units is None else Histories(replace(watches, item=units))
        columns = (watches.user, watches.item, watches.time, *(() if units is None else (units,)))
        if self.config.history != "none":
            examples = next_video_examples(*(torch.from_numpy(column[keep]) for column in columns))
            if not len(examples.target):
                raise NotApplicable("no learner watched a second video before the held-out queries")
            self.fit(examples, data)
        for name, side in askers.items():
            users, times = zip(*side, strict=True)
            self.cold[name] = float((self.histories.last(users, times, 1) < 0).all(1).sum())
        if collection.has_questions:
            value_of = self._validate_weights(data)
            self.weight.fill_(max(WEIGHTS, key=lambda weight: value_of[weight]))

    def find_units(self, collection: Collection, watches: Interactions) -> Rows | None:
        """Number the unit of every watch, (I,); None: this model tells none apart."""
        return None

    def fit(self, examples: NextVideos, data: RankingDataModule) -> None:
        """Fit the tower on which video came next."""
        again = data.collection.has_questions
        with torch.enable_grad():
            fit_tower(self.tower, self._base(), examples, self.config, data.seed, again)

    def statistics(self) -> dict[str, float]:
        """Return the weight of the history, the tower's scalars, and the number of queries without a history."""
        name = self.config.name
        scalars = {key: value for key, value in self.tower.named_parameters() if not value.ndim and "log_" not in key}
        parameters = {"weight": self.weight, **scalars}
        cold = {f"{side}/cold_queries": number for side, number in self.cold.items()}
        values = {f"{name}/{key}": torch.as_tensor(value).item() for key, value in parameters.items()}
        return {key: round(value, 4) for key, value in values.items()} | cold

    def encode_queries(self, vectors: Tensor) -> Tensor:
        """Encode frozen vectors (B, D) of questions as unit vectors (B, D); 0 where there is no question."""
        return nn.functional.normalize(vectors @ self.whitening, dim=-1)

    def linear_query(self) -> Tensor | None:
        """Return the matrix (D, D) by which questions are multiplied."""
        return self.whitening

    def encode_videos(self, fields: Tensor) -> Tensor:
        """Encode frozen field vectors (F, ..., D) as unit video vectors (..., D)."""
        return self.encode_queries(fields.sum(0))

    def field_contributions(self, fields: Tensor) -> dict[str, Tensor]:
        """Compute what each field adds to a video's vector: name to (..., D)."""
        return dict(zip(self.tables.fields, fields @ self.whitening, strict=True))

    def score(self, queries: QueryBatch) -> Tensor:
        """Score B queries against all N videos, (B, N)."""
        question, learner = self._two_scores(queries)
        return question + self.weight * learner

    def get_extra_state(self) -> dict[str, Any]:
        """Return the histories of all learners."""
        units = {} if self.units is None else {"units": self.units.state()}
        return {"cold": self.cold, **self.histories.state(), **units}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        self.histories.load(state)
        self.cold = dict(state["cold"])
        if "units" in state:
            self.units = Histories()
            self.units.load(state["units"])

    def _two_scores(self, queries: QueryBatch) -> tuple[Tensor, Tensor]:
        """Score all videos by the question and by the learner's history, (B, N) each."""
        query_vectors = self.encode_queries(queries.vectors)  # (B, D)
        watched = self.histories.last(queries.users, queries.times, self.config.length)
        videos = self.tower.videos(self._base())
        directions = nn.functional.normalize(query_vectors @ self.basis, dim=-1)  # (B, d)
        units = None if self.units is None else self.units.last(queries.users, queries.times, self.config.length)
        learners = self.tower.learners(videos, watched, directions, units=units)
        return query_vectors @ self.video_vectors().T, self.tower.score(learners, videos, self.tower.popularity)

    def _base(self) -> Tensor:
        """Return the input of the tower, (N, d) unit vectors."""
        return nn.functional.normalize(self.video_vectors() @ self.basis, dim=-1)

    def _validate_weights(self, data: RankingDataModule) -> dict[float, float]:
        """Compute the MRR of the validation queries at every weight."""
        side, order = data.sides["val"], data.ties.on(self.tables.device)
        sums = dict.fromkeys(WEIGHTS, 0.0)
        for positions in Positions(side):
            queries = query_batch(data.collection, self.tables, side.queries[positions], side)
            question, learner = self._two_scores(queries)
            for weight in WEIGHTS:
                scores = question + weight * learner
                _, metrics, _ = rank_side(side, positions, scores, order, data.collection.positive_grade, data.ks)
                sums[weight] += float(metrics["mrr"].double().sum())
        return {weight: total / len(side.queries) for weight, total in sums.items()}


def principal_directions(vectors: Tensor, width: int) -> Tensor:
    """Compute the principal directions of vectors (n, D), not centred, as columns (D, d) of fixed sign.

    If n is below d, the other directions are orthogonal to all vectors.
    """
    x = vectors.cpu().double()  # not every device has double precision
    basis = torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :width]  # (D, d)
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))  # (1, d)
    directions: Tensor = (basis * largest.sign()).to(vectors.device, vectors.dtype)
    return directions
