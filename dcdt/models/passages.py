"""Make one similarity of a query and a video from those of its passages."""

import math

import torch
from torch import Tensor, nn

from dcdt.data.tables import Tables
from dcdt.losses.distances import chord

TEMPERATURE = 0.02  # of cosines, at the start: near the maximum
N_DRAWN = {"max": 1, "softmax": 4}  # best passages of each pair that training reads
ABSENT = -1e4  # similarity of a passage that is not there; finite, so that its product with a weight of 0 is 0


class Pooling(nn.Module):
    """The similarity of the best passage, or the mean of all, weighted by a softmax.

    Args:
        kind: max or softmax.
        learned: whether the temperature of the softmax is trained.
    """

    def __init__(self, kind: str, learned: bool = False) -> None:
        super().__init__()
        self.kind, self.n_drawn = kind, N_DRAWN[kind]
        start = torch.tensor(math.log(TEMPERATURE))
        self.log_temperature = nn.Parameter(start) if learned and kind == "softmax" else None

    @property
    def temperature(self) -> Tensor:
        """Of the softmax."""
        return torch.tensor(TEMPERATURE) if self.log_temperature is None else self.log_temperature.exp()

    def forward(self, scores: Tensor, video: Tensor, n: int) -> Tensor:
        """Pool similarities (B, P) of passages by their video (P,), of 0 to n - 1: (B, n)."""
        index = video.expand_as(scores)
        best = _best(scores, index, n)
        if self.kind == "max":
            return best
        weights = ((scores - best.gather(1, index)) / self.temperature).exp()
        total = torch.zeros_like(best).scatter_add(1, index, weights)
        return torch.zeros_like(best).scatter_add(1, index, weights * scores) / total

    def pool_drawn(self, measured: Tensor, present: Tensor, is_distance: bool) -> Tensor:
        """Pool the passages that were drawn for each pair, distances by the similarities that they are made of.

        Args:
            measured: (B, C * M) similarities, or distances.
            present: (B, C, M) false at padding.
            is_distance: which of them.

        Returns:
            (B, C), of the same kind.
        """
        n, drawn = present.shape[1:]
        similarity = 1 - measured.square() / 2 if is_distance else measured
        video = torch.arange(n, device=measured.device).repeat_interleave(drawn)
        pooled: Tensor = self(similarity.masked_fill(~present.flatten(1), ABSENT), video, n)
        return chord(pooled) if is_distance else pooled


def make_pooling(kind: str, tables: Tables, learned: bool = False) -> Pooling | None:
    """Make the pooling of a model; None where each video has one vector, with passages=mean or without transcripts."""
    return None if kind == "mean" or tables.passages is None else Pooling(kind, learned)


def best_rows(scores: Tensor, video: Tensor, n: int, k: int = 1) -> Tensor:
    """Find the k best passages of each of n videos by similarities (B, P): (B, n, k), -1 where a video has fewer."""
    index, columns = video.expand_as(scores), torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    ranked = []
    for _ in range(k):
        best = _best(scores, index, n)
        is_best = (scores == best.gather(1, index)) & (scores > float("-inf"))
        last = torch.full_like(best, scores.shape[1], dtype=torch.int64)
        rows = last.scatter_reduce(1, index, columns.masked_fill(~is_best, scores.shape[1]), "amin")  # (B, n)
        ranked.append(rows.masked_fill(rows == scores.shape[1], -1))
        scores = scores.masked_fill(columns == rows.gather(1, index), float("-inf"))
    return torch.stack(ranked, dim=-1)


def _best(scores: Tensor, index: Tensor, n: int) -> Tensor:
    lowest = scores.new_full((len(scores), n), float("-inf"))
    return lowest.scatter_reduce(1, index, scores, "amax")
