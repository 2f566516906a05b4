"""Negatives drawn from the most similar unrelated videos: the paper's dynamic hard negative sampling."""

import torch
from torch import Tensor

from dcdt.config import HardSamplerConfig
from dcdt.data.tables import Tables
from dcdt.samplers.base import Sampler
from dcdt.samplers.pool import TrainingPool, draw_distinct


class HardSampler(Sampler):
    """Draws, for every training pair, distinct videos from its query's pool of hard negatives.

    The pool is the share `pool_share` of the unrelated videos (at most `pool_limit`) whose frozen vector (title and
    text summed, normalised) has the highest cosine with the frozen query vector. It is mined once; the negatives are
    drawn from it anew each epoch.

    Args:
        config: number of negatives, share and limit of the pool.
        pool: pairs, candidates and what is forbidden.
        tables: the frozen vectors.
    """

    def __init__(self, config: HardSamplerConfig, pool: TrainingPool, tables: Tables) -> None:
        super().__init__(pool)
        self.negatives = config.negatives
        self.sizes = (pool.free.double() * config.pool_share).round().long().clamp(1, config.pool_limit)  # (U,)
        videos = tables.frozen[pool.candidates]  # (C, D)
        self.hard = pool.candidates[mine(tables.queries[pool.queries], videos, pool.forbidden, int(self.sizes.max()))]

    def draw(self, generator: torch.Generator) -> Tensor:
        """Video rows of the negatives of every pair, (P, K)."""
        place = draw_distinct(self.sizes[self.pool.owner], self.negatives, generator)  # (P, K)
        return self.hard[self.pool.owner].gather(1, place)


def mine(queries: Tensor, videos: Tensor, forbidden: Tensor, size: int, chunk: int = 1024) -> Tensor:
    """For each query the `size` most similar videos that are not forbidden, most similar first.

    Args:
        queries: (U, D).
        videos: (C, D).
        forbidden: (U, F) positions in `videos`, padded with C.
        size: how many; where fewer are free, forbidden ones stand at the end.
        chunk: queries scored at a time, which bounds memory at chunk x C.

    Returns:
        (U, size) positions in `videos`.
    """
    parts = zip(torch.split(queries, chunk), torch.split(forbidden, chunk), strict=True)
    return torch.cat([hardest(asked @ videos.T, taken, size) for asked, taken in parts])


def hardest(scores: Tensor, forbidden: Tensor, size: int) -> Tensor:
    """For each query the `size` videos that score highest and are not forbidden, best first.

    Args:
        scores: (U, C).
        forbidden: (U, F) columns of `scores`, padded with C.
        size: how many; where fewer are free, forbidden ones stand at the end.

    Returns:
        (U, size) columns of `scores`.
    """
    padded = torch.nn.functional.pad(scores, (0, 1))  # the padding of `forbidden` points to the added column
    padded.scatter_(1, forbidden, float("-inf"))
    return padded[:, :-1].topk(min(size, scores.shape[1])).indices
