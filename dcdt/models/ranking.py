"""Rank the scored queries of a side among its candidates, and collect the results of a test."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dcdt.data.datamodule import RankingDataModule, SideTensors
from dcdt.evaluation.metric import RankingMetrics
from dcdt.evaluation.ranking import ranking_metrics, ranks_and_ties, top_k
from dcdt.utils.transfer import to_device

MAX_STORED_SCORES = 20_000_000  # of a side; of larger sides only the top 100 of each query
TREC_DEPTH = 100


@dataclass
class SideResult:
    """The test results of one side, all on the CPU.

    Attributes:
        queries: (n,) query rows.
        metrics: per-query values (n,) by metric name.
        ties: (n,) 1 where a positive's score equals another candidate's.
        top: scores (n, k) and video rows (n, k) of the best videos.
        pairs: (m, 2) of score and label of the pair protocol, or None.
        scores: (n, N) all scores, or None above MAX_STORED_SCORES; -inf where a video is no candidate.
    """

    queries: Tensor
    metrics: dict[str, Tensor]
    ties: Tensor
    top: tuple[Tensor, Tensor]
    pairs: Tensor | None
    scores: Tensor | None


class ResultCollector:
    """Collect the ranked chunks of all sides during a test.

    Args:
        data: its sides are tested.
        device: of the metrics.
    """

    def __init__(self, data: RankingDataModule, device: torch.device) -> None:
        self.data, self.device = data, device
        self._chunks: dict[str, list[tuple[Tensor, ...]]] = {}  # on the device of the scores, until all are done
        self._metrics: dict[str, RankingMetrics] = {}

    def add(
        self, side: SideTensors, positions: Tensor, scores: Tensor, metrics: dict[str, Tensor], ties: Tensor
    ) -> None:
        """Add a chunk of a side; `scores` (B, N), `metrics` and `ties` come from `rank_side`."""
        collected = self._metrics.setdefault(side.name, RankingMetrics(self.data.ks).to(self.device))
        collected.update(side.queries[positions], metrics)
        fits_in_memory = len(side.queries) * scores.shape[1] <= MAX_STORED_SCORES
        all_scores = (
            scores if fits_in_memory else scores.new_empty(len(scores), 0)
        )  # a slice would hold all of them in memory
        chunk = (*best_candidates(self.data, side, scores), ties, all_scores, *_pair_scores(side, positions, scores))
        self._chunks.setdefault(side.name, []).append(chunk)

    def results(self) -> dict[str, SideResult]:
        """Join the chunks of every side, on the CPU."""
        results = {}
        for name, chunks in self._chunks.items():
            values, rows, ties, scores, *pairs = (torch.cat(tensors).cpu() for tensors in zip(*chunks, strict=True))
            queries, metrics = self._metrics[name].per_query()
            results[name] = SideResult(
                queries,
                metrics,
                ties,
                (values, rows),
                torch.stack(pairs, dim=1) if self.data.sides[name].pairs is not None else None,
                scores if scores.shape[1] else None,
            )
        return results


def best_candidates(data: RankingDataModule, side: SideTensors, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores and rows of the best candidates of scores (B, N), (B, k) each, with k at most TREC_DEPTH."""
    ties, depth = data.ties.on(scores.device), min(TREC_DEPTH, side.n_candidates)
    return top_k(scores, depth, ties, side.candidate_mask(scores.device))


def rank_side(
    side: SideTensors, positions: Tensor, scores: Tensor, ties: Tensor, positive_grade: float, ks: Sequence[int]
) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Rank a chunk of a side among its candidates; the CPU waits once for scores on another device.

    Args:
        side: queries, candidates and judgments.
        positions: (B,) which of its queries, on the CPU.
        scores: (B, N) fp32, on any device.
        ties: (N,) from `tie_order`, on the same device.
        positive_grade: the lowest grade of a positive.
        ks: cut-offs.

    Returns:
        The scores, -inf where a video is no candidate of the query, on their device; on the CPU the metrics, name to
        (B,), and (B,) 1 where a positive has the score of another candidate.
    """
    device, removed = scores.device, side.removed[positions]
    candidates = side.candidate_mask(device)
    query, column = (removed >= 0).nonzero(as_tuple=True)
    if candidates is not None:
        scores = scores.masked_fill(~candidates, float("-inf"))
    elif len(query):
        scores = scores.clone()
    if len(query):
        scores[to_device(query, device), to_device(removed[query, column], device)] = float("-inf")
    judged, grades = side.judged[positions], side.grades[positions]
    ranks, tied = ranks_and_ties(scores, judged, ties, candidates)
    metrics = ranking_metrics(ranks, grades, positive_grade, ks)
    return scores, metrics, (tied & (grades >= positive_grade)).any(1).float()


def _pair_scores(side: SideTensors, positions: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores, on their device, and labels, on the CPU, of the pairs with a query in this chunk, (m,) each."""
    if side.pairs is None:
        return torch.zeros(0), torch.zeros(0)
    query, video, label = side.pairs.unbind(1)
    inside = (query >= positions[0]) & (query <= positions[-1])  # chunks are consecutive
    rows = to_device(query[inside] - positions[0], scores.device)
    return scores[rows, to_device(video[inside], scores.device)], label[inside].float()
