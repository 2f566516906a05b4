"""The untrained baseline: cosine of the frozen embeddings, softly whitened if configured."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dcdt.data.datamodule import RankingDataModule
from dcdt.data.histories import Histories, pool_history
from dcdt.data.interactions import load_interactions
from dcdt.data.tables import Tables
from dcdt.models.passages import Pooling, make_pooling
from dcdt.models.query_batch import QueryBatch
from dcdt.models.recommender import Recommender
from dcdt.models.whitening import catalogue_whitening
from dcdt.utils.errors import UserError
from dcdt.utils.precision import HALF_DTYPES

from .config import ImageConfig, ZeroShotConfig


class ZeroShot(Recommender):
    """Cosine of the frozen query vector and the sum of a video's frozen field vectors.

    It costs nothing and is what a trained model must beat. `whiten=soft` maps all vectors
    by a matrix computed from the catalogue's vectors, without judgments and without held-out videos.
    `history=mean` adds to the query the direction of the mean of the videos that the asking learner watched strictly
    before, and works without a question. The cosine with the best passage of a transcript is added to that with the sum
    of the other fields.
    """

    trained_by_epochs: ClassVar[bool] = False
    fits_from_sums = True
    adds_passages: ClassVar[bool] = True
    whitening: Tensor | None

    def __init__(self, config: ZeroShotConfig, tables: Tables) -> None:
        super().__init__(tables)
        self.register_buffer("whitening", torch.eye(tables.width) if config.whiten == "soft" else None)
        self.pooling = make_pooling(config.passages, tables)
        self.needs_question = config.history == "none"
        self.histories = None if self.needs_question else Histories()

    def on_prepare(self, data: RankingDataModule) -> None:
        """Compute the whitening matrix and read the histories.

        Raises:
            NotApplicable: histories are configured and there are none.
        """
        if self.histories is not None:
            path = data.collection.path / "interactions.csv"
            self.histories = Histories(load_interactions(path, data.collection.videos.row_of))
        if self.whitening is not None:
            candidates = torch.from_numpy(data.split.train.candidates)
            self.whitening = catalogue_whitening(self.tables.videos, candidates)
            self._vectors = None

    def encode_queries(self, vectors: Tensor) -> Tensor:
        """Whiten and normalise frozen query vectors (B, D)."""
        return self._map(vectors)

    def linear_query(self) -> Tensor | None:
        """Return the matrix (D, D) by which questions are multiplied, if any."""
        return self.whitening

    def encode_videos(self, fields: Tensor) -> Tensor:
        """Sum frozen field vectors (F, ..., D), whiten and normalise: (..., D)."""
        return self._map(fields.sum(0))

    def video_vectors(self) -> Tensor:
        """Return the vectors of the whole catalogue (N, D); a single table of half precision is normalised already."""
        videos = self.tables.videos
        plain = self.whitening is None and len(videos) == 1
        return videos[0] if plain and videos.dtype in HALF_DTYPES else super().video_vectors()

    def score(self, queries: QueryBatch) -> Tensor:
        """Score B queries against all N videos, (B, N)."""
        query_vectors = self.encode_queries(queries.vectors)
        if self.histories is not None:
            watched = self.histories.last(queries.users, queries.times)
            query_vectors = nn.functional.normalize(query_vectors + pool_history(self.video_vectors(), watched), dim=-1)
        return self.score_encoded(query_vectors)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the histories of all learners, if they are used."""
        return {} if self.histories is None else self.histories.state()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned."""
        if self.histories is not None:
            self.histories.load(state)

    def field_contributions(self, fields: Tensor) -> dict[str, Tensor]:
        """Compute what each field adds to a video's vector: name to (..., D)."""
        mapped = fields if self.whitening is None else fields @ self.whitening
        return dict(zip(self.tables.fields, mapped, strict=True))

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """Score as usual: no judgment is read."""
        return self.score(queries)

    def _map(self, vectors: Tensor) -> Tensor:
        mapped = vectors if self.whitening is None else vectors @ self.whitening
        return nn.functional.normalize(mapped, dim=-1)


class Image(Recommender):
    """Cosine of the question with the best picture of a video, both embedded by one model; a part of a hybrid.

    A video without a picture has the mean similarity of all pictures.

    Raises:
        UserError: no pictures were loaded.
    """

    trained_by_epochs: ClassVar[bool] = False
    decoupled: ClassVar[bool] = False

    def __init__(self, config: ImageConfig, tables: Tables) -> None:
        if tables.images is None:
            raise UserError("model=image reads pictures: choose image_embedder=clip image_embedder.folder=FOLDER.")
        super().__init__(tables.images)
        self.pooling = Pooling("max")

    def score(self, queries: QueryBatch) -> Tensor:
        """Score B queries of the collection against all N videos, (B, N)."""
        assert queries.rows is not None
        return self.score_encoded(self.tables.queries[queries.rows.to(self.tables.device)])

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """Score as usual: no judgment is read."""
        return self.score(queries)

    def encode_videos(self, fields: Tensor) -> Tensor:
        """Return the vectors of pictures (1, ..., D) as they are: (..., D)."""
        return fields[0]

    def passage_scores(self, queries: QueryBatch, video: int) -> Tensor | None:
        """Return None: a picture is no moment."""
        return None
