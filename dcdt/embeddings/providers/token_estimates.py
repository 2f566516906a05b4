"""Estimated tokens of a text: OpenAI's vocabulary is a download that a run may not have.

The estimate is meant to be high for prose: 3.5 ASCII characters a token, and two bytes of anything else. It need not be
exact: a request that is too long for a server is divided, and a text that is too long is cut again. docs/embeddings.md
compares it with the real count.
"""

import math
from collections.abc import Iterator, Sequence

ASCII_PER_TOKEN = 3.5
BYTES_PER_TOKEN = 2.0  # of characters outside ASCII
SAFE_FRACTION = 0.75  # of the limit; texts estimated to be longer are sent alone


def estimate_tokens(text: str) -> int:
    """Estimate the number of tokens, at least 1.

    >>> estimate_tokens("What is an eigenvector?"), estimate_tokens("特征值")
    (7, 5)
    """
    wide = len(text.encode()) - len(text) if not text.isascii() else 0  # bytes beyond one a character
    if not wide:
        return max(1, math.ceil(len(text) / ASCII_PER_TOKEN))
    narrow = sum(char < "\x80" for char in text)
    return max(1, math.ceil(narrow / ASCII_PER_TOKEN + (wide + len(text) - narrow) / BYTES_PER_TOKEN))


def truncate(text: str, tokens: float) -> str:
    """Cut a text to an estimated number of tokens; never empty."""
    share = tokens / estimate_tokens(text)
    return text[: max(1, int(len(text) * share))].rstrip() or text[:1] if share < 1 else text


def request_batches(texts: Sequence[str], inputs: int, tokens: int, longest: int) -> Iterator[list[int]]:
    """Divide rows of texts into requests of at most `inputs` texts and `tokens` estimated tokens, in order.

    A text that may exceed `longest` tokens is a request of its own, so that its refusal delays no other.

    >>> list(request_batches(["a" * 7, "b" * 7, "c" * 700, "d"], 2, 100, 100))
    [[0, 1], [2], [3]]
    """
    batch: list[int] = []
    batch_tokens = 0
    for row, text in enumerate(texts):
        count = min(estimate_tokens(text), longest)
        alone = count > SAFE_FRACTION * longest
        if batch and (alone or len(batch) == inputs or batch_tokens + count > tokens):
            yield batch
            batch, batch_tokens = [], 0
        if alone:
            yield [row]
            continue
        batch.append(row)
        batch_tokens += count
    if batch:
        yield batch
