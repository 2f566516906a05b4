"""Watch histories of learners before a time, and the watches that a model may be fitted on without leaks."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor, nn

from dcdt.data.datamodule import RankingDataModule
from dcdt.data.interactions import Interactions, load_interactions
from dcdt.data.tables import pad_lists
from dcdt.data.types import Rows
from dcdt.utils.errors import NotApplicable, UserError
from dcdt.utils.text import one_line
from dcdt.utils.transfer import to_device

UserAndTime = tuple[str | None, float | None]  # of a query: who asked it, and when


class Histories:
    """The watches of all learners, each learner's in order of time.

    Args:
        watches: of the collection; None for an empty one, which `load` fills.
    """

    def __init__(self, watches: Interactions | None = None) -> None:
        self.position: dict[str, int] = {}
        self.starts = self.items = np.zeros(0, dtype=np.int64)
        self.times = np.zeros(0)
        if watches is not None:
            self.position = {user: i for i, user in enumerate(watches.users)}
            self.starts = np.searchsorted(watches.user, np.arange(len(watches.users) + 1))
            self.items, self.times = watches.item, watches.time

    def watched_before(self, user: str | None, time: float | None) -> Rows:
        """Return the videos a learner watched strictly before a time, in order; none for an unknown learner or time."""
        position = None if user is None else self.position.get(str(user))
        if position is None or time is None:
            return self.items[:0]
        start, end = self.starts[position : position + 2]
        return self.items[start : start + np.searchsorted(self.times[start:end], time)]

    def counts(
        self, users: Sequence[str | None], times: Sequence[float | None], n_videos: int, decay: float = 1.0
    ) -> csr_matrix:
        """Count how often each learner watched each of the N videos strictly before a time, (B, N).

        A watch counts `decay` to the power of the number of later ones of that history.
        """
        histories = [self.watched_before(user, time) for user, time in zip(users, times, strict=True)]
        lengths = np.array([len(history) for history in histories], dtype=np.int64)
        rows, columns = np.repeat(np.arange(len(histories)), lengths), np.concatenate([self.items[:0], *histories])
        n_later = np.repeat(lengths.cumsum(), lengths) - 1 - np.arange(len(rows))
        counts = (decay**n_later).astype(np.float32)
        return csr_matrix((counts, (rows, columns)), shape=(len(histories), n_videos))

    def last(self, users: Sequence[str | None], times: Sequence[float | None], length: int | None = None) -> Tensor:
        """Return rows of each learner's last videos strictly before a time, newest first, (B, L), padded with -1.

        L is the length of the longest history, at most `length`.
        """
        histories = [self.watched_before(user, time)[-(length or 0) :] for user, time in zip(users, times, strict=True)]
        return pad_lists([history[::-1].tolist() for history in histories], -1)

    def state(self) -> dict[str, Tensor | list[str]]:
        """Return what `load` needs, as tensors and texts."""
        tensors = {name: torch.from_numpy(getattr(self, name)) for name in ("starts", "items", "times")}
        return {"users": list(self.position), **tensors}

    def load(self, state: dict[str, Tensor | list[str]]) -> None:
        """Restore what `state` returned."""
        self.position = {user: i for i, user in enumerate(state["users"])}
        self.starts, self.items, self.times = (state[name].numpy() for name in ("starts", "items", "times"))  # type: ignore[union-attr]


def pool_history(vectors: Tensor, watched: Tensor, logits: Tensor | None = None) -> Tensor:
    """Compute the direction of the weighted mean of the videos that each learner watched.

    Args:
        vectors: (N, D) of the videos, on any device.
        watched: (B, L) rows of videos, padded with -1, on the CPU.
        logits: (B, L), on the device of the vectors, of the softmax over a learner's videos; None: equal weights.

    Returns:
        (B, D) unit vectors, 0 for an empty history.
    """
    device, watches = vectors.device, watched >= 0  # (B, L)
    learner, column = watches.nonzero(as_tuple=True)  # (M,)
    rows, learner, column = (to_device(index, device) for index in (watched[learner, column], learner, column))
    mask = to_device(watches, device)
    weights = mask.to(vectors.dtype)
    if logits is not None and watched.shape[1]:
        weights = logits.masked_fill(~mask, torch.finfo(logits.dtype).min).softmax(1) * weights
    weighted = weights[learner, column].unsqueeze(1) * vectors[rows]  # (M, D)
    total = torch.zeros(len(watched), vectors.shape[1], dtype=vectors.dtype, device=vectors.device)
    return nn.functional.normalize(total.index_add(0, learner, weighted), dim=-1)


def held_out_askers(data: RankingDataModule) -> dict[str, list[UserAndTime]]:
    """Return user and time of each query of every side but training.

    Raises:
        UserError: a query's timestamp is no number.
    """
    queries, askers = data.collection.queries, dict[str, list[UserAndTime]]()
    for name, side in data.split.sides.items():
        askers[name] = []
        for row in side.queries.tolist():
            user, time = (queries.metadata[row].get(key) for key in ("user_id", "timestamp"))
            if time is not None and (isinstance(time, bool) or not isinstance(time, int | float)):
                raise UserError(
                    f"the query '{one_line(queries.ids[row])}' has the timestamp {time!r}; give a number of seconds."
                )
            askers[name].append((None if user is None else str(user), time))
    return askers


def count_watchers(data: RankingDataModule) -> tuple[Rows, int]:
    """Count the learners who watched each video (N,) before the held-out queries, and all who watched any.

    Raises:
        NotApplicable: there are no interactions, or none before the held-out queries.
    """
    collection = data.collection
    watches = load_interactions(collection.path / "interactions.csv", collection.videos.row_of)
    askers = [asker for side in held_out_askers(data).values() for asker in side]
    keep = fittable_watches(watches, askers, data.split.cutoff)
    pairs = np.unique(np.stack([watches.item[keep], watches.user[keep]], axis=1), axis=0)  # (P, 2), each once
    counts = np.bincount(pairs[:, 0], minlength=len(collection.videos))
    return counts, len(np.unique(pairs[:, 1]))


def fittable_watches(watches: Interactions, askers: Iterable[UserAndTime], cutoff: float | None) -> NDArray[np.bool_]:
    """Mark the watches that a model may be fitted on, (I,).

    Those before the cutoff of the split, where it has one (`split=time`); of a learner who asks a held-out query only
    those before the first such query, and none where it has no time.

    Args:
        watches: all of them.
        askers: user and time of the held-out queries.
        cutoff: of the split.

    Raises:
        NotApplicable: there is no such watch.
    """
    position = {user: i for i, user in enumerate(watches.users)}
    limit = np.full(len(watches.users), np.inf if cutoff is None else cutoff)
    for user, time in askers:
        if user in position:
            limit[position[user]] = min(limit[position[user]], -np.inf if time is None else time)
    keep: NDArray[np.bool_] = watches.time < limit[watches.user]
    if not keep.any():
        raise NotApplicable("no interaction of the collection is before its held-out queries")
    return keep
