"""bm25: the words of a question in the words of every video."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import field_validator

from dcdt.config.registry import MODELS as REGISTERED
from dcdt.data.bm25 import EMPTY_WORD, FORMULAS, BM25Index
from dcdt.data.tokens import tokenizer
from dcdt.data.types import join_fields, texts_with_fallback
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.graphs import Scores
from dcdt.serving.scorers.base import (
    CatalogueScores,
    Columns,
    EmbedTexts,
    Export,
    Query,
    Scorer,
    ScorerManifest,
    Texts,
    Vectors,
    configuration,
    require,
)
from dcdt.serving.videos import TYPES


class BM25Manifest(ScorerManifest):
    """The configuration of the model, as in config.yaml."""

    config: dict[str, Any]

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
    """BM25 of a question's words."""

    def __init__(self, snapshot: Snapshot, index: BM25Index, words: list[str]) -> None:
        super().__init__(snapshot)
        self.index, self.words = index, words

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        return self.index.score(self.words)

    def mean(self, scores: Scores) -> float:
        """Mean of the scores of the videos that are present: what each word adds in all, without a look at each."""
        return self.index.mean(self.words)

    def explain(self, row: int, embed: EmbedTexts) -> dict[str, Any]:
        """Explain the score by what each word added, in `terms`."""
        terms: dict[str, float] = {}
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
        self.config, self.column = manifest.bm25, f"words_{number}"
        self.split = tokenizer(self.config.stem, self.config.stop_words, self.config.formulas)
        self._index: tuple[Snapshot, BM25Index] | None = None

    @staticmethod
    def export(model: Any, name: str, restored: Any, number: int) -> Export:  # noqa: ANN401
        """The words of every video."""
        texts = {field: texts_with_fallback(restored.collection.videos, field) for field in model.config.fields}
        manifest = BM25Manifest(kind=BM25Scorer.kind, name=name, config=asdict(model.config))
        return Export(manifest, {f"words_{number}": _words(manifest.bm25, texts)})

    @staticmethod
    def check_columns(manifest: BM25Manifest, number: int, snapshot: Snapshot) -> None:
        """Raise ValueError or KeyError where the catalogue lacks the words."""
        column = snapshot.table[f"words_{number}"]
        require(column.type == TYPES["list"] and column.null_count == 0, f"column words_{number}")

    def columns(self, texts: Texts, vectors: Vectors, snapshot: Snapshot) -> Columns:
        """The words of new videos."""
        return {self.column: _words(self.config, texts)}

    def index(self, snapshot: Snapshot) -> BM25Index:
        """Return the index of a snapshot, made once."""
        if self._index is None or self._index[0] is not snapshot:
            config, postings = self.config, [segment.postings(self.column) for segment in snapshot.segments]
            dtype = np.float32 if snapshot.indexes else np.float64
            index = BM25Index(
                config.backend, config.variant, config.k1, config.b, config.delta, postings, snapshot.present, dtype
            )
            self._index = snapshot, index
            return index
        return self._index[1]

    def score(self, query: Query, snapshot: Snapshot) -> BM25Scores:
        """Split the question into words."""
        return BM25Scores(snapshot, self.index(snapshot), self.split(query.text))


def _words(config: Any, texts: Texts) -> pa.Array:  # noqa: ANN401
    """The words of n videos, by their texts of each field."""
    split = tokenizer(config.stem, config.stop_words, config.formulas)
    joined = join_fields([texts[name] for name in config.fields])
    return pa.array([split(text) or [EMPTY_WORD] for text in joined], pa.list_(pa.string()))
