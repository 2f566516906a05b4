"""BM25 over the words of a video's fields."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dcdt.data.bm25 import EMPTY_WORD, BM25Index, Postings
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.tables import Tables
from dcdt.data.tokens import tokenizer
from dcdt.data.types import Collection, join_fields
from dcdt.models.config import OptimizerConfig
from dcdt.models.recommender import QueryBatch, Recommender
from dcdt.utils.errors import NotApplicable

from .config import BM25Config


class BM25(Recommender):
    """Score queries by BM25 over the joined fields of a video; one tokenizer for both sides.

    The scores are those of two libraries (`dcdt.data.bm25`). `backend=rank_bm25`: `variant` okapi, l or plus.
    `backend=bm25s`: `plus` agrees with rank_bm25; `okapi` is its Robertson and `l` its BM25L, which are defined
    otherwise (rank_bm25 lifts negative weights of frequent words to a quarter of the mean weight and scores BM25L only
    where a word occurs); lucene and atire are bm25s's alone.

    A query without a word of the catalogue scores every video 0.

    Args:
        config: fields, variant, its k1, b and delta (null: the backend's), stemming, stop words and backend.
        tables: not read; models share one signature.
        loss: not used.
        optimizer: not used.
    """

    fittable: ClassVar[bool] = False
    supports_half_precision: ClassVar[bool] = True  # it reads no vectors
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
            scores[row] = torch.from_numpy(self.index.score(self.tokenize(text)))
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
        if not any(token != EMPTY_WORD for tokens in documents for token in tokens):
            raise NotApplicable("no video has a word to match")
        config, postings = self.config, [Postings.of(documents)]
        self.index = BM25Index(config.backend, config.variant, config.k1, config.b, config.delta, postings)


def video_texts(collection: Collection, fields: Sequence[str]) -> list[str]:
    """Join the fields of every video to one text; the fallback of a missing field is not repeated."""
    return join_fields([collection.field_texts(name) for name in fields])
