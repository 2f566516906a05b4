"""Hard negatives mixed with random ones."""

import torch
from torch import Tensor

from dcdt.data.tables import Tables
from dcdt.samplers.base import Sampler
from dcdt.samplers.config import HardSamplerConfig, MixedSamplerConfig, RandomSamplerConfig
from dcdt.samplers.hard import HardSampler
from dcdt.samplers.pool import TrainingPool
from dcdt.samplers.random import RandomSampler


class MixedSampler(Sampler):
    """Draw a fraction of the negatives from the hard ones, the rest uniformly from all other unrelated videos.

    With hard ones alone the towers never see the rest of the catalogue, which they must rank too.

    Args:
        config: number of negatives, fraction of hard ones, fraction and limit of their pool.
        pool: pairs, candidates and forbidden negatives.
        tables: the frozen vectors.
    """

    def __init__(self, config: MixedSamplerConfig, pool: TrainingPool, tables: Tables) -> None:
        super().__init__(pool)
        self.negatives = config.negatives
        n_hard = min(max(round(config.hard_share * config.negatives), 1), config.negatives - 1)
        self.hard = HardSampler(
            HardSamplerConfig("hard", n_hard, config.pool_fraction, config.pool_limit), pool, tables
        )
        self.random = RandomSampler(RandomSamplerConfig("random", config.negatives), pool, tables)

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw the video rows of the negatives of every pair, (P, K), hard first; distinct if enough are allowed."""
        hard, drawn = self.hard.draw(generator), self.random.draw(generator)  # (P, H), (P, K)
        is_hard = (drawn.unsqueeze(2) == hard.unsqueeze(1)).any(2)  # at most H of them
        order = (is_hard + torch.rand(drawn.shape, generator=generator)).argsort(1)  # random, duplicates last
        return torch.cat([hard, drawn.gather(1, order[:, : self.negatives - hard.shape[1]])], dim=1)
