"""Training on labelled columns: what models that learn from positives and negatives share."""

from typing import Any

import torch
from torch import Tensor, nn

from dcdt.config import Named
from dcdt.data.datamodule import RankingDataModule, side_tensors
from dcdt.data.gather import single
from dcdt.data.tables import Tables
from dcdt.losses.measures import dot, dot_products, full_precision, wide
from dcdt.models.config import OptimizerConfig
from dcdt.models.parts import make_part, z_scores
from dcdt.models.recommender import Recommender, query_batch
from dcdt.utils.transfer import to_device


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
        self._taught: Tensor | None = None  # (Q, N) what a teacher says, Q query rows of the collection

    def prepare(self, data: RankingDataModule) -> None:
        """Let the loss's teacher score the training queries, as if it had not seen them, where it has one.

        A z-score of the teacher is worth the standard deviation of the query's frozen cosines.
        """
        config: Named | None = getattr(self.loss, "teacher", None)  # most losses have none
        if config is None:
            return
        teacher = make_part(config, self.tables, "loss=margin_mse").to(self.tables.device)
        teacher.prepare(data)
        side = side_tensors("train", data.split.train, data.collection)
        device, frozen = self.tables.device, self.tables.frozen
        queries = query_batch(data.collection, self.tables, side.queries, side)
        z = z_scores(teacher.score_parts(queries, side.queries)[0].float(), queries.candidates)  # (U, N)
        candidates = frozen if queries.candidates is None else frozen[queries.candidates]  # (C, D)
        cosine = nn.functional.normalize(queries.vectors, dim=-1) @ single(candidates).T  # (U, C)
        self._taught = torch.zeros(len(self.tables.queries), z.shape[1], device=device)
        self._taught[to_device(side.queries, device)] = z * cosine.std(1, correction=0, keepdim=True)

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

    def objective(
        self,
        queries: Tensor,
        videos: Tensor,
        place: Tensor | None,
        label: Tensor | None,
        weight: Tensor | None,
        teacher: Tensor | None,
        n_positives: int | None = None,
    ) -> Tensor:
        """Mean loss of gathered vectors, as `match` takes them; without labels (B, C) the first column is positive."""
        measured = wide(self.match(queries, videos, place))
        if label is None:
            label = torch.zeros_like(measured)  # (B, 1 + K)
            label[:, 0], n_positives = 1, 1
        with full_precision(measured):
            loss: Tensor = self.loss(measured, label, weight, teacher, n_positives).mean()
        return loss

    def compile_step(self) -> None:
        """Let torch compile what a step computes once its vectors are gathered, for batches of any size."""
        self.objective = torch.compile(self.objective, dynamic=True)  # type: ignore[method-assign]

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Mean loss of a batch of row numbers.

        A batch holds `query` (B,) and either `video` (B,) and `negatives` (B, K), with the `distinct` videos (U,) and
        the `place` of each (B, 1 + K), or `columns` (C,) that all its queries share with their `label` and `weight`,
        both (B, C), and `n_positives`, which no query exceeds. Of several processes each has a `share`: what its loss
        counts, so that the mean of their gradients is that of the whole batch. Nothing here waits for the device.
        """
        queries, weight = self.tables.query_rows(batch["query"]), batch.get("weight")
        rows: Tensor
        if "columns" in batch:
            rows, place, shown = batch["columns"], None, batch["columns"]  # (C,)
        else:
            rows = torch.cat([batch["video"].unsqueeze(1), batch["negatives"]], dim=1)  # (B, 1 + K)
            place, shown = batch["place"], batch["distinct"]
        teacher = self._teacher(batch["query"], rows) if self.loss.taught else None
        videos = self.tables.video_rows(shown)  # (F, U, D)
        loss = self.objective(queries, videos, place, batch.get("label"), weight, teacher, batch.get("n_positives"))
        share = batch.get("share", 1.0)
        self.note_loss(loss.detach(), len(queries) if share else 0)
        return loss * share if "share" in batch else loss

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

    def _teacher(self, queries: Tensor, rows: Tensor) -> Tensor:
        """What the teacher says of queries (B,) and their videos (B, C), or (C,) that all share: (B, C)."""
        if self._taught is not None:
            self._taught = self._taught.to(rows.device)
            said = self._taught[queries]  # (B, N)
            return said[:, rows] if rows.ndim == 1 else said.gather(1, rows)
        asked = nn.functional.normalize(single(self.tables.queries[queries]), dim=-1)
        shown = single(self.tables.frozen[rows])
        return dot_products(asked, shown) if rows.ndim == 1 else dot(asked.unsqueeze(1), shown)
