"""The LightningModule that all models share: it owns validation, testing and what a run reports.

A model says how it scores queries against the whole catalogue; everything after the score matrix is here, once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from dcdt.data.datamodule import RankingDataModule, SideTensors
from dcdt.data.gather import HALVES, single
from dcdt.data.tables import BLOCK, Tables
from dcdt.data.types import Collection
from dcdt.evaluation.metric import RankingMetrics
from dcdt.evaluation.ranking import NaNScores, ranking_metrics, ranks_and_ties, top_k
from dcdt.models.config import OptimizerConfig
from dcdt.utils.errors import Diverged, UserError
from dcdt.utils.transfer import to_device

SCORES_LIMIT = 20_000_000  # (query, video) scores of a side that are kept whole; above it only the top 100
TREC_DEPTH = 100
SHOWN = 64  # validation queries whose scores are kept for those who look on, fewer in a large catalogue


@dataclass(frozen=True)
class QueryBatch:
    """What a question can carry; a model uses what it needs.

    Attributes:
        vectors: (B, D) frozen query vectors.
        texts: B texts.
        users: who asks, or None.
        times: when, in seconds, or None.
        candidates: (C,) rows of the videos among which it is ranked, ascending; None for all.
    """

    vectors: Tensor
    texts: Sequence[str]
    users: Sequence[str | None]
    times: Sequence[float | None]
    candidates: Tensor | None = None


@dataclass
class SideResult:
    """What testing one side leaves behind, all on the CPU.

    Attributes:
        queries: (n,) query rows.
        metrics: per-query values (n,) by metric name.
        ties: (n,) 1 where a positive's score equals another candidate's.
        top: scores (n, k) and video rows (n, k) of the best videos.
        pairs: (m, 2) of score and label of the pair protocol, or None.
        scores: (n, N) all scores, or None above SCORES_LIMIT; -inf where a video is no candidate.
    """

    queries: Tensor
    metrics: dict[str, Tensor]
    ties: Tensor
    top: tuple[Tensor, Tensor]
    pairs: Tensor | None
    scores: Tensor | None


class Recommender(L.LightningModule):
    """Base of every model, trained or not.

    Subclasses define `score`; those with something to fit define `training_step` and leave `fittable` true; decoupled
    ones define `encode_queries` and `encode_videos` and inherit `score`.

    `needs_question` says that a model has nothing to go by where nobody asks (`Collection.has_questions`).

    `starts_useful` says that the untrained model is worth keeping: it is validated before training and stays where no
    epoch is better.

    Args:
        tables: the frozen vectors.
        optimizer: learning rate, weight decay and schedule; None for a model that is not trained.
    """

    fittable: ClassVar[bool] = True
    decoupled: ClassVar[bool] = True
    reads_validation: bool = False  # whether validation queries are fitted too; they are then scored as if left out
    starts_useful: ClassVar[bool] = False
    n_parts: ClassVar[int] = 1  # score matrices of `score_parts`
    needs_question: bool = True
    reads_halves: ClassVar[bool] = False  # whether its tables may be of half precision

    def __init__(self, tables: Tables, optimizer: OptimizerConfig | None = None) -> None:
        super().__init__()
        self.tables = tables
        self.optimizer_config = optimizer
        self.results: dict[str, SideResult] = {}
        self.watched: set[str] = set()  # validation metrics to log; empty: all
        self._vectors: Tensor | None = None
        self._losses: list[tuple[Tensor, int]] = []
        self.first_scores: Tensor | None = None  # (at most SHOWN, N) of the last validation

    def prepare(self, data: RankingDataModule) -> None:
        """Fit what needs no gradient (an index, factors), once, before training or validation.

        Raises:
            NotApplicable: the collection lacks what the model needs.
        """

    def compile_step(self) -> None:
        """Compile a training step (`trainer.compile`); nothing where there is none."""

    def facts(self) -> dict[str, float]:
        """What the model found out about itself (a chosen weight, cold queries), written into metrics.json."""
        return {}

    def score(self, queries: QueryBatch) -> Tensor:
        """Scores of B queries against all N videos, (B, N) fp32: higher is better."""
        return products(self.encode_queries(queries.vectors), self.video_vectors())

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """Scores (B, N) of queries that the model may have been fitted on, rows (B,), as if it had not.

        Raises:
            UserError: the model was trained on them and cannot say.
        """
        raise UserError(
            f"{type(self).__name__} cannot score its training queries as if they were new, as parts of model=two_stage "
            "and of model.tune_on=judged must.\nChoose another part, or model.tune_on=val."
        )

    def score_parts(self, queries: QueryBatch, rows: Tensor | None = None) -> list[Tensor]:
        """The scores, and after them those of the parts that they were made from, (B, N) each; most models have none.

        Args:
            queries: B queries.
            rows: (B,) where they are to be scored as if they had been left out of any fit.
        """
        return [self.score(queries) if rows is None else self.score_left_out(queries, rows)]

    def linear_query(self) -> Tensor | None:
        """The matrix (D, W) where `encode_queries` is a product with it and a normalisation; None for all others."""
        return None

    def encode_queries(self, vectors: Tensor) -> Tensor:
        """Query vectors (B, W) of frozen vectors (B, D)."""
        raise NotImplementedError

    def encode_videos(self, fields: Tensor) -> Tensor:
        """Video vectors (..., W) of frozen field vectors (F, ..., D)."""
        raise NotImplementedError

    def video_parts(self, fields: Tensor) -> dict[str, Tensor]:
        """What each field adds to a video's vector, name to (..., W): their sum has the direction of the vector."""
        return {"all fields": self.encode_videos(fields)}

    def video_vectors(self) -> Tensor:
        """Vectors of the whole catalogue (N, W), computed once until the weights change again."""
        if self._vectors is None:
            videos = self.tables.videos
            if videos.dtype not in HALVES:
                self._vectors = self.encode_videos(videos)
            else:  # block by block, so that no second table stands in memory
                self._vectors = self._by_block(videos)
        return self._vectors

    def _by_block(self, videos: Tensor) -> Tensor:
        """Vectors (N, W) of a table (F, N, D) of half precision, encoded in fp32."""
        found: Tensor | None = None
        for start in range(0, videos.shape[1], BLOCK):
            part = self.encode_videos(videos[:, start : start + BLOCK].float())  # (b, W)
            if found is None:
                found = part.new_empty(videos.shape[1], part.shape[1])
            found[start : start + BLOCK] = part
        assert found is not None
        return found

    def silent_towers(self) -> list[str]:
        """Names of towers that output only zeros; a model without towers has none."""
        return []

    def train(self, mode: bool = True) -> "Recommender":
        """Switch between training and evaluation; either way vectors of a model that is trained are computed anew."""
        if self.fittable:
            self._vectors = None
        return super().train(mode)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - torch's signature
        """Restore weights; the catalogue's vectors are computed anew."""
        self._vectors = None
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - torch's signature
        """Move or cast the weights; the catalogue's vectors, which stay where they were, are computed anew."""
        self._vectors = None
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's union
        """AdamW; the schedule goes to 0 over all steps. Scalars (a log-temperature) do not decay."""
        config = self.optimizer_config
        assert config is not None
        scalars = [parameter for parameter in self.parameters() if not parameter.ndim]
        groups: list[dict[str, Any]] = [{"params": [parameter for parameter in self.parameters() if parameter.ndim]}]
        if scalars:
            groups.append({"params": scalars, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        if config.schedule == "constant":
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)
        schedule: torch.optim.lr_scheduler.LRScheduler
        if config.schedule == "linear":
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
        else:
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def note_loss(self, loss: Tensor, n: int) -> None:
        """Add the mean loss of n pairs to the epoch's, logged once: logging by step costs more than it tells."""
        self._losses.append((loss, n))
        if self.trainer.is_last_batch:
            weights = torch.tensor([size for _, size in self._losses], dtype=loss.dtype, device=loss.device)
            values = torch.stack([value for value, _ in self._losses])
            total, count = (values * weights).sum(), weights.sum()  # no product of matrices, which autocast would round
            if self.trainer.world_size > 1:
                total, count = self.trainer.strategy.reduce(torch.stack([total, count]), reduce_op="sum").unbind()
            mean = total / count
            self.log("train/loss", mean, on_step=False, on_epoch=True, batch_size=1)
            self._losses = []

    # Evaluation: the same for every model.

    @property
    def data(self) -> RankingDataModule:
        """The DataModule of the running trainer."""
        return self.trainer.datamodule  # type: ignore[attr-defined,no-any-return]

    def setup(self, stage: str) -> None:
        """Take the vectors to the device of the trainer, where they stay."""
        device = self.trainer.strategy.root_device
        for module in self.modules():
            if isinstance(tables := getattr(module, "tables", None), Tables):
                tables.to(device)

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self._metrics = RankingMetrics(self.data.ks).to(self.device)

    def validation_step(self, positions: Tensor, batch_index: int) -> None:
        """Rank one chunk of validation queries."""
        side = self.data.sides["val"]
        scores, metrics, _ = self._rank(side, positions)
        if batch_index == 0:
            self.first_scores = scores[: max(8, min(SHOWN, 2**20 // scores.shape[1]))].detach().clone()
        self._metrics.update(side.queries[positions], metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the means that are watched: each one costs as much as a step of a small run."""
        means = {f"val/{name}": value for name, value in self._metrics.compute().items()}
        self.log_dict({name: value for name, value in means.items() if not self.watched or name in self.watched})

    def on_test_epoch_start(self) -> None:
        """Forget earlier results."""
        self.results = {}
        self._parts: dict[str, list[tuple[Tensor, ...]]] = {}
        self._test_metrics: dict[str, RankingMetrics] = {}

    def test_step(self, positions: Tensor, batch_index: int, dataloader_idx: int = 0) -> None:
        """Rank one chunk of a side and keep what the run reports."""
        side = list(self.data.sides.values())[dataloader_idx]
        scores, metrics, ties = self._rank(side, positions)
        collected = self._test_metrics.setdefault(side.name, RankingMetrics(self.data.ks).to(self.device))
        collected.update(side.queries[positions], metrics)
        few = len(side.queries) * scores.shape[1] <= SCORES_LIMIT
        all_scores = scores if few else scores.new_empty(len(scores), 0)  # a slice would hold all of them in memory
        parts = (*self._best(side, scores), ties, all_scores, *_pair_scores(side, positions, scores))
        self._parts.setdefault(side.name, []).append(parts)  # where the scores are, until all chunks are done

    def on_test_epoch_end(self) -> None:
        """Gather the chunks of every side into `results`."""
        for name, chunks in self._parts.items():
            side = self.data.sides[name]
            values, rows, ties, scores, *pairs = (torch.cat(parts).cpu() for parts in zip(*chunks, strict=True))
            queries, metrics = self._test_metrics[name].per_query()
            self.results[name] = SideResult(
                queries,
                metrics,
                ties,
                (values, rows),
                torch.stack(pairs, dim=1) if side.pairs is not None else None,
                scores if scores.shape[1] else None,
            )

    def predict_step(self, positions: Tensor, batch_index: int, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """The best videos of a chunk of test queries.

        Returns:
            Scores (B, k) and rows of the catalogue (B, k), best first, k at most 100.
        """
        side = self.data.sides["test"]
        return self._best(side, self._rank(side, positions)[0])

    def _best(self, side: SideTensors, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and rows of the best candidates, (B, k) each."""
        ties, depth = self.data.ties.on(scores.device), min(TREC_DEPTH, side.n_candidates)
        return top_k(scores, depth, ties, side.mask_on(scores.device))

    def _rank(self, side: SideTensors, positions: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Scores (B, N) of a chunk where the vectors are, its metrics and ties as `rank_side`; always in fp32."""
        rows = side.queries[positions]
        with torch.autocast(self.device.type, enabled=False):
            queries = query_batch(self.data.collection, self.tables, rows, side)
            left_out = self.reads_validation and side.name == "val"
            scores = (self.score_left_out(queries, rows) if left_out else self.score(queries)).float()
        try:
            ties = self.data.ties.on(scores.device)
            return rank_side(side, positions, scores, ties, self.data.collection.positive_grade, self.data.ks)
        except NaNScores as error:
            if self.optimizer_config is None:
                raise
            raise Diverged.in_epoch(self.current_epoch, "the scores are NaN", self.optimizer_config.lr) from error


def products(asked: Tensor, videos: Tensor) -> Tensor:
    """Dot products (B, N) in fp32 of vectors (B, W) with a catalogue's (N, W), which may be of half precision."""
    if videos.dtype not in HALVES:
        return asked @ videos.T
    scores = asked.new_empty(len(asked), len(videos))
    for start in range(0, len(videos), BLOCK):
        scores[:, start : start + BLOCK] = asked @ videos[start : start + BLOCK].float().T
    return scores


def query_batch(collection: Collection, tables: Tables, rows: Tensor, side: SideTensors | None = None) -> QueryBatch:
    """What the queries of these rows (B,) of the CPU carry, ranked among the candidates of a side, or among all."""
    queries, listed, vectors = collection.queries, rows.tolist(), tables.queries
    return QueryBatch(
        single(vectors[to_device(rows, vectors.device)]),
        [queries.texts[row] for row in listed],
        [queries.metadata[row].get("user_id") for row in listed],
        [queries.metadata[row].get("timestamp") for row in listed],
        side.rows_on(vectors.device) if side is not None else None,
    )


def rank_side(
    side: SideTensors, positions: Tensor, scores: Tensor, ties: Tensor, positive_grade: float, ks: Sequence[int]
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Rank a chunk of a side among its candidates; the CPU waits once for scores on another device.

    Args:
        side: queries, candidates and judgments.
        positions: (B,) which of its queries, on the CPU.
        scores: (B, N) fp32, on any device.
        ties: (N,) from `tie_order`, on the same device.
        positive_grade: the least grade of a positive.
        ks: cut-offs.

    Returns:
        The scores with -inf where a video is no candidate of the query, where they were; on the CPU the metrics, name
        to (B,), and (B,) 1 where a positive has the score of another candidate.
    """
    device, removed = scores.device, side.removed[positions]
    candidates = side.mask_on(device)
    query, at = (removed >= 0).nonzero(as_tuple=True)
    if candidates is not None:
        scores = scores.masked_fill(~candidates, float("-inf"))
    elif len(query):
        scores = scores.clone()
    if len(query):
        scores[to_device(query, device), to_device(removed[query, at], device)] = float("-inf")
    judged, grades = side.judged[positions], side.grades[positions]
    ranks, tied = ranks_and_ties(scores, judged, ties, candidates)
    metrics = ranking_metrics(ranks, grades, positive_grade, ks)
    return scores, metrics, (tied & (grades >= positive_grade)).any(1).float()


def _pair_scores(side: SideTensors, positions: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores, where they are, and labels, on the CPU, of the pairs whose query is in this chunk, (m,) each."""
    if side.pairs is None:
        return torch.zeros(0), torch.zeros(0)
    query, video, label = side.pairs.unbind(1)
    inside = (query >= positions[0]) & (query <= positions[-1])  # chunks are consecutive
    rows = to_device(query[inside] - positions[0], scores.device)
    return scores[rows, to_device(video[inside], scores.device)], label[inside].float()


def replace_rows(values: Tensor, rows: list[int], new: Tensor) -> Tensor:
    """Values (B, ...) with others (len(rows), ...) in some rows; nothing waits for the device."""
    return values.index_copy(0, to_device(torch.tensor(rows, dtype=torch.int64), values.device), new)
