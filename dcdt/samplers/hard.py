"""Negatives drawn from the most similar unrelated videos: the paper's dynamic hard negative sampling."""

import torch
from torch import Tensor

from dcdt.config import HardSamplerConfig
from dcdt.data.tables import Tables
from dcdt.samplers.pool import TrainingPool, draw_distinct


class HardSampler:
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
        self.negatives = config.negatives
        self.pool = pool
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
    size = min(size, len(videos))
    mined = []
    for start in range(0, len(queries), chunk):
        scores = queries[start : start + chunk] @ videos.T  # (chunk, C)
        scores = torch.nn.functional.pad(scores, (0, 1))  # the padding of `forbidden` points to the added column
        scores.scatter_(1, forbidden[start : start + chunk], float("-inf"))
        mined.append(scores[:, :-1].topk(size).indices)
    return torch.cat(mined)
