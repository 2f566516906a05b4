"""Cut transcripts into overlapping passages, at ends of sentences where there are any, else at segments."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest

import numpy as np
from numpy.typing import NDArray

from dcdt.data.transcripts import Segment

WORDS, OVERLAP = 120, 60  # at most, of a passage and of what it shares with the one before
_SENTENCE = re.compile(r"""([.!?…]["')\]]*) |([\u3002\uff01\uff1f])""")  # the latter: of Chinese and Japanese
_HAN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_ENDS = re.compile(r"""[.!?…\u3002\uff01\uff1f]["')\]]*$""")
Passage = tuple[float | None, str]  # its start, where that is known, and its text


@dataclass(frozen=True)
class Passages:
    """The passages of all videos, those of a video side by side; a video without a transcript has one, its fallback.

    Attributes:
        texts: (P,).
        starts: (P,) seconds, NaN where they are not known.
        offsets: (N + 1,) the first passage of each video, and P.
    """

    texts: list[str]
    starts: NDArray[np.float64]
    offsets: NDArray[np.int64]


def make_passages(transcripts: Sequence[Sequence[Segment]], fallbacks: Sequence[str]) -> Passages:
    """Cut the transcripts of N videos; a video without segments has its fallback, of N, as one passage."""
    pairs = zip(transcripts, fallbacks, strict=True)
    cut = [cut_passages(segments) if segments else [(None, fallback)] for segments, fallback in pairs]
    starts = np.array([start for passages in cut for start, _ in passages], dtype=np.float64)
    return Passages([text for passages in cut for _, text in passages], starts, np.cumsum([0, *map(len, cut)]))


def cut_passages(segments: Sequence[Segment], words: int = WORDS, overlap: int = OVERLAP) -> list[Passage]:
    """Cut a transcript into passages of at most `words` words, each sharing at most `overlap` with the next.

    A passage ends at the last end of a sentence in its second half and begins after one, where there is one; else both
    are at segments. Its start is that of its first words, in proportion within a segment, None where it is not known.

    Args:
        segments: of one video, in the order of time.
        words: at least 4.
        overlap: at most half of the words.
    """
    pairs = zip_longest(segments, (segment.start for segment in segments[1:]))
    pieces = [piece for segment, after in pairs for piece in _pieces(segment, after, words - overlap)]
    total = [0, *accumulate(count_words(text) for _, text in pieces)]  # words before each piece
    ends = [False, *(_ENDS.search(text) is not None for _, text in pieces)]  # of a sentence, before each piece
    passages, first = [], 0
    while True:
        last = bisect_right(total, total[first] + words) - 1
        if last < len(pieces):
            least = total[first] + max(words // 2, overlap)
            last = next((cut for cut in range(last, first, -1) if ends[cut] and total[cut] > least), last)
        passages.append((pieces[first][0], " ".join(text for _, text in pieces[first:last])))
        if last == len(pieces):
            return passages
        begin = max(bisect_left(total, total[last] - overlap), first + 1)
        first = next((cut for cut in range(begin, last + 1) if ends[cut]), begin)


def count_words(text: str) -> int:
    """Count words, and each Han or kana character as one more, as no space separates them.

    >>> count_words("What is a rank?"), count_words("矩阵的秩")
    (4, 5)
    """
    return len(text.split()) + (0 if text.isascii() else len(_HAN.findall(text)))


def _pieces(segment: Segment, after: float | None, limit: int) -> Iterator[Passage]:
    """Split a segment at ends of sentences, and what is longer than the limit within; the next one starts `after`."""
    sentences = _SENTENCE.sub(r"\1\2\n", segment.text).split("\n")
    texts = [text for sentence in sentences if sentence.strip() for text in _halve(sentence.strip(), limit)]
    ends = [time for time in (segment.end, after) if time is not None]  # captions may overlap
    start, length, before = segment.start, sum(map(len, texts)), 0
    span = min(ends) - start if ends and start is not None else 0.0
    for text in texts:
        yield None if start is None else start + span * before / length, text
        before += len(text)


def _halve(text: str, limit: int) -> list[str]:
    """Halve a text until no part is longer than the limit."""
    if count_words(text) <= limit:
        return [text]
    words = text.split()
    middle = len(words) // 2
    halves = (" ".join(words[:middle]), " ".join(words[middle:]))
    if len(words) == 1:
        halves = text[: len(text) // 2], text[len(text) // 2 :]
    return [part for half in halves for part in _halve(half, limit)]
