"""Samples of a validation for loggers: queries with their best videos, histograms of scores, topics of videos."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcdt.data.datamodule import SideTensors
from dcdt.data.types import Collection

COLUMNS = ["query", "rank", "title", "link", "score", "relevant"]
N_BINS = 64  # of a histogram
MAX_HISTOGRAM_SCORES = 2**18


def sample_table(side: SideTensors, scores: Tensor, collection: Collection, n: int, k: int = 5) -> list[list[Any]]:
    """Rows of `COLUMNS` for the first n queries of a side with their k best videos.

    Args:
        side: the queries and their judgments.
        scores: (at least n, N) of the first queries of the side, -inf where a video is no candidate.
        collection: texts and links.
        n: number of queries.
        k: number of videos of each.
    """
    best = scores[:n].topk(min(k, int(side.candidates.sum())))
    rows = []
    for position, (values, videos) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
        text = collection.queries.texts[int(side.queries[position])]
        positives = set(side.judged[position][side.grades[position] >= collection.positive_grade].tolist())
        for rank, (value, video) in enumerate(zip(values, videos, strict=True), start=1):
            link = str(collection.videos.metadata[video].get("url", ""))
            link = link if link.startswith(("http://", "https://")) else ""  # a page opens no other scheme
            rows.append([text, rank, collection.videos.titles[video], link, value, video in positives])
    return rows


def score_spread(side: SideTensors, scores: Tensor, positive_grade: float) -> dict[str, tuple[Any, Any]]:
    """Histograms, as counts and common edges, of the scores of `positives` and of `others` (unjudged or below).

    Args:
        side: the queries and their judgments.
        scores: (Q, N) of its first queries, -inf where a video is no candidate.
        positive_grade: the least grade of a positive.
    """
    n = len(scores)
    judged = side.judged[:n].masked_fill(side.grades[:n] < positive_grade, -1).to(scores.device)
    positive = torch.zeros(n, scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    positive = positive.scatter_(1, judged % positive.shape[1], True)[:, :-1]  # padding points to the added column
    groups = {}
    for name, group in (("positives", scores[positive]), ("others", scores[~positive])):
        stride = -(-group.numel() // MAX_HISTOGRAM_SCORES) or 1
        groups[name] = group[group.isfinite()][::stride].cpu().numpy()
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), N_BINS)
    return {name: np.histogram(group, edges) for name, group in groups.items()}


def topics(collection: Collection, max_topics: int = 10) -> list[str]:
    """The topic of every video by its metadata, for colours; rare topics are `other`.

    It is the first of `topic`, `series`, the levels of `path` and the first of `tags` that divides the videos.
    """
    metadata = collection.videos.metadata
    depth = max((len(video["path"]) for video in metadata if isinstance(video.get("path"), list)), default=0)
    columns = [[_text(video.get(key)) for video in metadata] for key in ("topic", "series")]
    columns += [[_text(video.get("path"), level) for video in metadata] for level in range(depth)]
    columns += [[_text(video.get("tags")) for video in metadata]]
    values = next((column for column in columns if len({value for value in column if value}) > 1), [])
    counts = {value: values.count(value) for value in set(values) if value}
    common = sorted(counts, key=lambda value: (-counts[value], value))[:max_topics]
    return [value if value in common else "other" for value in values] or [collection.name] * len(metadata)


def _text(value: Any, level: int = 0) -> str:  # noqa: ANN401 - metadata is whatever the user wrote
    if isinstance(value, list):
        return str(value[level]) if level < len(value) else ""
    return "" if value is None else str(value)
