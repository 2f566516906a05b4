"""The base class of all models: a LightningModule with validation, testing and the results of a run.

A model defines how it scores queries against the whole catalogue; everything after the score matrix is shared.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L
import torch
from torch import Tensor

from dcdt.config.registry import OPTIMIZERS, look_up
from dcdt.data.datamodule import RankingDataModule, SideTensors
from dcdt.data.histories import Histories
from dcdt.data.tables import BLOCK, Tables
from dcdt.data.transcripts import TRANSCRIPT
from dcdt.evaluation.metric import RankingMetrics
from dcdt.evaluation.ranking import NaNScores
from dcdt.models import hyperparameters
from dcdt.models.config import OptimizerConfig
from dcdt.models.optimizers import make_schedule
from dcdt.models.passages import Pooling
from dcdt.models.query_batch import QueryBatch, query_batch
from dcdt.models.ranking import ResultCollector, SideResult, best_candidates, rank_side
from dcdt.models.sums import Sums
from dcdt.utils.errors import Diverged, UserError
from dcdt.utils.precision import HALF_DTYPES, at_least_float32

MAX_PASSAGE_ROWS, MAX_PASSAGE_SCORES = 4_096, 2**22  # of a block of passages: rows, and similarities with queries
MAX_LOGGED_QUERIES = 64  # validation queries whose scores loggers are given, fewer in a large catalogue


class Recommender(L.LightningModule):
    """Base of every model, trained or not.

    Subclasses define `score`; those that a Trainer fits define `training_step` and leave `trained_by_epochs` true, the
    others fit themselves in `on_prepare`; decoupled ones define `encode_queries` and `encode_videos`, and inherit
    `score`.

    A model is made from its configuration and the tables; one that a Trainer fits also from the loss and the optimizer.

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
    validates_loss: ClassVar[bool] = False  # whether `val/loss` is logged
    needs_question: bool = True
    reads_question: ClassVar[bool] = True  # whether scores depend on it
    supports_half_precision: ClassVar[bool] = False  # of its tables
    reads_tokens: ClassVar[bool] = False  # of all texts (`Tables.tokens`)
    fits_from_sums: bool = False  # whether sums over queries suffice to fit it, or nothing is fitted (`sum_training`)
    adds_passages: ClassVar[bool] = False  # whether their similarity is added to that of the other fields as one vector
    stretches: Sequence[tuple[int, int]] = ()  # [start, end) of a served vector that the model reads; empty: all
    histories: Histories | None = None  # of all learners, where they are read
    units: Histories | None = None  # the unit of each watch in place of its video, where units are told apart
    neighbours: int = 1  # nearest videos by which a video's vector is smoothed, and their weight
    neighbour_weight: float = 0.0

    def __init__(self, tables: Tables, optimizer: OptimizerConfig | None = None) -> None:
        super().__init__()
        self.tables = tables
        self.optimizer_config = optimizer
        self.results: dict[str, SideResult] = {}
        self.logged_metrics: set[str] = set()  # validation metrics to log; empty: all
        self._vectors: Tensor | None = None
        self.pooling: Pooling | None = None  # of the similarities of a video's passages; None: a video is one vector
        self._passages: tuple[Tensor, Tensor] | None = None  # `_vectors` and the passages' (P, W) of the same weights
        self._others: tuple[Tensor, Tensor] | None = None  # likewise of the fields beside the transcript, (N, W)
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

    # Fitting from sums over queries that lie in several places, of models with `fits_from_sums` (dcdt.federation).

    @property
    def fitted_part(self) -> "Recommender":
        """The component that is fitted from sums; itself where the model combines none."""
        return self

    def check_fits_from_sums(self, option: str) -> None:
        """Raise UserError, naming the option, for a model that is not fitted from sums."""
        if not self.fits_from_sums or not self.fitted_part.sum_shapes():
            raise UserError(
                f"model={option} is not fitted from sums over queries.\n"
                "Choose dcdt_ridge, hybrid_towers, or collaborative with model.kind=ease."
            )

    def sum_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each sum of `sum_training`; none where nothing is fitted."""
        return {}

    def loss_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each sum of `sum_losses`; none where nothing is chosen."""
        return {}

    def sum_training(self, data: RankingDataModule, clip: int | None = None) -> Sums:
        """Sum what the fit needs of the training queries, a learner counting as at most `clip` queries (or watches)."""
        raise NotImplementedError

    def sum_losses(self, data: RankingDataModule, sums: dict[str, Tensor], clip: int | None = None) -> Sums:
        """Sum the quality of each candidate value over the queries, which are part of `sums`, each left out."""
        raise NotImplementedError

    def candidates(self, data: RankingDataModule, sums: dict[str, Tensor], clip: int | None) -> Iterator[float]:
        """Fit with each candidate value in turn, and yield its quality as in `sum_losses`."""
        raise NotImplementedError

    def fit_sums(
        self, data: RankingDataModule, sums: dict[str, Tensor], losses: dict[str, Tensor], included: bool
    ) -> int:
        """Fit as `prepare` does, and return the position of the candidate value with the best losses.

        `included`: the queries of `data` are part of the sums, and can be scored as if left out.
        """
        raise NotImplementedError

    def check_sums(self, sums: dict[str, Tensor], n: int) -> None:
        """Raise ValueError for sums that no n queries have; n is 0 where noise hides it."""

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
        return self.score_encoded(self.encode_queries(queries.vectors))

    def score_encoded(self, queries: Tensor) -> Tensor:
        """Score encoded queries (B, W) against all N videos, (B, N); passages block by block, never (B, P) at once."""
        if self.pooling is None:
            return score_vectors(queries, self.video_vectors())
        assert self.tables.passages is not None
        passages = self.tables.passages
        scores = queries.new_empty(len(queries), len(passages.offsets) - 1)
        for videos, rows in passages.blocks(min(MAX_PASSAGE_ROWS, max(1, MAX_PASSAGE_SCORES // max(len(queries), 1)))):
            similarity = queries @ self.passage_vectors(rows).T  # (B, r)
            video = passages.video[rows] - videos.start
            scores[:, videos] = self.pooling(similarity, video, videos.stop - videos.start)
        return scores + queries @ self.other_vectors().T if self.adds_passages else scores

    def passage_scores(self, queries: QueryBatch, video: int) -> Tensor | None:
        """Score the passages of one video, (B, p); None where the model does not tell them apart."""
        if self.pooling is None or self.tables.passages is None:
            return None
        vectors = self.passage_vectors(self.tables.passages.rows_of(video))
        return self.encode_queries(queries.vectors) @ vectors.T

    def passage_vectors(self, rows: slice) -> Tensor:
        """Return the vectors of passages (r, W), computed once until the weights change, unless of half precision."""
        assert self.tables.passages is not None
        if self.tables.videos.dtype in HALF_DTYPES:
            return self.encode_passages(rows)
        videos = self.video_vectors()
        if self._passages is None or self._passages[0] is not videos:
            n = len(self.tables.passages.vectors)
            self._passages = videos, _encode_by_block(n, MAX_PASSAGE_ROWS, self.encode_passages)
        return self._passages[1][rows]

    def encode_passages(self, rows: slice | Tensor) -> Tensor:
        """Encode passages (r, W), each with the other fields of its video unless their similarity is added."""
        if self.adds_passages and self.tables.passages is not None:
            return self.encode_videos(at_least_float32(self.tables.passages.vectors[rows]).unsqueeze(0))
        return self.encode_videos(self.tables.passage_rows(rows))

    def other_vectors(self) -> Tensor:
        """Return the vectors of the fields beside the transcript (N, W), computed once until the weights change."""
        videos = self.video_vectors()
        if self._others is None or self._others[0] is not videos:
            self._others = videos, self.encode_others()
        return self._others[1]

    def encode_others(self) -> Tensor:
        """Encode the fields of all videos beside the transcript, (N, W); zeros where there are none."""
        names = zip(self.tables.videos, self.tables.fields, strict=True)
        layers = [layer for layer, name in names if name != TRANSCRIPT] or [torch.zeros_like(self.tables.videos[0])]
        blocks = torch.split(torch.stack(layers), BLOCK, dim=1)
        return torch.cat([self.encode_videos(at_least_float32(block)) for block in blocks])

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
                n = videos.shape[1]
                self._vectors = _encode_by_block(n, BLOCK, lambda rows: self.encode_videos(videos[:, rows].float()))
        return self._vectors

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
        """Make the configured optimizer and schedule."""
        config = self.optimizer_config
        assert config is not None
        optimizer = look_up(OPTIMIZERS, config.name)(self.parameter_groups(), config)
        if config.schedule == "constant" and not config.warmup_steps:
            return optimizer
        schedule = make_schedule(optimizer, config, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Divide the parameters for the optimizer; scalars (a log-temperature) have no weight decay."""
        scalars = [parameter for parameter in self.parameters() if not parameter.ndim]
        groups: list[dict[str, Any]] = [{"params": [parameter for parameter in self.parameters() if parameter.ndim]}]
        if scalars:
            groups.append({"params": scalars, "weight_decay": 0.0})
        return groups

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
        """Log the means of `logged_metrics`, each of which costs as much as a step of a small run, and the loss."""
        means = {f"val/{name}": value for name, value in self._metrics.compute().items()}
        names = self.logged_metrics or set(means)
        loss = self.validation_loss() if self.validates_loss else None
        logged = {name: value for name, value in means.items() if name in names}
        self.log_dict(logged if loss is None else {**logged, "val/loss": loss})

    def validation_loss(self) -> Tensor | None:
        """Compute the loss of the validation side in evaluation mode, where `validates_loss`; None without pairs."""
        raise NotImplementedError

    def on_test_epoch_start(self) -> None:
        """Reset the test results."""
        self.results = {}
        self._collector = ResultCollector(self.data, self.device)

    def test_step(self, positions: Tensor, batch_index: int, dataloader_idx: int = 0) -> None:
        """Rank a chunk of a side and collect its results."""
        side = list(self.data.sides.values())[dataloader_idx]
        scores, metrics, ties = self._rank(side, positions)
        self._collector.add(side, positions, scores, metrics, ties)

    def on_test_epoch_end(self) -> None:
        """Gather the chunks of every side into `results`, and log the means, which `trainer.test` returns."""
        self.results = self._collector.results()
        for name, result in self.results.items():
            self.log_dict({f"{name}/{metric}": values.mean() for metric, values in result.metrics.items()})

    def predict_step(self, positions: Tensor, batch_index: int, dataloader_idx: int = 0) -> tuple[Tensor, Tensor]:
        """Return the best videos of a chunk of test queries.

        Returns:
            Scores (B, k) and rows of the catalogue (B, k), best first, k at most 100.
        """
        side = self.data.sides["test"]
        return best_candidates(self.data, side, self._rank(side, positions)[0])

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


def _encode_by_block(n: int, size: int, encode: Callable[[slice], Tensor]) -> Tensor:
    """Encode n rows in blocks, (n, W)."""
    vectors: Tensor | None = None
    for start in range(0, n, size):
        block = encode(slice(start, min(start + size, n)))  # (b, W)
        if vectors is None:
            vectors = block.new_empty(n, block.shape[1])
        vectors[start : start + size] = block
    assert vectors is not None
    return vectors


def score_vectors(queries: Tensor, videos: Tensor) -> Tensor:
    """Compute dot products (B, N) in fp32 of queries (B, W) with videos (N, W), which may be of half precision."""
    if videos.dtype not in HALF_DTYPES:
        return queries @ videos.T
    scores = queries.new_empty(len(queries), len(videos))
    for start in range(0, len(videos), BLOCK):
        scores[:, start : start + BLOCK] = queries @ videos[start : start + BLOCK].float().T
    return scores
