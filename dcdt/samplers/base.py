"""What samplers have in common: one that gives every training pair negatives of its own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dcdt.samplers.pool import CPU, TrainingPool
from dcdt.utils.transfer import to_device

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

    def batch(self, rows: Tensor, whole: Tensor | None = None, device: torch.device = CPU) -> dict[str, Any]:
        """What a model trains on, on its device, of B rows (B, 2 + K), which several processes took from `whole`."""
        return explicit_batch(rows, device)

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


def explicit_batch(rows: Tensor, device: torch.device = CPU) -> dict[str, Tensor]:
    """A batch of rows (B, 2 + K) of query, video and negatives.

    The `distinct` videos (U,), each of which is encoded once, and the `place` (B, 1 + K) of each row's videos among
    them are found on the CPU: how many they are is then known without waiting for the device.
    """
    distinct, place = torch.unique(rows[:, 1:], return_inverse=True)
    parts = {"query": rows[:, 0], "video": rows[:, 1], "negatives": rows[:, 2:], "distinct": distinct, "place": place}
    return {name: to_device(part, device) for name, part in parts.items()}
