"""What videos say, as a service stores it: segments in a video's metadata, its passages in lists of its row."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdt.data.passages import Passages, make_passages
from dcdt.data.transcripts import Segment, Transcripts, check_segments
from dcdt.data.types import Documents, with_fallback
from dcdt.serving.graphs import Scores

SEGMENTS = "segments"  # key of the metadata
TYPES = {
    "passage_texts": pa.list_(pa.string()),
    "passage_starts": pa.list_(pa.float64()),
}  # columns; a start may be null


def with_segments(videos: Documents, transcripts: list[list[Segment]]) -> Documents:
    """Put the transcript of each video, where it has one, into its metadata."""
    spoken = [{SEGMENTS: [segment._asdict() for segment in segments]} if segments else {} for segments in transcripts]
    return replace(videos, metadata=[old | new for old, new in zip(videos.metadata, spoken, strict=True)])


def read_segments(videos: Documents) -> tuple[list[str], Passages]:
    """Read whole transcripts and their passages from the metadata of videos; without one both are title or text."""
    values = [metadata.get(SEGMENTS) or [] for metadata in videos.metadata]
    segments = [check_segments({SEGMENTS: value}, SEGMENTS, Counter()) for value in values]
    passages = make_passages(segments, with_fallback([""] * len(videos), videos))
    return with_fallback(Transcripts(segments, "").texts, videos), passages


def passage_columns(videos: Documents, passages: Passages) -> dict[str, pa.Array]:
    """Make the columns of texts and starts, empty for videos without a transcript."""
    spans = zip(videos.metadata, passages.offsets.tolist(), passages.offsets[1:].tolist(), strict=False)
    slices = [slice(start, end if metadata.get(SEGMENTS) else start) for metadata, start, end in spans]
    starts = [None if np.isnan(start) else start for start in passages.starts.tolist()]
    columns: tuple[list[Any], list[Any]] = passages.texts, starts
    lists = [[values[span] for span in slices] for values in columns]
    return {name: pa.array(values, kind) for (name, kind), values in zip(TYPES.items(), lists, strict=True)}


def pool(scores: NDArray[Any], offsets: NDArray[np.int64], temperature: float | None = None) -> Scores:
    """Make one score a video, (N,), of those of its passages (P,): the best, or the mean weighted by a softmax."""
    scores, first = scores.astype(np.float64), offsets[:-1]
    best: Scores = np.maximum.reduceat(scores, first)
    if temperature is None:
        return best
    weights = np.exp((scores - np.repeat(best, np.diff(offsets))) / temperature)
    return np.asarray(np.add.reduceat(weights * scores, first) / np.add.reduceat(weights, first))
