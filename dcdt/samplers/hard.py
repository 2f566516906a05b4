"""Negatives drawn from the most similar unrelated videos: the paper's dynamic hard negative sampling."""

import torch
from torch import Tensor

from dcdt.data.tables import Tables
from dcdt.samplers.base import Sampler
from dcdt.samplers.config import HardSamplerConfig
from dcdt.samplers.mining import mine_hard_negatives
from dcdt.samplers.pool import TrainingPool, draw_distinct


class HardSampler(Sampler):
    """Draw distinct negatives for every training pair from its query's pool of hard negatives.

    The pool is the share `pool_fraction` of the unrelated videos (at most `pool_limit`) whose frozen vector (title and
    text summed, normalised) has the highest cosine with the frozen query vector. It is mined once; the negatives are
    drawn from it anew each epoch.

    Args:
        config: number of negatives, share and limit of the pool.
        pool: pairs, candidates and forbidden negatives.
        tables: the frozen vectors.
    """

    def __init__(self, config: HardSamplerConfig, pool: TrainingPool, tables: Tables) -> None:
        super().__init__(pool)
        self.negatives = config.negatives
        self.sizes = (pool.free.double() * config.pool_fraction).round().long().clamp(1, config.pool_limit)  # (U,)
        queries, size = tables.queries[pool.queries], int(self.sizes.max())
        self.hard = pool.candidates[
            mine_hard_negatives(queries, tables.frozen, pool.candidates, pool.forbidden, size, device=pool.device)
        ]

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw the video rows of the negatives of every pair, (P, K)."""
        position = draw_distinct(self.sizes[self.pool.owner], self.negatives, generator)  # (P, K)
        return self.hard[self.pool.owner].gather(1, position)
