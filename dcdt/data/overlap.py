"""Queries that share most of their words with others: near twins of test queries, which training may leave out."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from dcdt.data.tokens import tokenizer


def overlaps(texts: Sequence[str], others: Sequence[str], limit: float) -> NDArray[np.bool_]:
    """Return for each of n texts whether it shares more of its words than `limit` with any of the others: (n,).

    The share is the Jaccard index of their distinct words without English stop words: the number of words that both
    have, divided by the number that either has.

    >>> overlaps(["what is the rank of a matrix", "why do vectors span"], ["rank of matrices: what is a matrix"], 0.5)
    array([ True, False])
    """
    words = tokenizer(stop_words=True)
    column_of: dict[str, int] = {}
    sets = [sorted({column_of.setdefault(word, len(column_of)) for word in words(text)}) for text in (*texts, *others)]
    sizes = np.array([len(columns) for columns in sets])
    offsets, columns = np.cumsum([0, *sizes]), np.concatenate([np.zeros(0, dtype=np.int64), *sets]).astype(np.int64)
    has = csr_matrix((np.ones(len(columns)), columns, offsets), shape=(len(sets), max(len(column_of), 1)))
    shared = (has[: len(texts)] @ has[len(texts) :].T).tocoo()  # (n, m)
    either = sizes[shared.row] + sizes[len(texts) + shared.col] - shared.data
    found = np.zeros(len(texts), dtype=bool)
    found[shared.row[shared.data > limit * either]] = True
    return found
