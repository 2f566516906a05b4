"""What a run shows of its validation: sample queries with their best videos, and how scores are spread."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcdt.data.datamodule import SideTensors
from dcdt.data.types import Collection

COLUMNS = ["query", "rank", "title", "link", "score", "relevant"]
LEVELS = 64  # bars of a histogram
MOST = 2**18  # scores that a histogram is made of


def sample_table(side: SideTensors, scores: Tensor, collection: Collection, n: int, k: int = 5) -> list[list[Any]]:
    """Rows of `COLUMNS` for the first n queries of a side with their k best videos.

    Args:
        side: the queries and what is judged.
        scores: (at least n, N) of the first queries of the side, -inf where a video is no candidate.
        collection: texts and links.
        n: how many queries.
        k: how many videos of each.
    """
    best = scores[:n].topk(min(k, int(side.candidates.sum())))
    rows = []
    for at, (values, videos) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
        text = collection.queries.texts[int(side.queries[at])]
        good = set(side.judged[at][side.grades[at] >= collection.positive_grade].tolist())
        for rank, (value, video) in enumerate(zip(values, videos, strict=True), start=1):
            link = str(collection.videos.metadata[video].get("url", ""))
            link = link if link.startswith(("http://", "https://")) else ""  # what a stranger's page could run
            rows.append([text, rank, collection.videos.titles[video], link, value, video in good])
    return rows


def score_spread(side: SideTensors, scores: Tensor, positive_grade: float) -> dict[str, tuple[Any, Any]]:
    """Counts and edges of the scores of `positives` and of `others` (unjudged or below), of the same edges.

    Args:
        side: the queries and what is judged.
        scores: (Q, N) of its first queries, -inf where a video is no candidate.
        positive_grade: the least grade of a positive.
    """
    n = len(scores)
    judged = side.judged[:n].masked_fill(side.grades[:n] < positive_grade, -1).to(scores.device)
    positive = torch.zeros(n, scores.shape[1] + 1, dtype=torch.bool, device=scores.device)
    positive = positive.scatter_(1, judged % positive.shape[1], True)[:, :-1]  # padding points to the added column
    parts = {"positives": scores[positive], "others": scores[~positive]}
    kept = {name: part[part.isfinite()][:: -(-part.numel() // MOST) or 1].cpu().numpy() for name, part in parts.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(kept.values())), LEVELS)
    return {name: np.histogram(part, edges) for name, part in kept.items()}


def topics(collection: Collection, most: int = 10) -> list[str]:
    """The topic of every video, for colours: what its metadata says, rare ones as `other`.

    The first of `topic`, `series`, the levels of `path` and the first of `tags` that divides the videos.
    """
    metadata = collection.videos.metadata
    depth = max((len(facts["path"]) for facts in metadata if isinstance(facts.get("path"), list)), default=0)
    columns = [[_text(facts.get(key)) for facts in metadata] for key in ("topic", "series")]
    columns += [[_text(facts.get("path"), level) for facts in metadata] for level in range(depth)]
    columns += [[_text(facts.get("tags")) for facts in metadata]]
    found = next((column for column in columns if len({value for value in column if value}) > 1), [])
    counts = {value: found.count(value) for value in set(found) if value}
    kept = sorted(counts, key=lambda value: (-counts[value], value))[:most]
    return [value if value in kept else "other" for value in found] or [collection.name] * len(metadata)


def _text(value: Any, at: int = 0) -> str:  # noqa: ANN401 - metadata is whatever the user wrote
    if isinstance(value, list):
        return str(value[at]) if at < len(value) else ""
    return "" if value is None else str(value)
