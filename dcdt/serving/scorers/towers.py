"""Models with a tower for queries and one for videos: a score is the inner product of two vectors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from dcdt.data.types import texts_with_fallback
from dcdt.serving.arrow import vector_column
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.graphs import Floats, Scores, Towers, unit
from dcdt.serving.scorers.base import (
    N_EXAMPLES,
    N_PROBES,
    CatalogueScores,
    Columns,
    Count,
    EmbedTexts,
    Export,
    Graph,
    Names,
    NewVideos,
    Number,
    Query,
    Rows,
    Scorer,
    ScorerManifest,
    query_map,
    require,
)
from dcdt.serving.videos import documents_of
from dcdt.utils.errors import UserError

EARLIER_VIDEOS, SIMILAR_VIDEOS = "earlier videos", "similar videos"  # what a learner's, a neighbour's share is called


class TowersManifest(ScorerManifest):
    """Two towers.

    Attributes:
        fields: of a video that its tower reads.
        width: of a video's vector.
        query_width: of what the query tower gives.
        contributions: names of what sums up to a video's vector before it is normalised: the fields, in most models.
        is_linear: whether the query tower is one product with a matrix.
        neighbours: how many of the nearest videos a video's vector leans on.
        neighbour_weight: how much.
        has_transcript: whether one of the fields is that of transcripts, their passages.
        adds_passages: whether a passage's vector is added to that of the other fields, and not encoded with them.
        temperature: of a softmax over the passages; None: the best one counts.
        stretches: [start, end) of the embedder's numbers that the towers read; empty: all.
    """

    fields: Names
    width: Count
    query_width: Count
    contributions: Names
    is_linear: bool
    neighbours: Count = 1
    neighbour_weight: Number = 0.0
    has_transcript: bool = False
    adds_passages: bool = False
    temperature: Annotated[Number, Field(gt=0)] | None = None
    stretches: list[Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=2, max_length=2)]] = []

    @model_validator(mode="after")
    def _fits(self) -> "TowersManifest":
        require(self.query_width <= self.width, "query_width is larger than width")
        return self

    @property
    def text_fields(self) -> list[str]:
        """Fields of a video that are read."""
        return self.fields


class TowerScores(CatalogueScores):
    """The inner product of a query vector with the vectors of the catalogue.

    Args:
        snapshot: the catalogue.
        scorer: whose vectors they are.
        vector: (W,) of the query and, in some models, of the learner.
        attention: weights over the fields, where there are some.
        pieces: of the vector (W,) that do not come from the query, by name; the fields make up the rest.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        scorer: "TowersScorer",
        vector: Floats,
        attention: dict[str, float] | None = None,
        pieces: Mapping[str, Floats] | None = None,
    ) -> None:
        super().__init__(snapshot)
        self.scorer, self.column, self.vector, self.attention = scorer, scorer.column, vector, attention
        self.pieces = pieces or {}
        self._searched: tuple[Rows, Scores] = np.zeros(0, dtype=np.int64), np.zeros(0)  # rows and their scores

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        return self.snapshot.scores(self.vector, self.column).astype(np.float64)

    def top(self, k: int, allowed: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """Rows and scores of the best k among the allowed rows."""
        rows, scores = self.snapshot.search(self.vector, k, allowed, self.column)
        self._searched = rows, scores.astype(np.float64)
        return self._searched

    def scores_of(self, rows: Rows) -> Scores:
        """Scores of some rows (n,)."""
        if self._scores is not None or self.column not in self.snapshot.indexes:
            return super().scores_of(rows)
        scores = np.full(len(rows), np.nan)
        _, in_rows, in_searched = np.intersect1d(rows, self._searched[0], return_indices=True)
        scores[in_rows] = self._searched[1][in_searched]
        missing = np.flatnonzero(np.isnan(scores))
        scores[missing] = self.snapshot.scores_at(rows[missing], self.vector, self.column)
        return scores

    def mean_and_deviation(self) -> tuple[float, float]:
        """Mean and standard deviation over the catalogue."""
        ann = self.snapshot.indexes.get(self.column)
        return super().mean_and_deviation() if ann is None else ann.spread(self.vector)

    def explain(self, row: int, embed: EmbedTexts) -> dict[str, Any]:
        """Explain the score by what fields, similar videos and the history added, in `fields`, and by `attention`."""
        score = float(self.scores_of(np.array([row]))[0])
        video = self.snapshot.vectors_at(np.array([row]), self.column)[0]
        pieces = {name: float(piece @ video) for name, piece in self.pieces.items()}
        reasons: dict[str, Any] = {"fields": self._field_shares(row, embed, score - sum(pieces.values())) | pieces}
        return reasons | ({"attention": self.attention} if self.attention else {})

    def _field_shares(self, row: int, embed: EmbedTexts, score: float) -> dict[str, float]:
        """Divide an inner product among the contributions to a video's vector; they sum to it.

        It counts in proportion to its inner product with the query; what a video owes to its neighbours is what is
        left.
        """
        manifest, number = self.scorer.manifest, self.scorer.number
        if manifest.has_transcript:  # whose passages would all have to be embedded
            return {"all fields": score}
        videos = documents_of(self.snapshot.rows(np.array([row]), ("id", "title", "text", "metadata")))
        texts = [texts_with_fallback(videos, name) for name in manifest.fields]
        own, contributions = self.scorer.towers.videos(np.stack(embed(texts)))  # (1, W), (P, 1, W)
        width = contributions.shape[-1]
        if len(contributions) != len(manifest.contributions):
            names, path = len(manifest.contributions), self.scorer.towers.folder
            raise UserError(
                f"{path} is corrupt: it names {names} contributions to a video, its tower gives {len(contributions)}.\n"
                "Run: python -m dcdt.index RUN build"
            )
        query = self.vector - sum(self.pieces.values(), np.zeros_like(self.vector))  # (W,)
        products = contributions[:, 0] @ query[:width]  # (P,)
        length = float(np.linalg.norm(contributions.sum(0)[0])) / max(float(np.linalg.norm(own[0, :width])), 1e-12)
        shares = products / max(length, 1e-12)
        if manifest.neighbour_weight:
            stored = (f"vector_{number}", f"raw_{number}")
            vector, alone = (self.snapshot.vectors_at(np.array([row]), name)[0] for name in stored)
            shares = shares * _own_share(vector, alone, manifest.neighbour_weight)
        named = dict(zip(manifest.contributions, map(float, shares), strict=True))
        return named | ({SIMILAR_VIDEOS: score - sum(named.values())} if manifest.neighbour_weight else {})


class TowersScorer(Scorer):
    """A decoupled model. One that reads histories adds the direction of what the learner watched to the query's."""

    kind: ClassVar[str] = "towers"
    manifest_type: ClassVar[type[ScorerManifest]] = TowersManifest
    searches_vectors: ClassVar[bool] = True
    vectors: ClassVar[str] = "vector"  # prefix of their column
    scores_type: ClassVar[type[TowerScores]] = TowerScores
    note: ClassVar[str] = "{} reads histories: without a learner's the question alone counts."

    def __init__(self, manifest: TowersManifest, number: int, folder: Path) -> None:
        self.manifest, self.number, self.column = manifest, number, f"{self.vectors}_{number}"
        widths, stretches = (manifest.width, manifest.query_width), [(start, end) for start, end in manifest.stretches]
        self.towers = Towers(folder, number, *widths, manifest.is_linear, stretches)

    @staticmethod
    def export(model: Any, name: str, restored: Any, number: int) -> Export:  # noqa: ANN401
        """Both towers, and the vectors of the catalogue."""
        tables, vectors, arrays = model.tables, model.video_vectors(), query_map(model)  # (N, W)
        manifest = TowersManifest(
            kind=TowersScorer.kind,
            name=name,
            reads_history=model.histories is not None,
            fields=tables.fields,
            width=vectors.shape[1],
            query_width=vectors.shape[1],
            contributions=list(model.field_contributions(tables.videos[:, :1])),
            is_linear=bool(arrays),
            neighbours=model.neighbours,
            neighbour_weight=model.neighbour_weight,
            has_transcript=tables.passages is not None,
            adds_passages=model.adds_passages,
            stretches=[list(stretch) for stretch in model.stretches],
            temperature=float(model.pooling.temperature) if getattr(model.pooling, "kind", "") == "softmax" else None,
        )
        columns = {f"vector_{number}": vector_column(vectors.numpy())}
        if manifest.neighbour_weight:
            columns[f"raw_{number}"] = vector_column(model.encode_videos(tables.videos).numpy())
        outputs = ("encoded", "weights") if model.has_attention else ("encoded",)
        graphs = {
            "query": Graph(model, _encode_queries, tables.queries[:N_EXAMPLES], "vectors", outputs),
            "video": Graph(model, encode_videos, tables.videos[:, :N_EXAMPLES], "fields", ("encoded", "adds")),
        }
        queries = tables.queries[:N_PROBES]
        probes = model.encode_queries(queries).numpy() if queries.any() else None  # a catalogue has no questions
        return Export(manifest, columns, graphs, arrays, probes)

    @staticmethod
    def check_columns(manifest: TowersManifest, number: int, snapshot: Snapshot) -> None:
        """Raise ValueError or KeyError where the catalogue lacks the vectors."""
        for kind in ("vector", "raw") if manifest.neighbour_weight else ("vector",):
            require(snapshot.built.vectors[f"{kind}_{number}"].shape[1] == manifest.width, f"width of {kind}_{number}")

    def columns(self, videos: NewVideos, snapshot: Snapshot) -> Columns:
        """The vectors of new videos. Those that are there do not lean on them before the next build."""
        own, _ = self.towers.videos(np.stack([videos.vectors[name] for name in self.manifest.fields]))  # (n, W)
        if not self.manifest.neighbour_weight:
            return {self.column: vector_column(own)}
        column = f"raw_{self.number}"
        leaning = [lean_on_neighbours(vector, snapshot, column, self.manifest) for vector in own]
        return {self.column: vector_column(np.stack(leaning)), column: vector_column(own)}

    def score(self, query: Query, snapshot: Snapshot) -> TowerScores:
        """Encode the query."""
        assert query.vector is not None
        encoded, weights = self.towers.query(query.vector[None])
        attention = None
        if weights is not None:
            if weights.shape[1] != len(self.manifest.fields):
                raise UserError(f"{self.towers.folder} is corrupt: its query tower weighs {weights.shape[1]} fields.")
            attention = dict(zip(self.manifest.fields, map(float, weights[0]), strict=True))
        if not self.manifest.reads_history or query.watched is None:
            return self.scores_type(snapshot, self, encoded[0], attention)
        history = unit(query.watched.vectors(self.column).sum(0))
        length = max(float(np.linalg.norm(encoded[0] + history)), 1e-12)
        vector = np.asarray((encoded[0] + history) / length, dtype=np.float32)
        pieces = {EARLIER_VIDEOS: np.asarray(history / length, dtype=np.float32)}
        return TowerScores(snapshot, self, vector, attention, pieces)


def lean_on_neighbours(vector: Floats, snapshot: Snapshot, column: str, manifest: TowersManifest) -> Floats:
    """A new video's unit vector (W,) plus the direction of its nearest ones in the catalogue, of length 1."""
    similarity = np.where(snapshot.present, snapshot.scores(vector, column), -np.inf)
    k = min(manifest.neighbours, len(snapshot))
    mean = snapshot.vectors_at(np.argpartition(-similarity, k - 1)[:k], column).mean(0)
    mean /= max(float(np.linalg.norm(mean)), 1e-12)
    total = vector + manifest.neighbour_weight * mean
    return np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), dtype=np.float32)


def _own_share(vector: Floats, own: Floats, weight: float) -> float:
    """A in `vector = a (own + weight n)`, all of length 1 but the sum: how much of its own vector a video keeps."""
    cosine = float(np.clip(vector @ own, -1, 1))
    return float(1 / max(cosine + max(cosine**2 - 1 + weight**2, 0.0) ** 0.5, 1e-12))


def _encode_queries(model: Any, vectors: Any) -> tuple[Any, ...]:  # noqa: ANN401 - tensors, and torch is not imported
    """Query vectors (B, W) of frozen vectors (B, D), and the weights over the fields (B, F) where there are some."""
    encoded = model.encode_queries(vectors)
    return (encoded, model.attention_weights(vectors)) if model.has_attention else (encoded,)


def encode_videos(model: Any, fields: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """Video vectors (B, W) of frozen field vectors (F, B, D), and what sums up to them, (P, B, W)."""
    import torch

    return model.encode_videos(fields), torch.stack(list(model.field_contributions(fields).values()))
