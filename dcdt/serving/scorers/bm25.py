"""bm25: the words of a question in the words of every video."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import field_validator

from dcdt.config.registry import MODELS as REGISTERED
from dcdt.data.bm25 import EMPTY_WORD, FORMULAS, BM25Index
from dcdt.data.passages import Passages
from dcdt.data.tokens import tokenizer
from dcdt.data.transcripts import TRANSCRIPT
from dcdt.data.types import join_fields
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.graphs import Scores
from dcdt.serving.passages import pool
from dcdt.serving.scorers.base import (
    CatalogueScores,
    Columns,
    EmbedTexts,
    Export,
    NewVideos,
    Query,
    Rows,
    Scorer,
    ScorerManifest,
    configuration,
    require,
)
from dcdt.serving.videos import TYPES


class BM25Manifest(ScorerManifest):
    """The configuration of the model, as in config.yaml, and whether each passage of a transcript is indexed."""

    config: dict[str, Any]
    has_passages: bool = False

    @field_validator("config")
    @classmethod
    def _is_configuration(cls, value: dict[str, Any]) -> dict[str, Any]:
        config = configuration(REGISTERED["bm25"].schema, value, "model")
        require((config.backend, config.variant) in FORMULAS, f"backend {config.backend}, variant {config.variant}")
        return value

    @property
    def bm25(self) -> Any:  # noqa: ANN401 - the baselines are not imported here
        """The configuration, typed."""
        return REGISTERED["bm25"].schema(**self.config)

    @property
    def text_fields(self) -> list[str]:
        """Fields of a video that are read."""
        fields: list[str] = self.bm25.fields
        return fields


class BM25Scores(CatalogueScores):
    """BM25 of a question's words, in texts or, with the first (N + 1,) of each video and P, in passages."""

    def __init__(self, snapshot: Snapshot, index: BM25Index, words: list[str], offsets: Rows | None) -> None:
        super().__init__(snapshot)
        self.index, self.words, self.offsets = index, words, offsets

    @cached_property
    def document_scores(self) -> Scores:
        """Scores of all rows (N,), or of all passages (P,)."""
        return self.index.score(self.words)

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        scores = self.document_scores
        return scores if self.offsets is None else pool(scores, self.offsets).astype(scores.dtype)

    def passage_scores(self, row: int) -> Scores | None:
        """Scores of the passages of a row, (p,)."""
        return None if self.offsets is None else self.document_scores[self.offsets[row] : self.offsets[row + 1]]

    def mean(self, scores: Scores) -> float:
        """Mean of the scores of the videos that are present: what each word adds in all, without a look at each."""
        return self.index.mean(self.words) if self.offsets is None else super().mean(scores)

    def explain(self, row: int, embed: EmbedTexts) -> dict[str, Any]:
        """Explain the score, or that of the best passage, by what each word added, in `terms`."""
        terms: dict[str, float] = {}
        if (scores := self.passage_scores(row)) is not None and self.offsets is not None:
            row = int(self.offsets[row] + scores.argmax())
        for word in self.words:
            rows, gains, absent, _ = self.index.contribution(word)
            index = np.flatnonzero(rows == row)
            terms[word] = terms.get(word, 0.0) + float(gains[index[0]] if len(index) else absent)
        return {"terms": {word: gain for word, gain in terms.items() if gain}}


class BM25Scorer(Scorer):
    """Lexical matching; no vector is read."""

    kind: ClassVar[str] = "bm25"
    manifest_type: ClassVar[type[ScorerManifest]] = BM25Manifest
    models: ClassVar[tuple[str, ...]] = ("bm25",)
    reads_vectors: ClassVar[bool] = False

    def __init__(self, manifest: BM25Manifest, number: int, folder: Path) -> None:
        self.config, self.column, self.has_passages = manifest.bm25, f"words_{number}", manifest.has_passages
        self.split = tokenizer(self.config.stem, self.config.stop_words, self.config.formulas)
        self._index: tuple[Snapshot, BM25Index] | None = None

    @staticmethod
    def export(model: Any, name: str, restored: Any, number: int) -> Export:  # noqa: ANN401
        """The words of every video, or of every passage."""
        texts = {field: restored.collection.field_texts(field) for field in model.config.fields}
        passages = None if model.starts is None else restored.collection.passages
        values: dict[str, Any] = {"config": asdict(model.config), "has_passages": passages is not None}
        manifest = BM25Manifest(kind=BM25Scorer.kind, name=name, **values)
        return Export(manifest, {f"words_{number}": _words(model.config, texts, passages)})

    @staticmethod
    def check_columns(manifest: BM25Manifest, number: int, snapshot: Snapshot) -> None:
        """Raise ValueError or KeyError where the catalogue lacks the words."""
        column = snapshot.table[f"words_{number}"]
        kind = pa.list_(TYPES["list"]) if manifest.has_passages else TYPES["list"]
        require(column.type == kind and column.null_count == 0, f"column words_{number}")
        require(not manifest.has_passages or snapshot.is_ragged(f"words_{number}"), f"passages of words_{number}")

    def columns(self, videos: NewVideos, snapshot: Snapshot) -> Columns:
        """The words of new videos."""
        return {self.column: _words(self.config, videos.texts, videos.passages if self.has_passages else None)}

    def index(self, snapshot: Snapshot) -> BM25Index:
        """Return the index of a snapshot, made once."""
        if self._index is None or self._index[0] is not snapshot:
            config, postings = self.config, [segment.postings(self.column) for segment in snapshot.segments]
            dtype, present = np.float32 if snapshot.indexes else np.float64, snapshot.present
            if self.has_passages:
                present = np.repeat(present, np.diff(snapshot.offsets(self.column)))
            index = BM25Index(
                config.backend, config.variant, config.k1, config.b, config.delta, postings, present, dtype
            )
            self._index = snapshot, index
            return index
        return self._index[1]

    def score(self, query: Query, snapshot: Snapshot) -> BM25Scores:
        """Split the question into words."""
        offsets = snapshot.offsets(self.column) if self.has_passages else None
        return BM25Scores(snapshot, self.index(snapshot), self.split(query.text), offsets)


def _words(config: Any, texts: Mapping[str, Sequence[str]], passages: Passages | None) -> pa.Array:  # noqa: ANN401
    """The words of n videos, by their texts of each field; of each passage, with the other fields, if given."""
    split = tokenizer(config.stem, config.stop_words, config.formulas)
    if passages is not None:
        rows = np.repeat(np.arange(len(passages.offsets) - 1), np.diff(passages.offsets)).tolist()
        texts = {name: [column[row] for row in rows] for name, column in texts.items()} | {TRANSCRIPT: passages.texts}
    joined = join_fields([texts[name] for name in config.fields])
    words = pa.array([split(text) or [EMPTY_WORD] for text in joined], pa.list_(pa.string()))
    return words if passages is None else pa.ListArray.from_arrays(passages.offsets, words)
