"""single_tower: what is left of its network for a pair is an addition, a ReLU and the output; every video is scored."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from dcdt.serving.arrow import vector_column
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.graphs import Floats, Scores, Towers
from dcdt.serving.scorers.base import (
    N_EXAMPLES,
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
    Scorer,
    ScorerManifest,
    require,
)

CHUNK = 2048  # videos whose hidden outputs are held at a time


class SingleTowerManifest(ScorerManifest):
    """`width` of the hidden layer, the fields concatenated; `weight` and `bias` of the output layer."""

    fields: Names
    width: Count
    weight: list[Number]
    bias: Number

    @model_validator(mode="after")
    def _fits(self) -> "SingleTowerManifest":
        require(self.width % len(self.fields) == 0 and len(self.weight) == self.width, "width of the output")
        return self

    @property
    def text_fields(self) -> list[str]:
        """Fields of a video that are read."""
        return self.fields


class SingleTowerScores(CatalogueScores):
    """`sigmoid(w . ReLU(a + v) + b)` for the query side a and the video sides v."""

    def __init__(self, snapshot: Snapshot, scorer: "SingleTowerScorer", query: Floats) -> None:
        super().__init__(snapshot)
        self.scorer, self.query = scorer, query  # (F * W,)

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        parts = [self._score(segment.vectors[self.scorer.column]) for segment in self.snapshot.segments]
        return np.concatenate(parts).astype(np.float64)

    def _score(self, videos: NDArray[Any]) -> Floats:
        logits = np.empty(len(videos), dtype=np.float32)
        for start in range(0, len(videos), CHUNK):
            hidden = np.maximum(videos[start : start + CHUNK] + self.query, 0)  # (n, F * W)
            logits[start : start + CHUNK] = hidden @ self.scorer.weight + self.scorer.bias
        return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float32)

    def explain(self, row: int, embed: EmbedTexts) -> dict[str, Any]:
        """Explain the logit by what each field's tower added, in `fields`."""
        video = self.snapshot.vectors_at(np.array([row]), self.scorer.column)[0]
        fields = self.scorer.manifest.fields
        parts = np.split(np.maximum(video + self.query, 0) * self.scorer.weight, len(fields))
        return {"fields": {name: float(part.sum()) for name, part in zip(fields, parts, strict=True)}}


class SingleTowerScorer(Scorer):
    """A network over query and video; no vector can be searched."""

    kind: ClassVar[str] = "single_tower"
    manifest_type: ClassVar[type[ScorerManifest]] = SingleTowerManifest
    models: ClassVar[tuple[str, ...]] = ("single_tower",)

    def __init__(self, manifest: SingleTowerManifest, number: int, folder: Path) -> None:
        self.manifest, self.column = manifest, f"joint_{number}"
        self.towers = Towers(folder, number, manifest.width, manifest.width)
        self.weight, self.bias = np.array(manifest.weight, dtype=np.float32), np.float32(manifest.bias)

    @staticmethod
    def export(model: Any, name: str, restored: Any, number: int) -> Export:  # noqa: ANN401
        """Export a graph of the query's linear outputs, and those of the catalogue's videos as a column."""
        tables = model.tables
        videos = model.linear_outputs(tables.queries[:1], tables.videos)[1]  # (N, F * W)
        manifest = SingleTowerManifest(
            kind=SingleTowerScorer.kind,
            name=name,
            fields=tables.fields,
            width=videos.shape[1],
            weight=model.output.weight[0].tolist(),
            bias=float(model.output.bias),
        )
        graphs = {
            "query": Graph(model, _query_outputs, tables.queries[:N_EXAMPLES], "vectors", ("encoded",)),
            "video": Graph(model, _video_outputs, tables.videos[:, :N_EXAMPLES], "fields", ("encoded", "adds")),
        }
        return Export(manifest, {f"joint_{number}": vector_column(videos.numpy())}, graphs)

    @staticmethod
    def check_columns(manifest: SingleTowerManifest, number: int, snapshot: Snapshot) -> None:
        """Raise ValueError or KeyError where the catalogue lacks the videos' linear outputs."""
        require(snapshot.built.vectors[f"joint_{number}"].shape[1] == manifest.width, f"width of joint_{number}")

    def columns(self, videos: NewVideos, snapshot: Snapshot) -> Columns:
        """Compute the linear outputs of new videos."""
        fields = np.stack([videos.vectors[name] for name in self.manifest.fields])
        return {self.column: vector_column(self.towers.videos(fields)[0])}

    def score(self, query: Query, snapshot: Snapshot) -> SingleTowerScores:
        """Compute the linear outputs of the query."""
        assert query.vector is not None
        return SingleTowerScores(snapshot, self, self.towers.query(query.vector[None])[0][0])


def _query_outputs(model: Any, vectors: Any) -> tuple[Any]:  # noqa: ANN401 - tensors, and torch is not imported
    nothing = vectors.new_zeros(len(model.towers), 1, vectors.shape[-1])
    return (model.linear_outputs(vectors, nothing)[0],)


def _video_outputs(model: Any, fields: Any) -> tuple[Any, Any]:  # noqa: ANN401
    outputs = model.linear_outputs(fields.new_zeros(1, fields.shape[-1]), fields)[1]  # (B, F * W)
    return outputs, outputs.unsqueeze(0)
