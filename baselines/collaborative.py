"""Collaborative filtering: what learners with a similar history watched; the words of the question are not read."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from dcdt.config import CollaborativeConfig, OptimizerConfig
from dcdt.data.collection import Rows
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.interactions import Interactions, load_interactions
from dcdt.data.tables import Tables
from dcdt.errors import NotApplicable, UserError
from dcdt.models.recommender import QueryBatch, Recommender

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
        self.position: dict[str, int] = {}
        self.starts = self.items = np.zeros(0, dtype=np.int64)
        self.times = np.zeros(0)

    def prepare(self, data: RankingDataModule) -> None:
        """Fit on what may be seen.

        Raises:
            NotApplicable: there are no interactions, or none that may be seen.
            UserError: the file is not as the layout says, or a query's timestamp is no number.
        """
        collection = data.collection
        watches = load_interactions(collection.path / "interactions.csv", collection.videos.row_of)
        self._remember(watches)
        held = {name: self._held_out(data, side.queries.tolist()) for name, side in data.split.sides.items()}
        limit = np.full(len(watches.users), np.inf if data.split.cutoff is None else data.split.cutoff)
        for user, time in (asked for side in held.values() for asked in side):
            if user in self.position:
                limit[self.position[user]] = min(limit[self.position[user]], -np.inf if time is None else time)
        keep = watches.time < limit[watches.user]
        if not keep.any():
            raise NotApplicable("no interaction of the collection lies before its held-out queries")
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
        return torch.from_numpy(scores.astype(np.float32)).to(self.device)

    def histories(self, users: Sequence[str | None], times: Sequence[float | None]) -> csr_matrix:
        """How often each learner watched each video strictly before a time, (B, N)."""
        parts = [self._before(user, time) for user, time in zip(users, times, strict=True)]
        rows = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        columns = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
        return csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(len(parts), self.n_videos))

    def get_extra_state(self) -> dict[str, Any]:
        """The fitted model and the histories of all learners."""
        histories = {"starts": self.starts, "items": self.items, "times": self.times}
        tensors = {name: torch.from_numpy(array) for name, array in histories.items()}
        return {"model": self.model.state(), "users": list(self.position), "cold": self.cold, **tensors}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        self.model.load(state["model"])
        self.position = {user: at for at, user in enumerate(state["users"])}
        self.starts, self.items, self.times = (state[name].numpy() for name in ("starts", "items", "times"))
        self.cold = dict(state["cold"])

    def _before(self, user: str | None, time: float | None) -> Rows:
        """Videos that a learner watched strictly before a time; none without a known learner and a time."""
        at = None if user is None else self.position.get(str(user))
        if at is None or time is None:
            return self.items[:0]
        start, end = self.starts[at : at + 2]
        return self.items[start : start + np.searchsorted(self.times[start:end], time)]

    def _remember(self, watches: Interactions) -> None:
        """Each learner's history, in order of time."""
        self.position = {user: at for at, user in enumerate(watches.users)}
        self.starts = np.searchsorted(watches.user, np.arange(len(watches.users) + 1))
        self.items, self.times = watches.item, watches.time

    def _held_out(self, data: RankingDataModule, rows: list[int]) -> list[tuple[str | None, float | None]]:
        """Who asks each query, and when."""
        queries, asked = data.collection.queries, []
        for row in rows:
            user, time = (queries.metadata[row].get(key) for key in ("user_id", "timestamp"))
            if time is not None and (isinstance(time, bool) or not isinstance(time, int | float)):
                raise UserError(f"the query '{queries.ids[row]}' has the timestamp {time!r}; give a number of seconds.")
            asked.append((None if user is None else str(user), time))
        return asked
