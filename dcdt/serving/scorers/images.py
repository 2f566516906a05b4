"""Pictures of videos: a video's score is that of the picture most like the question."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from dcdt.embeddings.config import ClipConfig
from dcdt.embeddings.providers import make_embedder, space_of
from dcdt.embeddings.providers.batching import round_to_float16
from dcdt.serving.arrow import vector_column
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.graphs import Scores
from dcdt.serving.scorers.base import (
    N_PROBES,
    Columns,
    Count,
    EmbedTexts,
    Export,
    NewVideos,
    Query,
    Scorer,
    ScorerManifest,
    require,
)
from dcdt.serving.scorers.passages import PassageScores
from dcdt.utils.errors import UserError


class ImagesManifest(ScorerManifest):
    """Pictures: the width of their vectors, the model's folder, and its embedding space, which tells its weights."""

    width: Count
    folder: str
    space: str
    temperature: None = None  # the best picture counts


class ImageScores(PassageScores):
    """The inner products of a query vector with the pictures of the catalogue, the best of each video."""

    def passage_scores(self, row: int) -> Scores | None:
        """Return None: a picture is no moment."""
        return None

    def explain(self, row: int, embed: EmbedTexts) -> dict[str, Any]:
        """Return nothing: the score is that of one picture."""
        return {}


class ImagesScorer(Scorer):
    """The part of a hybrid that reads pictures; the first question loads the model, and torch with it."""

    kind: ClassVar[str] = "images"
    manifest_type: ClassVar[type[ScorerManifest]] = ImagesManifest
    models: ClassVar[tuple[str, ...]] = ("image",)
    reads_vectors: ClassVar[bool] = False

    def __init__(self, manifest: ImagesManifest, number: int, folder: Path) -> None:
        self.manifest, self.column = manifest, f"passages_{number}"
        self._embedder: Any = None

    @staticmethod
    def export(model: Any, name: str, restored: Any, number: int) -> Export:  # noqa: ANN401
        """The vectors of all pictures."""
        embedder, pictures, queries = restored.settings.image_embedder, model.tables.passages, model.tables.queries
        given = {"width": queries.shape[1], "folder": embedder.folder, "space": space_of(embedder).folder}
        column = pa.ListArray.from_arrays(pictures.offsets, vector_column(pictures.vectors.numpy()))
        manifest = ImagesManifest(kind=ImagesScorer.kind, name=name, **given)
        return Export(manifest, {f"passages_{number}": column}, probes=queries[:N_PROBES].numpy())

    @staticmethod
    def check_columns(manifest: ImagesManifest, number: int, snapshot: Snapshot) -> None:
        """Raise ValueError or KeyError where the catalogue lacks the vectors."""
        column = f"passages_{number}"
        require(bool((np.diff(snapshot.offsets(column)) > 0).all()), column)
        require(snapshot.built.matrix(column).shape[1] == manifest.width, f"width of {column}")

    def columns(self, videos: NewVideos, snapshot: Snapshot) -> Columns:
        """The mean of all vectors for new videos, whose pictures are read by the next build."""
        n = len(next(iter(videos.texts.values())))
        vectors = np.repeat(snapshot.built.matrix(self.column).mean(0, keepdims=True), n, axis=0)
        return {self.column: pa.ListArray.from_arrays(np.arange(n + 1), vector_column(vectors))}

    def score(self, query: Query, snapshot: Snapshot) -> ImageScores:
        """Embed the question by the text side of the model, rounded as the cache rounds."""
        if self._embedder is None:
            config = ClipConfig("clip", self.manifest.folder)
            if space_of(config).folder != self.manifest.space:
                raise UserError(f"{config.folder} holds other weights than when the index was built. Build it anew.")
            self._embedder = make_embedder(config)
        vector = round_to_float16(self._embedder.embed([query.text]))[0]
        return ImageScores(snapshot, self, vector)  # type: ignore[arg-type]
