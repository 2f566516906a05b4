"""Collaborative filtering: what learners with a similar history watched; the words of the question are not read."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from dcdt.data.datamodule import RankingDataModule
from dcdt.data.histories import Histories, held_out, may_be_fitted
from dcdt.data.interactions import load_interactions
from dcdt.data.tables import Tables
from dcdt.models.config import OptimizerConfig
from dcdt.models.recommender import QueryBatch, Recommender

from .config import CollaborativeConfig
from .implicit_models import ImplicitModel


class Collaborative(Recommender):
    """Ranks videos for a learner by what those with a similar history watched (`implicit_models.py`).

    Who may see what:

    - The model is fitted on interactions before the split's cutoff (`split=time`), of a learner who asks a held-out
      query (of any side but training) only on those before the first such query.
    - A query is scored from the asking learner's history strictly before the query, folded into the fitted model.

    So nothing the asking learner does at or after the time of a held-out query can reach its scores; what other
    learners do later can, except with `split=time`. A question without a time has no history, and a learner who asks
    one on a held-out side is left out of fitting.

    Learners without a known history get the videos by popularity and are counted (`cold_queries`). Videos watched
    before stay in the ranking: a learner may be sent back.

    Args:
        config: the kind and its values.
        tables: not read, but for the number of videos; models share one signature.
        loss: not used.
        optimizer: not used.
    """

    fittable: ClassVar[bool] = False
    decoupled: ClassVar[bool] = False
    needs_question = False

    def __init__(
        self,
        config: CollaborativeConfig,
        tables: Tables,
        loss: nn.Module | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(tables)
        self.model = ImplicitModel(config)
        self.n_videos = tables.videos.shape[1]
        self.cold: dict[str, float] = {}
        self.watched_by = Histories()

    def prepare(self, data: RankingDataModule) -> None:
        """Fit on what may be seen.

        Raises:
            NotApplicable: there are no interactions, or none that may be seen.
            UserError: the file is not as the layout says, or a query's timestamp is no number.
        """
        collection = data.collection
        watches = load_interactions(collection.path / "interactions.csv", collection.videos.row_of)
        self.watched_by = Histories(watches)
        held = held_out(data)
        keep = may_be_fitted(watches, (asked for side in held.values() for asked in side), data.split.cutoff)
        learners, rows = np.unique(watches.user[keep], return_inverse=True)  # who has nothing to show leaves no row
        counts = np.ones(len(rows), dtype=np.float32), (rows.reshape(-1), watches.item[keep])
        self.model.fit(csr_matrix(counts, shape=(len(learners), self.n_videos)), data.seed)
        for name, side in held.items():
            self.cold[name] = float((~self.model.known(self.histories(*zip(*side, strict=True)))).sum())

    def facts(self) -> dict[str, float]:
        """Number of queries of each side that were ranked by popularity."""
        return {f"{name}/cold_queries": number for name, number in self.cold.items()}

    def score(self, queries: QueryBatch) -> Tensor:
        """Scores of B learners, each at the time of its question, (B, N)."""
        scores = self.model.score(self.histories(queries.users, queries.times))
        return torch.from_numpy(scores.astype(np.float32)).to(self.tables.device)

    def histories(self, users: Sequence[str | None], times: Sequence[float | None]) -> csr_matrix:
        """How often each learner watched each video strictly before a time, (B, N)."""
        return self.watched_by.counts(users, times, self.n_videos)

    def get_extra_state(self) -> dict[str, Any]:
        """The fitted model and the histories of all learners."""
        return {"model": self.model.state(), "cold": self.cold, **self.watched_by.state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        self.model.load(state["model"])
        self.watched_by.load(state)
        self.cold = dict(state["cold"])
