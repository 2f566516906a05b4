"""BM25 over the words of a video's fields."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import rank_bm25
import torch
from numpy.typing import NDArray
from torch import Tensor

from dcdt.data.bm25 import EMPTY_WORD, BM25Index, Postings
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.tables import Tables
from dcdt.data.tokens import tokenizer
from dcdt.data.types import Collection, join_fields
from dcdt.models.query_batch import QueryBatch
from dcdt.models.recommender import Recommender
from dcdt.utils.errors import NotApplicable

from .config import BM25Config

RANK_BM25 = {"okapi": rank_bm25.BM25Okapi, "l": rank_bm25.BM25L, "plus": rank_bm25.BM25Plus}


class BM25(Recommender):
    """Score queries by BM25 over the joined fields of a video; one tokenizer for both sides.

    `backend=rank_bm25` is that library itself, the reference of the tables: `variant` okapi, l or plus. It loops over
    the videos for each word of a query. `backend=bm25s` is for large collections: the formulas of bm25s over inverted
    lists (`dcdt.data.bm25`). Its `plus` agrees with rank_bm25; `okapi` is its Robertson and `l` its BM25L, which are
    defined otherwise (rank_bm25 lifts negative weights of frequent words to a quarter of the mean weight and scores
    BM25L only where a word occurs); lucene and atire are bm25s's alone.

    A query without a word of the catalogue scores every video 0.

    Args:
        config: fields, variant, its k1, b and delta (null: the backend's), stemming, stop words and backend.
        tables: not read.
    """

    trained_by_epochs: ClassVar[bool] = False
    supports_half_precision: ClassVar[bool] = True  # it reads no vectors
    decoupled: ClassVar[bool] = False

    def __init__(self, config: BM25Config, tables: Tables) -> None:
        super().__init__(tables)
        self.config = config
        self.tokenize = tokenizer(config.stem, config.stop_words)
        self.documents: list[list[str]] = []

    def on_prepare(self, data: RankingDataModule) -> None:
        """Index the videos.

        Raises:
            NotApplicable: no video has a word.
        """
        texts = video_texts(data.collection, self.config.fields)
        self._index([self.tokenize(text) or [EMPTY_WORD] for text in texts])

    def score(self, queries: QueryBatch) -> Tensor:
        """Score B texts against all videos, (B, N)."""
        scores = torch.zeros(len(queries.texts), len(self.documents))
        for row, text in enumerate(queries.texts):
            words = [word for word in self.tokenize(text) if word in self._vocabulary]
            if words:
                scores[row] = torch.from_numpy(self._scores_of(words))
        return scores.to(self.tables.device)

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """Score as usual: no judgment is read."""
        return self.score(queries)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the tokens of every video, as numbers."""
        vocabulary = sorted({token for tokens in self.documents for token in tokens})
        number = {token: i for i, token in enumerate(vocabulary)}
        return {
            "vocabulary": vocabulary,
            "words": torch.tensor([number[token] for tokens in self.documents for token in tokens], dtype=torch.int32),
            "lengths": torch.tensor([len(tokens) for tokens in self.documents], dtype=torch.int32),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Index the videos of a saved model."""
        tokens = [state["vocabulary"][number] for number in state["words"].tolist()]
        ends = state["lengths"].long().cumsum(0).tolist()
        self._index([tokens[start:end] for start, end in zip([0, *ends], ends, strict=False)])

    def _index(self, documents: list[list[str]]) -> None:
        self.documents = documents
        self._vocabulary = {token for tokens in documents for token in tokens} - {EMPTY_WORD}
        if not self._vocabulary:
            raise NotApplicable("no video has a word to match")
        self._scores_of = _scorer(self.config, documents)


def _scorer(config: BM25Config, documents: list[list[str]]) -> Callable[[list[str]], NDArray[np.floating[Any]]]:
    """Return the function from words to scores (N,)."""
    if config.backend == "rank_bm25":
        delta = {} if config.delta is None or config.variant == "okapi" else {"delta": config.delta}
        library: Any = RANK_BM25[config.variant](documents, k1=config.k1, b=config.b, **delta)
        return library.get_scores  # type: ignore[no-any-return]
    postings = [Postings.of(documents)]
    return BM25Index(config.backend, config.variant, config.k1, config.b, config.delta, postings).score


def video_texts(collection: Collection, fields: Sequence[str]) -> list[str]:
    """Join the fields of every video to one text; the fallback of a missing field is not repeated."""
    return join_fields([collection.field_texts(name) for name in fields])
