"""The base class of models that are trained on positives and negatives of each query."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dcdt.config import Named
from dcdt.data.datamodule import RankingDataModule, side_tensors
from dcdt.data.tables import Tables
from dcdt.losses.distances import chord
from dcdt.losses.similarities import dot, pairwise_dot
from dcdt.models.components import make_component, z_scores
from dcdt.models.config import OptimizerConfig
from dcdt.models.passages import best_rows
from dcdt.models.query_batch import query_batch
from dcdt.models.recommender import Recommender
from dcdt.samplers.base import explicit_batch
from dcdt.utils.precision import at_least_float32, autocast_off
from dcdt.utils.transfer import to_device

MAX_DRAWN_VIDEOS = 128  # whose passages are scored at once in training
MAX_VALIDATED_PAIRS = 1024  # positives, each beside its negatives, whose loss is computed at once in validation


class PairRecommender(Recommender):
    """A model that is trained on labelled videos of each query; subclasses define how a pair is measured.

    Args:
        tables: the frozen vectors.
        loss: takes distances or similarities (B, C), as its `measure` says, and labels (`dcdt.losses`).
        optimizer: learning rate, weight decay and schedule.

    Attributes:
        attends_candidates: whether similarities are logits of a softmax over a query's candidates (eq. 3). A loss that
            takes distances is given `1 - alpha`, as it is of every score in (0, 1).
    """

    validates_loss: ClassVar[bool] = True
    trains_passages: ClassVar[bool] = True  # else training reads the other fields
    matches_own_videos: ClassVar[bool] = False  # whether `match` takes videos (F, B, C, D) of each query
    attends_candidates: bool = False

    def __init__(self, tables: Tables, loss: nn.Module, optimizer: OptimizerConfig) -> None:
        super().__init__(tables, optimizer)
        self.loss = loss
        self._teacher_scores: Tensor | None = None  # (Q, N), Q query rows of the collection
        self._labels: Tensor | None = None  # (B, 1 + K) of a batch in which each query has its own videos

    def on_prepare(self, data: RankingDataModule) -> None:
        """Score training and validation queries by the loss's teacher, if it has one, fitted without each of them.

        The teacher's z-scores are scaled by the standard deviation of the query's frozen cosines.
        """
        config: Named | None = getattr(self.loss, "teacher", None)  # most losses have none
        if config is None:
            return
        teacher = make_component(config, self.tables, "loss=margin_mse").to(self.tables.device)
        teacher.prepare(data)
        device, frozen = self.tables.device, self.tables.frozen
        self._teacher_scores = torch.zeros(len(self.tables.queries), len(frozen), device=device)
        for side in (side_tensors("train", data.split.train, data.collection), data.sides["val"]):
            queries = query_batch(data.collection, self.tables, side.queries, side)
            z = z_scores(teacher.component_scores(queries, side.queries)[0].float(), queries.candidates)  # (U, N)
            candidates = frozen if queries.candidates is None else frozen[queries.candidates]  # (C, D)
            cosine = nn.functional.normalize(queries.vectors, dim=-1) @ at_least_float32(candidates).T  # (U, C)
            self._teacher_scores[to_device(side.queries, device)] = z * cosine.std(1, correction=0, keepdim=True)

    @property
    def measures_distance(self) -> bool:
        """Whether `match` returns distances."""
        return bool(self.loss.measure == "distance" and not self.attends_candidates)

    def match(self, queries: Tensor, videos: Tensor, position: Tensor | None) -> Tensor:
        """Compute similarities, or `sqrt(2 - 2 s)` if the loss takes distances, of B queries to C videos each.

        Subclasses that encode no vectors, or measure in another way, define their own.

        Args:
            queries: (B, D) frozen query vectors.
            videos: (F, U, D) frozen field vectors of the videos of the batch, or (F, B, C, D) of those of each query,
                where the model `matches_own_videos`.
            position: (B, C) index into the U videos; None: every query with all of them, C = U, or with its own.

        Returns:
            (B, C).
        """
        query_vectors, video_vectors = self.encode_queries(queries), self.encode_videos(videos)
        if videos.ndim == 4:
            similarity = dot(query_vectors.unsqueeze(1), video_vectors)  # (B, 1, W), (B, C, W) -> (B, C)
        else:
            similarity = pairwise_dot(query_vectors, video_vectors)  # (B, U)
        if position is not None:
            similarity = similarity.gather(1, position)  # (B, C)
        return chord(similarity) if self.measures_distance else similarity

    def query_inputs(self, rows: Tensor) -> Tensor:
        """Return what `match` takes of query rows (B,): their frozen vectors, (B, D)."""
        return self.tables.query_rows(rows)

    def video_inputs(self, rows: Tensor) -> Tensor:
        """Return what `match` takes of video rows (U,): their frozen field vectors, (F, U, D)."""
        return self.tables.video_rows(rows)

    def objective(
        self,
        queries: Tensor,
        videos: Tensor,
        position: Tensor | None,
        label: Tensor | None,
        weight: Tensor | None,
        teacher: Tensor | None,
        n_positives: int | None = None,
        drawn: Tensor | None = None,
    ) -> Tensor:
        """Compute the mean loss of the inputs of `match`; without labels (B, C) the first column is positive.

        Where passages were `drawn`, (B, C, M) false at padding, `match` measures M of each column.
        """
        measured = at_least_float32(self.match(queries, videos, position))
        if drawn is not None and self.pooling is not None:
            measured = self.pooling.pool_drawn(measured, drawn, self.measures_distance)
        if label is None:
            label, n_positives = self._label_first(measured), 1
        with autocast_off(measured):
            if self.attends_candidates and self.loss.measure == "distance":
                logits = (
                    measured if weight is None else measured + weight.masked_fill(label > 0, 1).log()
                )  # 0: no candidate
                measured = 1 - logits.softmax(-1)
            loss: Tensor = self.loss(measured, label, weight, teacher, n_positives).mean()
        return loss

    def _label_first(self, measured: Tensor) -> Tensor:
        """Label the first column of (B, 1 + K) as positive; labels of the same shape are made once."""
        compiles, last = torch.compiler.is_compiling(), self._labels
        like = (measured.shape, measured.device, measured.dtype)
        if last is not None and not compiles and like == (last.shape, last.device, last.dtype):
            return last
        labels = torch.zeros_like(measured, requires_grad=False)  # (B, 1 + K)
        labels[:, 0] = 1
        if not compiles:
            self._labels = labels
        return labels

    def compile_step(self) -> None:
        """Compile the computation of a step after its vectors are gathered, for batches of any size."""
        self.objective = torch.compile(self.objective, dynamic=True)  # type: ignore[method-assign]

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Compute the mean loss of a batch (`batch_loss`) and record it.

        With several processes each has a `share`, the weight of its loss, so that the mean of their gradients is that
        of the whole batch.
        """
        loss, share = self.batch_loss(batch), batch.get("share", 1.0)
        self.record_loss(loss.detach(), len(batch["query"]) if share else 0)
        return loss * share if "share" in batch else loss

    def batch_loss(self, batch: dict[str, Any]) -> Tensor:
        """Compute the mean loss of a batch of row numbers.

        A batch holds `query` (B,) and either `video` (B,) and `negatives` (B, K), with the `position` (B, 1 + K)
        of each among the `distinct` videos (U,), else in the catalogue; or `columns` (C,) that all its queries share,
        with their `label` and `weight`, (B, C), and `n_positives`, an upper bound. Nothing waits for the device.
        """
        queries, weight = self.query_inputs(batch["query"]), batch.get("weight")
        position: Tensor | None = batch.get("position")
        video_rows: Tensor | None = batch["columns"] if position is None else batch.get("distinct")
        teacher = None
        if self.loss.needs_teacher:
            rows: Any = video_rows if position is None else position if video_rows is None else video_rows[position]
            teacher = self._teacher_similarities(batch["query"], rows)
        if video_rows is None and position is not None:
            video_rows, position = self._rows_to_encode(position)
        drawn = None
        if video_rows is None:
            videos = self.tables.video_rows(None)  # (F, N, D)
        elif self.pooling is None or not self.trains_passages:
            videos = self.video_inputs(video_rows)  # (F, U, D), or (F, B, 1 + K, D)
        else:
            videos, position, drawn = self._draw_passages(queries, video_rows, position)
        label, n_positives = batch.get("label"), batch.get("n_positives")
        return self.objective(queries, videos, position, label, weight, teacher, n_positives, drawn)

    def _rows_to_encode(self, position: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Choose which videos to encode, of rows of the catalogue (B, C), so that neither CPU nor device waits.

        Returns:
            None and the rows, where the catalogue has no more videos than there are rows: all of it is encoded, and
            nothing gathered. The rows and None, where it has more: each is encoded as often as it occurs. The distinct
            ones (U,), and the position of each among them (B, C), for a model that does not match videos of each
            query, or that waits anyway.
        """
        waits = self.pooling is not None or self.reads_tokens
        if not waits and self.tables.videos.shape[1] <= position.numel():
            return None, position
        if not waits and self.matches_own_videos:
            return position, None
        distinct, among_distinct = torch.unique(position, return_inverse=True)
        return distinct, among_distinct

    def validation_loss(self) -> Tensor | None:
        """Compute the mean loss of the stored pairs of the validation side, each positive beside its negatives."""
        rows, device = self.data.sides["val"].pair_rows, self.tables.device
        if rows is None or not len(rows):
            return None
        total = torch.zeros((), device=device)
        with torch.inference_mode(False), torch.no_grad():  # the tables' buffers are used again in training
            for block in torch.split(rows, MAX_VALIDATED_PAIRS):
                batch: dict[str, Any] = explicit_batch(block.clamp(min=0), device)
                batch["weight"] = to_device((block[:, 1:] >= 0).float(), device)  # 0 at padding
                total = total + self.batch_loss(batch) * len(block)
        return total / len(rows)

    @torch.no_grad()
    def _draw_passages(self, queries: Tensor, videos: Tensor, position: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Draw for each pair the passages that the present model finds best: of positives and of hard negatives alike.

        Returns:
            Field vectors of the distinct passages (F, U', D), the position of the passages of each pair (B, C * M), and
            which of them are there (B, C, M). The CPU waits for the device, to count the distinct ones.
        """
        assert self.pooling is not None and self.tables.passages is not None
        n_drawn, passages, best_of_blocks = self.pooling.n_drawn, self.tables.passages, []
        is_training = self.training
        if is_training:  # else the vectors of the catalogue are kept
            self.eval()
        query_vectors = at_least_float32(self.encode_queries(queries))  # (B, W)
        for block in torch.split(videos, MAX_DRAWN_VIDEOS):
            parts = [torch.arange(rows.start, rows.stop) for rows in map(passages.rows_of, block.tolist())]
            video = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
            rows = torch.cat(parts).to(videos.device)  # (r,)
            scores = query_vectors @ at_least_float32(self.encode_passages(rows)).T  # (B, r)
            best = best_rows(scores, video.to(videos.device), len(block), n_drawn)  # (B, b, M)
            best_of_blocks.append(torch.where(best < 0, -1, rows[best]))
        if is_training:
            self.train()
        drawn = torch.cat(best_of_blocks, dim=1)  # (B, U, M)
        if position is not None:
            drawn = drawn.gather(1, position.unsqueeze(-1).expand(-1, -1, n_drawn))  # (B, C, M)
        distinct, where = torch.unique(drawn.clamp(min=0), return_inverse=True)
        return self.tables.passage_rows(distinct), where.flatten(1), drawn >= 0

    def on_train_epoch_start(self) -> None:
        """Let the sampler mine with the current towers in the epochs in which it wants to."""
        sampler = self.data.sampler
        if sampler is not None and sampler.should_refresh(self.current_epoch):
            self.eval()
            sampler.refresh(self._current_scores)
            self.train()

    def statistics(self) -> dict[str, float]:
        """Return the figures of the sampler."""
        return self.data.sampler.statistics() if self.data.sampler is not None else {}

    @torch.no_grad()
    def _current_scores(self, rows: Tensor) -> Tensor:
        """Score the queries of these rows (B,): (B, N)."""
        return self.score(query_batch(self.data.collection, self.tables, rows))

    def _teacher_similarities(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Return the teacher's similarities (B, C) of queries (B,) to their videos (B, C), or to shared videos (C,)."""
        if self._teacher_scores is not None:
            self._teacher_scores = self._teacher_scores.to(rows.device)
            scores = self._teacher_scores[queries]  # (B, N)
            return scores[:, rows] if rows.ndim == 1 else scores.gather(1, rows)
        query_vectors = nn.functional.normalize(at_least_float32(self.tables.queries[queries]), dim=-1)
        video_vectors = at_least_float32(self.tables.frozen[rows])
        return (
            pairwise_dot(query_vectors, video_vectors)
            if rows.ndim == 1
            else dot(query_vectors.unsqueeze(1), video_vectors)
        )
