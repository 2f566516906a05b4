"""The base class of all models: a LightningModule with validation, testing and the results of a run.

A model defines how it scores queries against the whole catalogue; everything after the score matrix is shared.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L
import torch
from torch import Tensor

from dcdt.config.registry import OPTIMIZERS, look_up
from dcdt.data.datamodule import RankingDataModule, SideTensors
from dcdt.data.histories import Histories
from dcdt.data.tables import BLOCK, Tables
from dcdt.data.types import Collection
from dcdt.evaluation.metric import RankingMetrics
from dcdt.evaluation.ranking import NaNScores, ranking_metrics, ranks_and_ties, top_k
from dcdt.models import hyperparameters
from dcdt.models.config import OptimizerConfig
from dcdt.models.optimizers import make_schedule
from dcdt.utils.errors import Diverged, UserError
from dcdt.utils.precision import HALF_DTYPES, at_least_float32
from dcdt.utils.transfer import to_device

MAX_STORED_SCORES = 20_000_000  # of a side; of larger sides only the top 100 of each query
TREC_DEPTH = 100
MAX_LOGGED_QUERIES = 64  # validation queries whose scores loggers are given, fewer in a large catalogue


@dataclass(frozen=True)
class QueryBatch:
    """The inputs of B queries; a model uses what it needs.

    Attributes:
        vectors: (B, D) frozen query vectors.
        texts: B texts.
        users: id of the asking user, or None.
        times: of asking, in seconds, or None.
        candidates: (C,) rows of the videos to rank, ascending; None for all.
        candidate_mask: (N,) the same as bool; None for all.
    """

    vectors: Tensor
    texts: Sequence[str]
    users: Sequence[str | None]
    times: Sequence[float | None]
    candidates: Tensor | None = None
    candidate_mask: Tensor | None = None


@dataclass
class SideResult:
    """The test results of one side, all on the CPU.

    Attributes:
        queries: (n,) query rows.
        metrics: per-query values (n,) by metric name.
        ties: (n,) 1 where a positive's score equals another candidate's.
        top: scores (n, k) and video rows (n, k) of the best videos.
        pairs: (m, 2) of score and label of the pair protocol, or None.
        scores: (n, N) all scores, or None above MAX_STORED_SCORES; -inf where a video is no candidate.
    """

    queries: Tensor
    metrics: dict[str, Tensor]
    ties: Tensor
    top: tuple[Tensor, Tensor]
    pairs: Tensor | None
    scores: Tensor | None


class Recommender(L.LightningModule):
    """Base of every model, trained or not.

    Subclasses define `score`; those that a Trainer fits define `training_step` and leave `trained_by_epochs` true, the
    others fit themselves in `on_prepare`; decoupled ones define `encode_queries` and `encode_videos`, and inherit
    `score`.

    `needs_question`: the model cannot rank without a question (`Collection.has_questions`).

    `starts_useful`: the untrained model is worth keeping: it is validated before training and kept if no epoch is
    better.

    Args:
        tables: the frozen vectors.
        optimizer: learning rate, weight decay and schedule; None for a model that is not trained.
    """

    trained_by_epochs: ClassVar[bool] = True
    decoupled: ClassVar[bool] = True
    reads_validation: bool = False  # whether validation queries are fitted too, and then scored as if left out
    starts_useful: ClassVar[bool] = False
    n_components: ClassVar[int] = 1  # number of score matrices of `component_scores`
    needs_question: bool = True
    reads_question: ClassVar[bool] = True  # whether scores depend on it
    supports_half_precision: ClassVar[bool] = False  # of its tables
    histories: Histories | None = None  # of all learners, where they are read
    neighbours: int = 1  # nearest videos by which a video's vector is smoothed, and their weight
    neighbour_weight: float = 0.0

    def __init__(self, tables: Tables, optimizer: OptimizerConfig | None = None) -> None:
        super().__init__()
        self.tables = tables
        self.optimizer_config = optimizer
        self.results: dict[str, SideResult] = {}
        self.logged_metrics: set[str] = set()  # validation metrics to log; empty: all
        self._vectors: Tensor | None = None
        self._losses: list[tuple[Tensor, int]] = []
        self.first_scores: Tensor | None = None  # (at most MAX_LOGGED_QUERIES, N) of the last validation
        self._is_prepared = self._is_loaded = False

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",  # noqa: ANN401 - torch's
        *,
        tables: Tables,
    ) -> Self:
        """Build the model of a checkpoint (`checkpoints/best.ckpt` of a run) with its weights.

        Args:
            checkpoint_path: of a run, or of Lightning's ModelCheckpoint; it is read with `weights_only=True`.
            map_location: of the weights, as torch.load takes it.
            tables: the frozen vectors of the fields that the model reads; they are in no checkpoint.

        Returns:
            The model, in evaluation mode.

        Raises:
            UserError: the checkpoint holds no hyperparameters (those of version 0.1 do not), or a model of another
                class.
        """
        state = torch.load(checkpoint_path, map_location=map_location, weights_only=True)
        model = hyperparameters.build_from(state.get("hyper_parameters"), tables)
        if not isinstance(model, cls):
            raise UserError(f"{checkpoint_path} holds a {type(model).__name__}, which is no {cls.__name__}.")
        model.load_state_dict(state["state_dict"])
        return model.eval()

    def prepare(self, data: RankingDataModule) -> None:
        """Fit what needs no gradient, by `on_prepare`; `setup` calls it where nothing has prepared the model before.

        Raises:
            NotApplicable: the collection lacks what the model needs.
        """
        self.on_prepare(data)
        self._is_prepared = True

    def on_prepare(self, data: RankingDataModule) -> None:
        """Fit what needs no gradient (an index, factors), before training or validation.

        Raises:
            NotApplicable: the collection lacks what the model needs.
        """

    @property
    def components(self) -> list["Recommender"]:
        """The models whose scores this one combines; itself where it combines none."""
        return [self]

    @property
    def has_attention(self) -> bool:
        """Whether queries weigh the fields of a video (`attention_weights`)."""
        return False

    def compile_step(self) -> None:
        """Compile the training step, if there is one (`trainer.compile`)."""

    def statistics(self) -> dict[str, float]:
        """Return figures of the fitted model (a chosen weight, cold queries), written into metrics.json."""
        return {}

    def score(self, queries: QueryBatch) -> Tensor:
        """Score B queries against all N videos, (B, N) fp32: higher is better."""
        return score_vectors(self.encode_queries(queries.vectors), self.video_vectors())

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """Score queries of rows (B,), which the model may have been fitted on, as if it had not: (B, N).

        Raises:
            UserError: the model was trained on them and cannot.
        """
        raise UserError(
            f"{type(self).__name__} cannot score its training queries as if they were new, as parts of model=two_stage "
            "and of model.tune_on=judged must.\nChoose another part, or model.tune_on=val."
        )

    def component_scores(self, queries: QueryBatch, rows: Tensor | None = None) -> list[Tensor]:
        """Compute the scores, and after them those of the model's components, (B, N) each; most models have none.

        Args:
            queries: B queries.
            rows: (B,) of the queries, to score them as if they had been left out of any fit.
        """
        return [self.score(queries) if rows is None else self.score_left_out(queries, rows)]

    def linear_query(self) -> Tensor | None:
        """Return the matrix (D, W) if `encode_queries` is a product with it and a normalisation, else None."""
        return None

    def encode_queries(self, vectors: Tensor) -> Tensor:
        """Encode frozen query vectors (B, D) as query vectors (B, W)."""
        raise NotImplementedError

    def encode_videos(self, fields: Tensor) -> Tensor:
        """Encode frozen field vectors (F, ..., D) as video vectors (..., W)."""
        raise NotImplementedError

    def field_contributions(self, fields: Tensor) -> dict[str, Tensor]:
        """Compute what each field adds to a video's vector, name to (..., W): the sum has the vector's direction."""
        return {"all fields": self.encode_videos(fields)}

    def video_vectors(self) -> Tensor:
        """Return the vectors of the whole catalogue (N, W), computed once until the weights change."""
        if self._vectors is None:
            videos = self.tables.videos
            if videos.dtype not in HALF_DTYPES:
                self._vectors = self.encode_videos(videos)
            else:  # block by block, so that there is no second table in memory
                self._vectors = self._encode_by_block(videos)
        return self._vectors

    def _encode_by_block(self, videos: Tensor) -> Tensor:
        """Encode a table (F, N, D) of half precision in fp32, (N, W)."""
        vectors: Tensor | None = None
        for start in range(0, videos.shape[1], BLOCK):
            block = self.encode_videos(videos[:, start : start + BLOCK].float())  # (b, W)
            if vectors is None:
                vectors = block.new_empty(videos.shape[1], block.shape[1])
            vectors[start : start + BLOCK] = block
        assert vectors is not None
        return vectors

    def silent_towers(self) -> list[str]:
        """Return the names of towers that output only zeros; a model without towers has none."""
        return []

    def train(self, mode: bool = True) -> "Recommender":
        """Switch between training and evaluation; the video vectors of a trained model are computed anew."""
        if self.trained_by_epochs:
            self._vectors = None
        return super().train(mode)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - torch's signature
        """Restore weights; the video vectors are computed anew."""
        self._vectors, self._is_loaded = None, True
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - torch's signature
        """Move or cast the weights; the video vectors are computed anew."""
        self._vectors = None
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def configure_optimizers(self) -> Any:  # noqa: ANN401 - Lightning's union
        """Make the configured optimizer and schedule; scalars (a log-temperature) have no weight decay."""
        config = self.optimizer_config
        assert config is not None
        scalars = [parameter for parameter in self.parameters() if not parameter.ndim]
        groups: list[dict[str, Any]] = [{"params": [parameter for parameter in self.parameters() if parameter.ndim]}]
        if scalars:
            groups.append({"params": scalars, "weight_decay": 0.0})
        optimizer = look_up(OPTIMIZERS, config.name)(groups, config)
        if config.schedule == "constant" and not config.warmup_steps:
            return optimizer
        schedule = make_schedule(optimizer, config, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def record_loss(self, loss: Tensor, n: int) -> None:
        """Add the mean loss of n pairs to that of the epoch, which is logged once, at its end."""
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
        """Move the vectors to the device of the trainer, where they stay, and prepare the model.

        Raises:
            NotApplicable: the collection lacks what the model needs.
        """
        device = self.trainer.strategy.root_device
        for module in self.modules():
            if isinstance(tables := getattr(module, "tables", None), Tables):
                tables.to(device)
        if not self._is_prepared:
            weights = copy.deepcopy(self.state_dict()) if self._is_loaded else None
            self.to(device)
            self.prepare(self.data)
            if weights is not None:  # preparing also fits what no checkpoint holds, such as how to leave a query out
                self.load_state_dict(weights)

    def on_validation_epoch_start(self) -> None:
        """Reset the validation metrics."""
        self._metrics = RankingMetrics(self.data.ks).to(self.device)

    def validation_step(self, positions: Tensor, batch_index: int) -> None:
        """Rank a chunk of validation queries."""
        side = self.data.sides["val"]
        scores, metrics, _ = self._rank(side, positions)
        if batch_index == 0:
            self.first_scores = scores[: max(8, min(MAX_LOGGED_QUERIES, 2**20 // scores.shape[1]))].detach().clone()
        self._metrics.update(side.queries[positions], metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the means of `logged_metrics`: each one costs as much as a step of a small run."""
        means = {f"val/{name}": value for name, value in self._metrics.compute().items()}
        self.log_dict(
            {name: value for name, value in means.items() if not self.logged_metrics or name in self.logged_metrics}
        )

    def on_test_epoch_start(self) -> None:
        """Reset the test results."""
        self.results = {}
        self._chunks: dict[str, list[tuple[Tensor, ...]]] = {}
        self._test_metrics: dict[str, RankingMetrics] = {}

    def test_step(self, positions: Tensor, batch_index: int, dataloader_idx: int = 0) -> None:
        """Rank a chunk of a side and collect its results."""
        side = list(self.data.sides.values())[dataloader_idx]
        scores, metrics, ties = self._rank(side, positions)
        collected = self._test_metrics.setdefault(side.name, RankingMetrics(self.data.ks).to(self.device))
        collected.update(side.queries[positions], metrics)
        fits_in_memory = len(side.queries) * scores.shape[1] <= MAX_STORED_SCORES
        all_scores = (
            scores if fits_in_memory else scores.new_empty(len(scores), 0)
        )  # a slice would hold all of them in memory
        results = (*self._best(side, scores), ties, all_scores, *_pair_scores(side, positions, scores))
        self._chunks.setdefault(side.name, []).append(results)  # on the device of the scores, until all chunks are done

    def on_test_epoch_end(self) -> None:
        """Gather the chunks of every side into `results`, and log the means, which `trainer.test` returns."""
        for name, chunks in self._chunks.items():
            side = self.data.sides[name]
            values, rows, ties, scores, *pairs = (torch.cat(tensors).cpu() for tensors in zip(*chunks, strict=True))
            queries, metrics = self._test_metrics[name].per_query()
            self.results[name] = SideResult(
                queries,
                metrics,
                ties,
                (values, rows),
                torch.stack(pairs, dim=1) if side.pairs is not None else None,
                scores if scores.shape[1] else None,
            )
            self.log_dict({f"{name}/{metric}": values.mean() for metric, values in metrics.items()})

    def predict_step(self, positions: Tensor, batch_index: int, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """Return the best videos of a chunk of test queries.

        Returns:
            Scores (B, k) and rows of the catalogue (B, k), best first, k at most 100.
        """
        side = self.data.sides["test"]
        return self._best(side, self._rank(side, positions)[0])

    def _best(self, side: SideTensors, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scores and rows of the best candidates, (B, k) each."""
        ties, depth = self.data.ties.on(scores.device), min(TREC_DEPTH, side.n_candidates)
        return top_k(scores, depth, ties, side.candidate_mask(scores.device))

    def _rank(self, side: SideTensors, positions: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Score a chunk in fp32, (B, N) on the device of the vectors, and rank it by `rank_side`."""
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


def score_vectors(queries: Tensor, videos: Tensor) -> Tensor:
    """Compute dot products (B, N) in fp32 of queries (B, W) with videos (N, W), which may be of half precision."""
    if videos.dtype not in HALF_DTYPES:
        return queries @ videos.T
    scores = queries.new_empty(len(queries), len(videos))
    for start in range(0, len(videos), BLOCK):
        scores[:, start : start + BLOCK] = queries @ videos[start : start + BLOCK].float().T
    return scores


def query_batch(collection: Collection, tables: Tables, rows: Tensor, side: SideTensors | None = None) -> QueryBatch:
    """Make the batch of the queries of rows (B,), on the CPU, with the candidates of a side, or with all videos."""
    queries, listed, vectors = collection.queries, rows.tolist(), tables.queries
    return QueryBatch(
        at_least_float32(vectors[to_device(rows, vectors.device)]),
        [queries.texts[row] for row in listed],
        [queries.metadata[row].get("user_id") for row in listed],
        [queries.metadata[row].get("timestamp") for row in listed],
        side.candidate_rows(vectors.device) if side is not None else None,
        side.candidate_mask(vectors.device) if side is not None else None,
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
        positive_grade: the lowest grade of a positive.
        ks: cut-offs.

    Returns:
        The scores, -inf where a video is no candidate of the query, on their device; on the CPU the metrics, name to
        (B,), and (B,) 1 where a positive has the score of another candidate.
    """
    device, removed = scores.device, side.removed[positions]
    candidates = side.candidate_mask(device)
    query, column = (removed >= 0).nonzero(as_tuple=True)
    if candidates is not None:
        scores = scores.masked_fill(~candidates, float("-inf"))
    elif len(query):
        scores = scores.clone()
    if len(query):
        scores[to_device(query, device), to_device(removed[query, column], device)] = float("-inf")
    judged, grades = side.judged[positions], side.grades[positions]
    ranks, tied = ranks_and_ties(scores, judged, ties, candidates)
    metrics = ranking_metrics(ranks, grades, positive_grade, ks)
    return scores, metrics, (tied & (grades >= positive_grade)).any(1).float()


def _pair_scores(side: SideTensors, positions: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores, on their device, and labels, on the CPU, of the pairs with a query in this chunk, (m,) each."""
    if side.pairs is None:
        return torch.zeros(0), torch.zeros(0)
    query, video, label = side.pairs.unbind(1)
    inside = (query >= positions[0]) & (query <= positions[-1])  # chunks are consecutive
    rows = to_device(query[inside] - positions[0], scores.device)
    return scores[rows, to_device(video[inside], scores.device)], label[inside].float()


def replace_rows(values: Tensor, rows: list[int], new: Tensor) -> Tensor:
    """Replace some rows of values (B, ...) by new ones (len(rows), ...) without waiting for the device."""
    return values.index_copy(0, to_device(torch.tensor(rows, dtype=torch.int64), values.device), new)
