"""collaborative: what those with a similar history watched; without a learner's history, by popularity."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import field_validator

from dcdt.config.registry import MODELS as REGISTERED
from dcdt.models.bpr import bpr_learners
from dcdt.serving.arrow import to_numpy
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.graphs import Scores, read_arrays
from dcdt.serving.scorers.base import (
    CatalogueScores,
    Columns,
    Export,
    NewVideos,
    Number,
    Query,
    Rows,
    Scorer,
    ScorerManifest,
    configuration,
    require,
)

ITEM_ITEM = ("cosine", "tfidf", "bm25", "slim")


class CollaborativeManifest(ScorerManifest):
    """The configuration of the model, and the score of a video that nobody watched."""

    config: dict[str, Any]
    unseen: Number

    @field_validator("config")
    @classmethod
    def _is_configuration(cls, value: dict[str, Any]) -> dict[str, Any]:
        configuration(REGISTERED["collaborative"].schema, value, "model")
        return value


class PopularityScores(CatalogueScores):
    """The same for everybody."""

    def __init__(self, snapshot: Snapshot, column: str) -> None:
        super().__init__(snapshot)
        self.column = column

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        return np.asarray(to_numpy(self.snapshot.table[self.column]), dtype=np.float64)


class LearnerScores(CatalogueScores):
    """Scores (M,) of the videos of the export for one learner; what came later stands last.

    Args:
        snapshot: the catalogue.
        exported: the scores (M,).
        rows: (M,) of these videos in the snapshot; -1 where one is gone.
    """

    def __init__(self, snapshot: Snapshot, exported: Scores, rows: Rows) -> None:
        super().__init__(snapshot)
        self.exported, self.rows = exported, rows

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        scores = np.full(len(self.snapshot.present), float(self.exported.min()))
        present = self.rows >= 0
        scores[self.rows[present]] = self.exported[present]
        return scores


class CollaborativeScorer(Scorer):
    """Nothing of the question is read but who asks it."""

    kind: ClassVar[str] = "collaborative"
    manifest_type: ClassVar[type[ScorerManifest]] = CollaborativeManifest
    models: ClassVar[tuple[str, ...]] = ("collaborative",)
    reads_vectors: ClassVar[bool] = False
    note: ClassVar[str] = "{} reads no question: without a learner's history videos come by popularity."

    def __init__(self, manifest: CollaborativeManifest, number: int, folder: Path) -> None:
        self.manifest, self.number, self.folder = manifest, number, folder
        self.column = f"popularity_{number}"
        self._arrays: dict[str, NDArray[Any]] | None = None  # read when a learner is named

    @staticmethod
    def export(model: Any, name: str, restored: Any, number: int) -> Export:  # noqa: ANN401
        """Export the scores without a learner, and the fitted factors by which any history is scored."""
        from dcdt.models.query_batch import QueryBatch

        scores = model.score(QueryBatch(restored.tables.queries[:1], [""], [None], [None]))[0].double().numpy()
        arrays = {key: np.ascontiguousarray(value.numpy()) for key, value in model.model.state().items()}
        manifest = CollaborativeManifest(
            kind=CollaborativeScorer.kind,
            name=name,
            reads_history=True,
            config=asdict(model.model.config) | {"decay": model.model.config.recency},
            unseen=float(scores.min()),
        )
        return Export(manifest, {f"popularity_{number}": pa.array(scores)}, {}, arrays)

    @staticmethod
    def check_columns(manifest: CollaborativeManifest, number: int, snapshot: Snapshot) -> None:
        """Raise ValueError or KeyError where the catalogue lacks the popularity."""
        column = snapshot.table[f"popularity_{number}"]
        require(column.type == pa.float64() and column.null_count == 0, f"column popularity_{number}")

    def columns(self, videos: NewVideos, snapshot: Snapshot) -> Columns:
        """New videos are those that nobody watched."""
        n = len(next(iter(videos.texts.values())))
        return {self.column: pa.array(np.full(n, float(self.manifest.unseen)))}

    def score(self, query: Query, snapshot: Snapshot) -> CatalogueScores:
        """By the learner's history, or by popularity."""
        watched = query.watched
        if watched is None or not len(watched.items):
            return PopularityScores(snapshot, self.column)
        if self._arrays is None:
            self._arrays = read_arrays(self.folder, self.number)
        scores = collaborative_scores(self.manifest.config, self._arrays, watched.items)
        return LearnerScores(snapshot, scores, watched.rows)


def collaborative_scores(config: dict[str, Any], arrays: dict[str, NDArray[Any]], items: NDArray[np.int64]) -> Scores:
    """Scores (M,) of the videos of an export for a learner who watched these of them (L,).

    Without one that the model was fitted on they come by popularity; a video nobody watched stands last.
    """
    popularity = arrays["popularity"]
    scores = popularity.astype(np.float64)
    own, index = np.unique(items, return_inverse=True)  # (H,), (L,)
    n_later = np.arange(len(items))[::-1]
    weights: Scores = np.bincount(index, config.get("decay", 1.0) ** n_later).astype(np.float64)
    if config["kind"] != "popularity" and (popularity[own] > 0).any():
        kind = config["kind"]
        score = _item_item if kind in ITEM_ITEM else {"als": _als, "bpr": _bpr, "ease": _ease}[kind]
        scores = score(config, arrays, own, weights)
    unseen = popularity == 0
    scores[unseen] = scores.min() - 1
    return scores


def _item_item(
    config: dict[str, Any], arrays: dict[str, NDArray[Any]], own: NDArray[np.int64], counts: Scores
) -> Scores:
    scores = np.zeros(len(arrays["popularity"]))
    for item, count in zip(own.tolist(), counts, strict=True):
        part = slice(arrays["indptr"][item], arrays["indptr"][item + 1])
        np.add.at(scores, arrays["indices"][part], count * arrays["data"][part])
    return scores


def _als(config: dict[str, Any], arrays: dict[str, NDArray[Any]], own: NDArray[np.int64], counts: Scores) -> Scores:
    """Least squares of the learner with the videos' factors held (Hu, Koren and Volinsky 2008)."""
    factors = arrays["items"].astype(np.float64)  # (M, F)
    liked, trust = factors[own], config["alpha"] * counts  # (H, F), (H,)
    left = factors.T @ factors + config["regularization"] * np.eye(factors.shape[1]) + (liked.T * (trust - 1)) @ liked
    return np.asarray(factors @ np.linalg.solve(left, trust @ liked))


def _ease(config: dict[str, Any], arrays: dict[str, NDArray[Any]], own: NDArray[np.int64], weights: Scores) -> Scores:
    return np.asarray(weights @ arrays["items"][own].astype(np.float64))


def _bpr(config: dict[str, Any], arrays: dict[str, NDArray[Any]], own: NDArray[np.int64], counts: Scores) -> Scores:
    (learner,) = bpr_learners(arrays["items"], arrays["popularity"], [(own, counts)], config)
    return np.asarray(arrays["items"] @ np.r_[learner, 1.0])
