"""Negatives drawn uniformly from all unrelated videos."""

import torch
from torch import Tensor

from dcdt.data.tables import Tables
from dcdt.samplers.base import Sampler
from dcdt.samplers.config import RandomSamplerConfig
from dcdt.samplers.pool import TrainingPool, draw_distinct


class RandomSampler(Sampler):
    """Draw distinct negatives for every training pair from the videos that are unrelated to its query.

    Args:
        config: how many negatives a pair.
        pool: pairs, candidates and forbidden negatives.
        tables: not used; samplers share one signature.
    """

    def __init__(self, config: RandomSamplerConfig, pool: TrainingPool, tables: Tables) -> None:
        super().__init__(pool)
        self.negatives = config.negatives
        # The o-th allowed candidate is o plus the number of forbidden ones before it: f_j counts when f_j - j <= o.
        shift = pool.forbidden - torch.arange(pool.forbidden.shape[1])
        self._shift = torch.where(pool.forbidden < len(pool.candidates), shift, len(pool.candidates) + 1)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw the video rows of the negatives of every pair, (P, K)."""
        owner = self.pool.owner
        offset = draw_distinct(self.pool.free[owner], self.negatives, generator)  # (P, K)
        position = offset + torch.searchsorted(self._shift[owner].contiguous(), offset, right=True)
        return self.pool.candidates[position]
