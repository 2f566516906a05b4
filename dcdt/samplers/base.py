"""What samplers have in common: one that gives every training pair negatives of its own."""

from collections.abc import Callable

import torch
from torch import Tensor

from dcdt.samplers.pool import TrainingPool

Score = Callable[[Tensor], Tensor]  # query rows (B,) to the current scores of all videos (B, N)


class Sampler:
    """Gives every training pair negatives of its own; subclasses say which.

    Args:
        pool: pairs, candidates and what is forbidden.
    """

    def __init__(self, pool: TrainingPool) -> None:
        self.pool = pool

    @property
    def pairs(self) -> Tensor:
        """(R, 2) query and video row: what an epoch goes through."""
        return self.pool.pairs

    def draw(self, generator: torch.Generator) -> Tensor:
        """Video rows of the negatives of every pair, (R, K)."""
        raise NotImplementedError

    def batch(self, rows: Tensor, whole: Tensor | None = None) -> dict[str, Tensor]:
        """What a model trains on, of B rows (B, 2 + K), which several processes took from those of `whole`."""
        return {"query": rows[:, 0], "video": rows[:, 1], "negatives": rows[:, 2:]}

    def due(self, epoch: int) -> bool:
        """Whether `mine_again` is wanted before this epoch."""
        return False

    def mine_again(self, score: Score) -> None:
        """Take the current scores of the model into account."""

    def state(self) -> dict[str, Tensor]:
        """What it has learned while training, for a run that is resumed."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take up again what `state` gave."""

    def facts(self) -> dict[str, float]:
        """What the sampler found out, written into metrics.json."""
        return {}
