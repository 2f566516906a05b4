"""Collaborative filtering: recommend what learners with a similar history watched, whatever the question."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags
from torch import Tensor

from dcdt.data.datamodule import RankingDataModule
from dcdt.data.histories import Histories, UserAndTime, fittable_watches, held_out_askers
from dcdt.data.interactions import load_interactions
from dcdt.data.tables import Tables
from dcdt.models.query_batch import QueryBatch
from dcdt.models.recommender import Recommender
from dcdt.models.sums import Sums

from .config import CollaborativeConfig
from .implicit_models import ImplicitModel
from .linear import gram_matrix


class Collaborative(Recommender):
    """Rank videos for a learner by what learners with a similar history watched (`implicit_models.py`).

    To avoid leaks:

    - The model is fitted on interactions before the split's cutoff (`split=time`), of a learner who asks a held-out
      query (of any side but training) only on those before the first such query.
    - A query is scored from the asking learner's history strictly before the query, folded into the fitted model.

    So nothing the asking learner does at or after the time of a held-out query can reach its scores; what other
    learners do later can, except with `split=time`. A question without a time has no history, and a learner who asks
    one on a held-out side is left out of fitting.

    Learners without a known history get the videos by popularity and are counted (`cold_queries`). Videos watched
    before stay in the ranking: they may be recommended again.

    Args:
        config: the kind and its values.
        tables: not read, but for the number of videos.
    """

    trained_by_epochs: ClassVar[bool] = False
    decoupled: ClassVar[bool] = False
    needs_question = False
    reads_question: ClassVar[bool] = False
    histories: Histories

    def __init__(self, config: CollaborativeConfig, tables: Tables) -> None:
        super().__init__(tables)
        self.model = ImplicitModel(config)
        self.fits_from_sums = config.kind == "ease"
        self.n_videos = tables.videos.shape[1]
        self.cold: dict[str, float] = {}
        self.histories = Histories()

    def on_prepare(self, data: RankingDataModule) -> None:
        """Fit on the interactions that leak no held-out query.

        Raises:
            NotApplicable: there are no interactions, or none before the held-out queries.
            UserError: the file is invalid, or a query's timestamp is no number.
        """
        watched, askers = self._fitted_watches(data)
        self.model.fit(watched, data.seed)
        self._count_cold(askers)

    def _fitted_watches(self, data: RankingDataModule) -> tuple[csr_matrix, dict[str, list[UserAndTime]]]:
        """Read the histories; returns the counts (U, N) that leak no held-out query, and the askers of each side."""
        collection = data.collection
        watches = load_interactions(collection.path / "interactions.csv", collection.videos.row_of)
        self.histories = Histories(watches)
        askers = held_out_askers(data)
        keep = fittable_watches(watches, (asker for side in askers.values() for asker in side), data.split.cutoff)
        learners, rows = np.unique(
            watches.user[keep], return_inverse=True
        )  # learners without a trained_by_epochs watch have no row
        counts = np.ones(len(rows), dtype=np.float32), (rows.reshape(-1), watches.item[keep])
        return csr_matrix(counts, shape=(len(learners), self.n_videos)), askers

    def _count_cold(self, askers: dict[str, list[UserAndTime]]) -> None:
        for name, side in askers.items():
            if side:
                self.cold[name] = float((~self.model.has_known_video(self.counts(*zip(*side, strict=True)))).sum())

    def sum_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the sums of `x x'` and of x over the learners' counts x (N,)."""
        return {"gram": (self.n_videos, self.n_videos), "popularity": (self.n_videos,)}

    def sum_training(self, data: RankingDataModule, clip: int | None = None) -> Sums:
        """Sum over the learners; with `clip` the counts of a learner are scaled to the norm of so many watches."""
        watched = self._fitted_watches(data)[0].astype(np.float64)
        if clip is not None:
            norm = np.sqrt(np.asarray(watched.multiply(watched).sum(1)).reshape(-1))  # (U,)
            watched = csr_matrix(diags(np.minimum(1, clip**0.5 / norm)) @ watched)
        gram, popularity = gram_matrix(watched, "ease").toarray(), np.asarray(watched.sum(0)).reshape(-1)
        sums = {"gram": torch.from_numpy(gram), "popularity": torch.from_numpy(popularity)}
        return Sums(sums, watched.shape[0], ((clip or 1) ** 2 + (clip or 1)) ** 0.5)

    def fit_sums(
        self, data: RankingDataModule, sums: dict[str, Tensor], losses: dict[str, Tensor], included: bool
    ) -> int:
        """Fit from the sums; histories, with which learners are scored, are those of the collection, if it has any."""
        collection = data.collection
        path = collection.path / "interactions.csv"
        self.histories = Histories(load_interactions(path, collection.videos.row_of) if path.is_file() else None)
        self.model.fit_sums(sums["gram"].numpy().copy(), sums["popularity"].numpy())
        self._count_cold(held_out_askers(data))
        self._is_prepared = True
        return 0

    def check_sums(self, sums: dict[str, Tensor], n: int) -> None:
        """Raise ValueError for sums that are not over the counts of n learners."""
        popularity, diagonal = sums["popularity"], sums["gram"].diagonal()
        if n and (float(sums["gram"].min()) < 0 or bool(((popularity < 0) | (popularity > 1.001 * diagonal)).any())):
            raise ValueError("a count is negative, or one of 'popularity' above that in 'gram'")

    def statistics(self) -> dict[str, float]:
        """Return the number of queries of each side that were ranked by popularity."""
        return {f"{name}/cold_queries": number for name, number in self.cold.items()}

    def score(self, queries: QueryBatch) -> Tensor:
        """Score all videos for B learners, each at the time of its question, (B, N)."""
        scores = self.model.score(self.counts(queries.users, queries.times))
        return torch.from_numpy(scores.astype(np.float32)).to(self.tables.device)

    def counts(self, users: Sequence[str | None], times: Sequence[float | None]) -> csr_matrix:
        """Count how often each learner watched each video strictly before a time, weighted by recency, (B, N)."""
        return self.histories.counts(users, times, self.n_videos, self.model.config.recency)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the fitted model and the histories of all learners."""
        return {"model": self.model.state(), "cold": self.cold, **self.histories.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        self.model.load(state["model"])
        self.histories.load(state)
        self.cold = dict(state["cold"])
