"""The base class of all samplers: every training pair has negatives of its own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dcdt.samplers.pool import CPU, TrainingPool
from dcdt.utils.transfer import to_device

Score = Callable[[Tensor], Tensor]  # from query rows (B,) to the current scores of all videos (B, N)


class Sampler:
    """Draw negatives for every training pair; subclasses say which.

    Args:
        pool: pairs, candidates and forbidden negatives.
    """

    weighs_positives = False

    def __init__(self, pool: TrainingPool) -> None:
        self.pool, self.weighs_positives = pool, bool(pool.weights)

    @property
    def pairs(self) -> Tensor:
        """Query and video rows of an epoch, (R, 2)."""
        return self.pool.pairs

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw the video rows of the negatives of every pair, (R, K)."""
        raise NotImplementedError

    def batch(self, rows: Tensor, global_rows: Tensor | None = None, device: torch.device = CPU) -> dict[str, Any]:
        """Make a training batch of rows (B, 2 + K) on a device; `global_rows`: those of all processes together."""
        batch = explicit_batch(rows, device)
        if self.weighs_positives:
            weight = torch.ones(len(rows), rows.shape[1] - 1)
            weight[:, 0] = self.pool.weigh(rows[:, :2])
            batch["weight"] = to_device(weight, device)
        return batch

    def should_refresh(self, epoch: int) -> bool:
        """Return whether `refresh` must be called before this epoch."""
        return False

    def refresh(self, score: Score) -> None:
        """Mine anew with the current scores of the model."""

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""

    def statistics(self) -> dict[str, float]:
        """Return figures about the negatives, written into metrics.json."""
        return {}


def explicit_batch(rows: Tensor, device: torch.device = CPU) -> dict[str, Tensor]:
    """Make a batch of rows (B, 2 + K) of query, video and negatives.

    On the CPU with the `distinct` videos (U,), each of which is encoded once, and the `position` (B, 1 + K) of each
    row's videos among them. Elsewhere the position is that in the catalogue: rows are sent in one copy, all shapes are
    those of the rows, and neither CPU nor device waits for a list of distinct videos.
    """
    rows = to_device(rows, device)
    batch = {"query": rows[:, 0], "video": rows[:, 1], "negatives": rows[:, 2:], "position": rows[:, 1:]}
    if device.type == "cpu":
        batch["distinct"], batch["position"] = torch.unique(rows[:, 1:], return_inverse=True)
    return batch
