"""What videos say, as a service stores it: segments in a video's metadata, its passages in lists of its row."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdt.data.captions import read_captions
from dcdt.data.passages import Passages, make_passages
from dcdt.data.transcripts import Segment, Transcripts, check_segments, read_transcripts
from dcdt.data.types import Documents, with_fallback
from dcdt.serving.graphs import Scores
from dcdt.utils.text import one_line

SEGMENTS, MAX_START = "segments", 1e6  # key of the metadata; seconds, of a passage whose start is read
PASSAGE_COLUMNS = {"passage_texts": pa.list_(pa.string()), "passage_starts": pa.list_(pa.float64())}


def with_segments(videos: Documents, transcripts: list[list[Segment]]) -> Documents:
    """Put the transcript of each video, where it has one, into its metadata."""
    spoken = [{SEGMENTS: [segment._asdict() for segment in segments]} if segments else {} for segments in transcripts]
    return replace(videos, metadata=[old | new for old, new in zip(videos.metadata, spoken, strict=True)])


def read_segments(videos: Documents) -> tuple[list[str], Passages]:
    """Read whole transcripts and their passages from the metadata of videos; without one both are title or text."""
    pairs = zip(videos.ids, (metadata.get(SEGMENTS) or [] for metadata in videos.metadata), strict=True)
    segments = [check_segments({SEGMENTS: value}, f"video '{one_line(id)}'", Counter()) for id, value in pairs]
    passages = make_passages(segments, with_fallback([""] * len(videos), videos))
    return with_fallback(Transcripts(segments, "").texts, videos), passages


def add_transcripts(videos: Documents, path: Path) -> Documents:
    """Add what is said in videos: a file like transcripts.jsonl, or a folder of captions named by their ids."""
    if not path.is_dir():
        return with_segments(videos, read_transcripts(path, videos.row_of).segments)
    spoken = read_captions(path, videos.ids)[0]
    entries = [spoken[name][SEGMENTS] if name in spoken else [] for name in videos.ids]
    return with_segments(videos, [[Segment(**entry) for entry in of_video] for of_video in entries])


def passage_columns(videos: Documents, passages: Passages) -> dict[str, pa.Array]:
    """Make the columns of texts and starts, empty for videos without a transcript."""
    spans = zip(videos.metadata, passages.offsets.tolist(), passages.offsets[1:].tolist(), strict=False)
    slices = [slice(start, end if metadata.get(SEGMENTS) else start) for metadata, start, end in spans]
    starts = [start if start < MAX_START else None for start in passages.starts.tolist()]  # neither of NaN
    columns: tuple[list[Any], list[Any]] = passages.texts, starts
    lists = [[values[span] for span in slices] for values in columns]
    return {name: pa.array(values, kind) for (name, kind), values in zip(PASSAGE_COLUMNS.items(), lists, strict=True)}


def pool(scores: NDArray[Any], offsets: NDArray[np.int64], temperature: float | None = None) -> Scores:
    """Make one score a video, (N,), of those of its passages (P,): the best, or the mean weighted by a softmax."""
    scores, first = scores.astype(np.float64), offsets[:-1]
    best: Scores = np.maximum.reduceat(scores, first)
    if temperature is None:
        return best
    weights = np.exp((scores - np.repeat(best, np.diff(offsets))) / temperature)
    return np.asarray(np.add.reduceat(weights * scores, first) / np.add.reduceat(weights, first))
