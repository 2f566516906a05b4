"""Training on labelled columns: what models that learn from positives and negatives share."""

import torch
from torch import Tensor, nn

from dcdt.config import OptimizerConfig
from dcdt.data.tables import Tables
from dcdt.losses.measures import dot
from dcdt.models.recommender import Recommender, query_batch


class PairRecommender(Recommender):
    """A model that is trained on labelled videos of each query; subclasses say how a pair is measured.

    Args:
        tables: the frozen vectors.
        loss: takes distances or similarities (B, C), as its `measure` says, and labels (`dcdt.losses`).
        optimizer: learning rate, weight decay and schedule.
    """

    def __init__(self, tables: Tables, loss: nn.Module, optimizer: OptimizerConfig) -> None:
        super().__init__(tables, optimizer)
        self.loss = loss

    def match(self, queries: Tensor, videos: Tensor, place: Tensor | None) -> Tensor:
        """Distances or similarities, as the loss takes them, of B queries to C videos each.

        Args:
            queries: (B, D) frozen query vectors.
            videos: (F, U, D) frozen field vectors of the distinct videos of the batch.
            place: (B, C) positions among the U videos; None: every query with all of them, C = U.

        Returns:
            (B, C).
        """
        raise NotImplementedError

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> Tensor:
        """Mean loss of a batch of row numbers.

        A batch holds `query` (B,) and either `video` (B,) and `negatives` (B, K), or `columns` (C,) that all its
        queries share with their `label` and `weight`, both (B, C).
        """
        queries, weight = self.tables.queries[batch["query"]], batch.get("weight")
        rows: Tensor
        if "columns" in batch:
            rows, label = batch["columns"], batch["label"]  # (C,), (B, C)
            measured = self.match(queries, self.tables.videos[:, rows], None)
        else:
            rows = torch.cat([batch["video"].unsqueeze(1), batch["negatives"]], dim=1)  # (B, 1 + K)
            distinct, place = torch.unique(rows, return_inverse=True)  # a video that stands there often: encoded once
            measured = self.match(queries, self.tables.videos[:, distinct], place)
            label = torch.zeros_like(measured)  # (B, 1 + K)
            label[:, 0] = 1
        teacher = self._frozen_cosine(queries, rows) if self.loss.taught else None
        loss: Tensor = self.loss(measured, label, weight, teacher).mean()
        self.note_loss(loss.detach(), len(queries))
        return loss

    def on_train_epoch_start(self) -> None:
        """Let the sampler mine with the towers as they stand, where it is due."""
        sampler = self.data.sampler
        if sampler is not None and sampler.due(self.current_epoch):
            self.eval()
            sampler.mine_again(self._current_scores)
            self.train()

    def facts(self) -> dict[str, float]:
        """What the sampler found out."""
        return self.data.sampler.facts() if self.data.sampler is not None else {}

    @torch.no_grad()
    def _current_scores(self, rows: Tensor) -> Tensor:
        """Scores (B, N) of the queries of these rows (B,)."""
        return self.score(query_batch(self.data.collection, self.tables, rows))

    def _frozen_cosine(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Frozen cosine of B queries and their videos, rows (B, C) or (C,) that all share: (B, C)."""
        asked, shown = nn.functional.normalize(queries, dim=-1), self.tables.frozen[rows]
        return asked @ shown.T if rows.ndim == 1 else dot(asked.unsqueeze(1), shown)
