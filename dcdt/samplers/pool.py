"""The pool that a sampler draws from, and drawing without replacement for many rows at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dcdt.data.splits import Split
from dcdt.data.tables import pad_lists
from dcdt.data.types import Collection, positives_by_query
from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

CPU = torch.device("cpu")


@dataclass(frozen=True)
class TrainingPool:
    """Training pairs and, for each training query, the videos that may never be its negative.

    Attributes:
        pairs: (P, 2) query row, video row.
        queries: (U,) the distinct query rows of the pairs.
        owner: (P,) position in `queries` of each pair's query.
        candidates: (C,) video rows that training may see.
        forbidden: (U, F) ascending positions in `candidates`, padded with C.
        device: of the search for hard negatives.
        weights: of positives in the loss, by query and video row; others weigh 1 (`Collection.weights`).
    """

    pairs: Tensor
    queries: Tensor
    owner: Tensor
    candidates: Tensor
    forbidden: Tensor
    device: torch.device = CPU
    weights: dict[int, dict[int, float]] = field(default_factory=dict)

    def weigh(self, pairs: Tensor) -> Tensor:
        """Look up the weights (B,) of training pairs (B, 2)."""
        return torch.tensor([self.weights.get(query, {}).get(video, 1.0) for query, video in pairs.tolist()])

    @property
    def free(self) -> Tensor:
        """Number of candidates that may be a negative of each query, (U,)."""
        return len(self.candidates) - (self.forbidden < len(self.candidates)).sum(1)


def training_pool(collection: Collection, split: Split, device: torch.device = CPU) -> TrainingPool:
    """Build the pool of a split: videos related to a query, and videos with the text of one, are forbidden.

    Raises:
        UserError: a training query has no unrelated video.
    """
    candidates = np.flatnonzero(split.train.candidates)
    position = np.full(len(collection.videos), -1, dtype=np.int64)
    position[candidates] = np.arange(len(candidates))
    queries, owner = np.unique(split.pairs[:, 0], return_inverse=True)
    lists = []
    for query, rows in zip(queries.tolist(), related_videos(collection, queries.tolist()), strict=True):
        lists.append(sorted(int(position[row]) for row in rows if position[row] >= 0))
        if len(lists[-1]) >= len(candidates):
            name = collection.queries.ids[query]
            raise UserError(
                f"query '{one_line(name)}' is related to all {len(candidates)} videos of training: "
                "it has no negative. Remove it."
            )
    return TrainingPool(
        torch.from_numpy(split.pairs),
        torch.from_numpy(queries),
        torch.from_numpy(owner.reshape(-1)),
        torch.from_numpy(candidates),
        pad_lists(lists, fill=len(candidates)),
        device,
        collection.weights,
    )


def related_videos(collection: Collection, queries: Sequence[int]) -> list[set[int]]:
    """Find for each query row the videos that are no negative of it, and those with the text of one."""
    twins = collection.duplicates
    related = positives_by_query(collection.never_negative, len(collection.queries))
    return [{twin for video in related[query] for twin in twins.get(video, [video])} for query in queries]


def draw_distinct(counts: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Draw k distinct numbers below its count for each row, uniformly (Floyd's algorithm, all rows at once).

    A row whose count is below k gets every number at least once and repeats the rest.

    Args:
        counts: (n,) at least 1.
        k: how many to draw.
        generator: source of randomness, on the CPU.

    Returns:
        (n, k) int64.
    """
    drawn = torch.full((len(counts), k), -1, dtype=torch.int64)
    for step in range(k):
        top = (counts - k + step).clamp(min=0)  # the largest number this step may draw
        number = (torch.rand(len(counts), generator=generator, dtype=torch.float64) * (top + 1)).long().clamp(max=top)
        is_drawn = (drawn[:, :step] == number[:, None]).any(1)
        drawn[:, step] = torch.where(is_drawn, top, number)
    too_few = counts < k
    if too_few.any():
        drawn[too_few] = torch.arange(k)[None, :] % counts[too_few, None]
    return drawn
