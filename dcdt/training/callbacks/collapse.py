"""Warn when the towers give all videos the same vector, or output only zeros."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from dcdt.data.tables import BLOCK
from dcdt.models.recommender import Recommender


class CollapseAlarm(L.Callback):
    """Warns once when the mean pairwise cosine of the video vectors passes a limit or a tower outputs only zeros.

    Args:
        limit: mean cosine from which the vectors count as collapsed (0.99).
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.warned: set[str] = set()

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, module: Recommender) -> None:  # type: ignore[override]
        """Check the vectors that validation just used."""
        if trainer.sanity_checking or not module.decoupled:
            return
        cosine = mean_pairwise_cosine(module.video_vectors())
        if cosine > self.limit:
            self._warn(
                "collapse",
                f"epoch {trainer.current_epoch}: the video vectors have collapsed: their mean pairwise cosine is "
                f"{cosine:.3f} (alarm at {self.limit}). Lower optimizer.lr, or choose another loss or margin.",
            )
        for name in module.silent_towers():
            self._warn(
                name,
                f"epoch {trainer.current_epoch}: the tower of '{name}' outputs only zeros: all its ReLUs are dead. "
                "Lower optimizer.lr or model.dropout.",
            )

    def state_dict(self) -> dict[str, Any]:
        """The warnings given so far, for a run that is resumed."""
        return {"warned": sorted(self.warned)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them from a state, so that none is repeated."""
        self.warned = set(state_dict["warned"])

    def _warn(self, key: str, message: str) -> None:
        if key not in self.warned:
            self.warned.add(key)
            rank_zero_warn(message, category=UserWarning)


def mean_pairwise_cosine(vectors: Tensor) -> float:
    """Mean cosine over all pairs of different rows of (N, W), in one pass: (|sum|^2 - N) / (N (N - 1))."""
    n, squares = len(vectors), []
    total = vectors.new_zeros(vectors.shape[1], dtype=torch.float32)
    for block in torch.split(vectors, BLOCK):  # no copy of a large catalogue
        unit = torch.nn.functional.normalize(block.float(), dim=-1)
        total += unit.sum(0)
        squares.append(unit.square().sum())
    first, *rest = torch.stack([total.square().sum(), *squares]).tolist()  # the one wait for the device
    return (first - sum(rest)) / (n * (n - 1)) if n > 1 else 0.0
