"""Training on labelled pairs: what models that learn from a positive and its negatives share."""

import torch
from torch import Tensor, nn

from dcdt.config import OptimizerConfig
from dcdt.data.tables import Tables
from dcdt.models.recommender import Recommender


class PairRecommender(Recommender):
    """A model that is trained on a positive and K negatives a query; subclasses say how a pair is measured.

    Args:
        tables: the frozen vectors.
        loss: takes distances or similarities (B, 1 + K), as its `measure` says, and labels.
        optimizer: learning rate, weight decay and schedule.
    """

    def __init__(self, tables: Tables, loss: nn.Module, optimizer: OptimizerConfig) -> None:
        super().__init__(tables, optimizer)
        self.loss = loss

    def match(self, queries: Tensor, videos: Tensor, place: Tensor) -> Tensor:
        """Distances or similarities, as the loss takes them, of B queries to 1 + K videos each.

        Args:
            queries: (B, D) frozen query vectors.
            videos: (F, U, D) frozen field vectors of the distinct videos of the batch.
            place: (B, 1 + K) positions among the U videos, the positive first.

        Returns:
            (B, 1 + K).
        """
        raise NotImplementedError

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Mean loss over the B x (1 + K) pairs of a batch of row numbers."""
        rows = torch.cat([batch["video"].unsqueeze(1), batch["negatives"]], dim=1)  # (B, 1 + K)
        distinct, place = torch.unique(rows, return_inverse=True)  # a video that stands there often is encoded once
        measured = self.match(self.tables.queries[batch["query"]], self.tables.videos[:, distinct], place)
        label = torch.zeros_like(measured)  # (B, 1 + K)
        label[:, 0] = 1
        loss: Tensor = self.loss(measured, label).mean()
        self.note_loss(loss.detach(), len(rows))
        return loss
