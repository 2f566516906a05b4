"""Tokens of a text, estimated: OpenAI's vocabulary is a download that may not be there when a run starts.

The estimate is meant to be high for prose: 3.5 ASCII characters a token, and two bytes of anything else. Nothing
depends on it being right: a request that a server finds too long is divided, and a text that it finds too long is cut
again. docs/embeddings.md compares it with the real count.
"""

import math
from collections.abc import Iterator, Sequence

ASCII_PER_TOKEN = 3.5
BYTES_PER_TOKEN = 2.0  # of characters outside ASCII
SAFE_FRACTION = 0.75  # a text estimated below this share of the limit travels with others


def estimate_tokens(text: str) -> int:
    """Estimated number of tokens, at least 1.

    >>> estimate_tokens("What is an eigenvector?"), estimate_tokens("特征值")
    (7, 5)
    """
    wide = len(text.encode()) - len(text) if not text.isascii() else 0  # bytes beyond one a character
    if not wide:
        return max(1, math.ceil(len(text) / ASCII_PER_TOKEN))
    narrow = sum(char < "\x80" for char in text)
    return max(1, math.ceil(narrow / ASCII_PER_TOKEN + (wide + len(text) - narrow) / BYTES_PER_TOKEN))


def truncate(text: str, tokens: float) -> str:
    """The start of a text, as much of it as is estimated to have so many tokens; never empty."""
    share = tokens / estimate_tokens(text)
    return text[: max(1, int(len(text) * share))].rstrip() or text[:1] if share < 1 else text


def request_batches(texts: Sequence[str], inputs: int, tokens: int, longest: int) -> Iterator[list[int]]:
    """Rows of texts in requests of at most `inputs` texts and `tokens` estimated tokens, in order.

    A text that may be over `longest` tokens is a request of its own: when it is refused, no other waits for it.

    >>> list(request_batches(["a" * 7, "b" * 7, "c" * 700, "d"], 2, 100, 100))
    [[0, 1], [2], [3]]
    """
    batch: list[int] = []
    held = 0
    for row, text in enumerate(texts):
        count = min(estimate_tokens(text), longest)
        alone = count > SAFE_FRACTION * longest
        if batch and (alone or len(batch) == inputs or held + count > tokens):
            yield batch
            batch, held = [], 0
        if alone:
            yield [row]
            continue
        batch.append(row)
        held += count
    if batch:
        yield batch
