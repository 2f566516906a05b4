"""Lexical matching: BM25 over the words of a video's fields."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import rank_bm25
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dcdt.data.datamodule import RankingDataModule
from dcdt.data.tables import Tables
from dcdt.data.tokens import tokenizer
from dcdt.data.types import Collection, as_one
from dcdt.models.config import OptimizerConfig
from dcdt.models.recommender import QueryBatch, Recommender
from dcdt.utils.errors import NotApplicable, UserError

from .config import BM25Config

Scorer = Callable[[list[str]], NDArray[np.floating[Any]]]
RANK_BM25 = {"okapi": rank_bm25.BM25Okapi, "l": rank_bm25.BM25L, "plus": rank_bm25.BM25Plus}
BM25S = {"okapi": "robertson", "l": "bm25l", "plus": "bm25+", "lucene": "lucene", "atire": "atire"}
EMPTY = ""  # stands in a video without a word; no query holds it


class BM25(Recommender):
    """BM25 of the query's words in the fields of a video, read as one text; one tokenizer for both sides.

    `backend=rank_bm25` is the definition: `variant` okapi, l or plus. It loops over the videos for each word of a
    query. `backend=bm25s` sums precomputed scores, for large collections: `plus` agrees with rank_bm25; `okapi` is
    its Robertson and `l` its BM25L, which are defined otherwise (rank_bm25 lifts negative weights of frequent words to
    a quarter of the mean weight and scores BM25L only where a word occurs); lucene and atire are bm25s's alone.

    A query without a known word scores every video 0.

    Args:
        config: fields, variant, its k1, b and delta (null: the backend's), stemming, stop words and backend.
        tables: not read; models share one signature.
        loss: not used.
        optimizer: not used.
    """

    fittable: ClassVar[bool] = False
    reads_halves: ClassVar[bool] = True  # it reads no vectors
    decoupled: ClassVar[bool] = False

    def __init__(
        self,
        config: BM25Config,
        tables: Tables,
        loss: nn.Module | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(tables)
        self.config = config
        self.tokenize = tokenizer(config.stem, config.stop_words)
        self.documents: list[list[str]] = []

    def prepare(self, data: RankingDataModule) -> None:
        """Index the videos.

        Raises:
            NotApplicable: no video has a word.
        """
        texts = video_texts(data.collection, self.config.fields)
        self._index([self.tokenize(text) or [EMPTY] for text in texts])

    def score(self, queries: QueryBatch) -> Tensor:
        """BM25 of B texts against all videos, (B, N)."""
        scores = torch.zeros(len(queries.texts), len(self.documents))
        for row, text in enumerate(queries.texts):
            words = [word for word in self.tokenize(text) if word in self._known]
            if words:
                scores[row] = torch.from_numpy(self._scorer(words))
        return scores.to(self.tables.device)

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """As any other scores: no judgment is read."""
        return self.score(queries)

    def get_extra_state(self) -> dict[str, Any]:
        """The words of every video, as numbers."""
        vocabulary = sorted({word for words in self.documents for word in words})
        number = {word: at for at, word in enumerate(vocabulary)}
        return {
            "vocabulary": vocabulary,
            "words": torch.tensor([number[word] for words in self.documents for word in words], dtype=torch.int32),
            "lengths": torch.tensor([len(words) for words in self.documents], dtype=torch.int32),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Index the videos of a saved model."""
        words = [state["vocabulary"][number] for number in state["words"].tolist()]
        ends = state["lengths"].long().cumsum(0).tolist()
        self._index([words[start:end] for start, end in zip([0, *ends], ends, strict=False)])

    def _index(self, documents: list[list[str]]) -> None:
        self.documents = documents
        self._known = {word for words in documents for word in words} - {EMPTY}
        if not self._known:
            raise NotApplicable("no video has a word to match")
        config = self.config
        given = {} if config.delta is None or config.variant not in ("l", "plus") else {"delta": config.delta}
        build = _bm25s if config.backend == "bm25s" else _rank_bm25
        self._scorer = build(documents, config.variant, k1=config.k1, b=config.b, **given)


def video_texts(collection: Collection, fields: Sequence[str]) -> list[str]:
    """The fields of every video as one text; a text that stands in for a missing field is not read twice."""
    return as_one([collection.field_texts(name) for name in fields])


def _rank_bm25(documents: list[list[str]], variant: str, **values: float) -> Scorer:
    scorer: Scorer = RANK_BM25[variant](documents, **values).get_scores
    return scorer


def _bm25s(documents: list[list[str]], variant: str, **values: float) -> Scorer:
    try:
        import bm25s
    except ImportError as error:
        raise UserError("model.backend=bm25s: pip install 'dcdt[bm25s]', or choose rank_bm25.") from error
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # its import asks for DEBUG
    if variant == "plus":
        values = {"delta": 1.0, **values}  # as in rank_bm25; bm25s takes 0.5 for every variant
    index = bm25s.BM25(method=BM25S[variant], **values)
    index.index(documents, show_progress=False)
    scorer: Scorer = index.get_scores
    return scorer
