"""Cut transcripts into overlapping passages, at ends of sentences where there are any, else at segments."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dcdt.data.transcripts import Segment

WORDS, OVERLAP = 120, 60  # at most, of a passage and of what it shares with the one before
_SENTENCE = re.compile(r"""([.!?…]["')\]]*) |([\u3002\uff01\uff1f])""")  # the latter: of Chinese and Japanese
_HAN = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_ENDS = re.compile(r"""[.!?…\u3002\uff01\uff1f]["')\]]*$""")


class Passage(NamedTuple):
    """A part of a transcript and its start in seconds, None where that is not known."""

    start: float | None
    text: str


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

    @cached_property
    def video(self) -> NDArray[np.int64]:
        """The row of the video of each passage, (P,)."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


def make_passages(
    transcripts: Sequence[Sequence[Segment]], fallbacks: Sequence[str], words: int = WORDS, overlap: int = OVERLAP
) -> Passages:
    """Cut the transcripts of N videos, by `cut_passages`.

    Args:
        transcripts: segments of each video.
        fallbacks: text of each video, the passage of one without segments.
        words: at most, of a passage.
        overlap: words at most that two passages share.
    """
    cut = [
        cut_passages(segments, words, overlap) if segments else [Passage(None, fallback)]
        for segments, fallback in zip(transcripts, fallbacks, strict=True)
    ]
    starts = np.array([passage.start for passages in cut for passage in passages], dtype=np.float64)
    offsets = np.cumsum([0, *map(len, cut)])
    return Passages([passage.text for passages in cut for passage in passages], starts, offsets)


def cut_passages(segments: Sequence[Segment], words: int = WORDS, overlap: int = OVERLAP) -> list[Passage]:
    """Cut a transcript into passages of at most `words` words, each sharing at most `overlap` with the next.

    A passage ends at the last end of a sentence in its second half and begins after one, where there is one; else both
    are at segments. Its start is that of its first words, in proportion within a segment whose end is known.

    Args:
        segments: of one video, in the order of time.
        words: at least 2.
        overlap: at most half of the words.
    """
    pieces = [piece for segment in segments for piece in _pieces(segment, words - overlap)]
    total = [0, *accumulate(count_words(piece.text) for piece in pieces)]  # words before each piece
    ends = [False, *(_ENDS.search(piece.text) is not None for piece in pieces)]  # before each piece
    passages, first = [], 0
    while True:
        last = bisect_right(total, total[first] + words) - 1
        if last < len(pieces):
            least = total[first] + max(words // 2, overlap)
            last = next((cut for cut in range(last, first, -1) if ends[cut] and total[cut] > least), last)
        passages.append(Passage(pieces[first].start, " ".join(piece.text for piece in pieces[first:last])))
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


def _pieces(segment: Segment, limit: int) -> Iterator[Passage]:
    """Split a segment at ends of sentences, and what is longer than the limit within."""
    sentences = _SENTENCE.sub(r"\1\2\n", segment.text).split("\n")
    texts = [text for sentence in sentences if sentence.strip() for text in _halve(sentence.strip(), limit)]
    length, before = max(1, sum(map(len, texts))), 0
    for text in texts:
        start = segment.start
        if start is not None and segment.end is not None:
            start += (segment.end - start) * before / length
        yield Passage(start, text)
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
