"""Two towers over the passages of transcripts: a video's score is its best passage's, or a softmax of all of them."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdt.data.transcripts import TRANSCRIPT
from dcdt.serving.arrow import to_numpy, vector_column
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.graphs import Scores
from dcdt.serving.passages import pool
from dcdt.serving.scorers.base import CatalogueScores, Columns, Export, NewVideos, Query, Rows, require
from dcdt.serving.scorers.towers import TowerScores, TowersManifest, TowersScorer
from dcdt.utils.errors import UserError

BLOCK = 4096  # passages that are encoded at once
SAMPLE = 200  # videos by which the spread of the scores over a large catalogue is measured
LENGTH = 2.0  # of a stored vector: a passage's is the sum of two of length 1 at most
DEPTH = 10  # passages that are searched first, for each video that is wanted


class PassageScores(TowerScores):
    """The inner products of a query vector with the passages of the catalogue, pooled by video."""

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        products, offsets = self.snapshot.scores(self.vector, self.column), self.snapshot.offsets(self.column)
        return pool(products, offsets, self.scorer.manifest.temperature)

    def top(self, k: int, allowed: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """Rows and scores of the best k among the allowed rows, each once: searched deeper until there are as many."""
        offsets = self.snapshot.offsets(self.column)
        if self.column not in self.snapshot.indexes or 2 * DEPTH * k > offsets[-1]:
            return CatalogueScores.top(self, k, allowed)
        passages = np.ones(offsets[-1], dtype=bool) if allowed.all() else np.repeat(allowed, np.diff(offsets))
        n_wanted = k if self.scorer.manifest.temperature is None else 2 * k  # a softmax may order them otherwise
        depth, n_allowed, rows = DEPTH * k, int(np.count_nonzero(passages)), np.zeros(0, dtype=np.int64)
        while len(rows) < n_wanted and depth < 4 * n_allowed:
            best = self.snapshot.search(self.vector, min(depth, n_allowed), passages, self.column)[0]
            rows = np.searchsorted(offsets, best, "right") - 1
            rows = rows[np.sort(np.unique(rows, return_index=True)[1])][:n_wanted]
            depth *= 4
        scores = self.scores_of(rows)
        order = np.argsort(-scores, kind="stable")[:k]
        return rows[order], scores[order]

    def scores_of(self, rows: Rows) -> Scores:
        """Scores of some rows (n,)."""
        if self._scores is not None or self.column not in self.snapshot.indexes:
            return CatalogueScores.scores_of(self, rows)
        offsets = self.snapshot.offsets(self.column)
        counts = offsets[rows + 1] - offsets[rows]
        ends = np.cumsum(np.append(0, counts))
        passages = np.arange(ends[-1]) + np.repeat(offsets[rows] - ends[:-1], counts)
        products = self.snapshot.scores_at(passages, self.vector, self.column)
        return pool(products, ends, self.scorer.manifest.temperature)

    def passage_scores(self, row: int) -> Scores | None:
        """Scores of the passages of a row, (p,)."""
        passages = np.arange(*self.snapshot.offsets(self.column)[row : row + 2])
        return self.snapshot.scores_at(passages, self.vector, self.column).astype(np.float64)

    def mean_and_deviation(self) -> tuple[float, float]:
        """Mean and standard deviation over the catalogue; of a large one over a sample of its videos."""
        if self.column not in self.snapshot.indexes:
            return CatalogueScores.mean_and_deviation(self)
        scores = self.scores_of(np.random.default_rng(0).permutation(np.flatnonzero(self.snapshot.present))[:SAMPLE])
        return float(scores.mean()), float(scores.std())


class PassagesScorer(TowersScorer):
    """A decoupled model that tells passages apart: a vector each, to which that of its video may have been added."""

    kind: ClassVar[str] = "passages"
    vectors: ClassVar[str] = "passages"
    scores_type: ClassVar[type[TowerScores]] = PassageScores

    @staticmethod
    def export(model: Any, name: str, restored: Any, number: int) -> Export:  # noqa: ANN401
        """Both towers, and the vectors of all passages, in half precision where the run's tables are."""
        if model.histories is not None:
            raise UserError(f"model={name} reads histories and passages, which is not served: set model.passages=mean.")
        towers, tables, columns = TowersScorer.export(model, name, restored, number), model.tables, Columns()
        if model.neighbour_weight:
            alone = tables.videos.clone()
            alone[tables.fields.index(TRANSCRIPT)] = 0
            columns[f"raw_{number}"] = vector_column(model.encode_videos(alone).numpy())
        dtype = np.float16 if tables.videos.element_size() == 2 else np.float32
        vectors = np.empty((len(tables.passages.video), model.video_vectors().shape[1]), dtype=dtype)
        for _, rows in tables.passages.blocks(BLOCK):
            block = model.passage_vectors(rows)
            vectors[rows] = block + model.other_vectors()[tables.passages.video[rows]] if model.adds_passages else block
        columns[f"passages_{number}"] = ragged(tables.passages.offsets, vectors)
        manifest = towers.manifest.model_copy(update={"kind": PassagesScorer.kind})
        return replace(towers, manifest=manifest, columns=columns)

    @staticmethod
    def check_columns(manifest: TowersManifest, number: int, snapshot: Snapshot) -> None:
        """Raise ValueError or KeyError where the catalogue lacks the vectors."""
        column = f"passages_{number}"
        require(snapshot.is_ragged(column) and TRANSCRIPT in manifest.fields, column)
        require(snapshot.built.matrix(column).shape[1] == manifest.width + 1, f"width of {column}")
        require(not manifest.neighbour_weight or f"raw_{number}" in snapshot.built.vectors, f"column raw_{number}")

    def columns(self, videos: NewVideos, snapshot: Snapshot) -> Columns:
        """The vectors of the passages of new videos."""
        assert videos.passages is not None and videos.passage_vectors is not None
        manifest, offsets, columns = self.manifest, videos.passages.offsets, Columns()
        fields = np.stack([videos.vectors[name] for name in manifest.fields])  # (F, n, D)
        others, transcript = np.zeros((fields.shape[1], manifest.width), "f4"), manifest.fields.index(TRANSCRIPT)
        if manifest.adds_passages:
            alone = {**videos.vectors, TRANSCRIPT: np.zeros_like(fields[0])}
            columns = super().columns(replace(videos, vectors=alone), snapshot)
            others = to_numpy(columns.pop(self.column).flatten()).reshape(others.shape)
            fields[:] = 0
        row, vectors = np.repeat(np.arange(len(others)), np.diff(offsets)), []
        for start in range(0, len(row), BLOCK):
            rows = row[start : start + BLOCK]
            block = fields[:, rows]  # (F, b, D), a copy
            block[transcript] = videos.passage_vectors[start : start + BLOCK]
            vectors.append(self.towers.videos(block)[0] + others[rows])
        return columns | {self.column: ragged(offsets, np.concatenate(vectors))}

    def score(self, query: Query, snapshot: Snapshot) -> TowerScores:
        """Encode the query, without the number that makes all passages equally long."""
        scores = super().score(query, snapshot)
        scores.vector = np.append(scores.vector, np.float32(0))
        return scores


def ragged(offsets: Any, vectors: NDArray[Any]) -> pa.Array:  # noqa: ANN401 - a list or an array
    """Make a column of vectors (p, W) and one number more, by which all have one length, for LanceDB's cosine."""
    rest = np.sqrt(np.maximum(LENGTH**2 - np.square(vectors, dtype=np.float32).sum(1, keepdims=True), 0))
    return pa.ListArray.from_arrays(offsets, vector_column(np.hstack([vectors, rest.astype(vectors.dtype)])))
