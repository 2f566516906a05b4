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
from dcdt.data.transcripts import TRANSCRIPT
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

    A query without a word of the catalogue scores every video 0. `passages=max` indexes the passages of transcripts,
    each with the other fields of its video, and a video has the score of its best one.

    Args:
        config: fields, passages, variant, its k1, b and delta (null: the backend's), stemming, stop words and backend.
        tables: not read.
    """

    trained_by_epochs: ClassVar[bool] = False
    fits_from_sums = True
    supports_half_precision: ClassVar[bool] = True  # it reads no vectors
    decoupled: ClassVar[bool] = False

    def __init__(self, config: BM25Config, tables: Tables) -> None:
        super().__init__(tables)
        self.config = config
        self.tokenize = tokenizer(config.stem, config.stop_words, config.formulas)
        self.documents: list[list[str]] = []
        self.starts: NDArray[np.int64] | None = None  # (N,) first document of each video; None: each is one

    def on_prepare(self, data: RankingDataModule) -> None:
        """Index the videos.

        Raises:
            NotApplicable: no video has a word.
        """
        collection = data.collection
        texts = video_texts(collection, self.config.fields)
        if self.config.passages == "max" and TRANSCRIPT in self.config.fields and collection.transcripts is not None:
            self.starts, texts = collection.passages.offsets[:-1], passage_texts(collection, self.config.fields)
        self._index([self.tokenize(text) or [EMPTY_WORD] for text in texts])

    def score(self, queries: QueryBatch) -> Tensor:
        """Score B texts against all videos, (B, N)."""
        n_videos = len(self.documents if self.starts is None else self.starts)
        scores = torch.zeros(len(queries.texts), n_videos)
        for row, text in enumerate(queries.texts):
            by_document = self._document_scores(text)
            if by_document is not None:
                best = by_document if self.starts is None else np.maximum.reduceat(by_document, self.starts)
                scores[row] = torch.from_numpy(best)
        return scores.to(self.tables.device)

    def _document_scores(self, text: str) -> NDArray[np.floating[Any]] | None:
        """Score all documents; None where no word of the text is known."""
        words = [word for word in self.tokenize(text) if word in self._vocabulary]
        return self._scores_of(words) if words else None

    def passage_scores(self, queries: QueryBatch, video: int) -> Tensor | None:
        """Score the passages of one video, (B, p); None where whole texts are indexed."""
        if self.starts is None:
            return None
        end = [*self.starts.tolist(), len(self.documents)][video + 1]
        by_document = [self._document_scores(text) for text in queries.texts]
        rows = [np.zeros(len(self.documents)) if scores is None else scores for scores in by_document]
        return torch.from_numpy(np.stack(rows)[:, self.starts[video] : end]).float()

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """Score as usual: no judgment is read."""
        return self.score(queries)

    def get_extra_state(self) -> dict[str, Any]:
        """Return the tokens of every video, as numbers."""
        vocabulary = sorted({token for tokens in self.documents for token in tokens})
        number = {token: i for i, token in enumerate(vocabulary)}
        starts = {} if self.starts is None else {"starts": torch.from_numpy(self.starts)}
        return starts | {
            "vocabulary": vocabulary,
            "words": torch.tensor([number[token] for tokens in self.documents for token in tokens], dtype=torch.int32),
            "lengths": torch.tensor([len(tokens) for tokens in self.documents], dtype=torch.int32),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Index the videos of a saved model."""
        tokens = [state["vocabulary"][number] for number in state["words"].tolist()]
        self.starts = state["starts"].numpy() if "starts" in state else None
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


def passage_texts(collection: Collection, fields: Sequence[str]) -> list[str]:
    """Join each passage, (P,), and the other fields of its video to one text."""
    offsets = collection.passages.offsets
    video = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)).tolist()
    columns = {name: collection.field_texts(name) for name in fields if name != TRANSCRIPT}
    spread = {name: [texts[row] for row in video] for name, texts in columns.items()}
    return join_fields([spread.get(name, collection.passages.texts) for name in fields])
