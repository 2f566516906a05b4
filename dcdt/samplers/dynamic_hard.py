"""Hard negatives that are mined again with the towers as they stand."""

import torch
from torch import Tensor

from dcdt.data.tables import Tables
from dcdt.samplers.base import Score
from dcdt.samplers.config import DynamicHardSamplerConfig, HardSamplerConfig
from dcdt.samplers.hard import HardSampler
from dcdt.samplers.mining import hardest_of
from dcdt.samplers.pool import TrainingPool

CHUNK = 256  # queries that are scored at a time


class DynamicHardSampler(HardSampler):
    """The pool of hard negatives, mined with the frozen vectors during the warm-up, then with the current towers.

    After `warm_up` epochs, and every `every` epochs from there, the pool of a query becomes the share of the
    unrelated videos that the model scores highest (Xiong et al. 2021). A resumed run goes on with the pools it had.

    Args:
        config: number of negatives, share and limit of the pool, warm-up and interval.
        pool: pairs, candidates and what is forbidden.
        tables: the frozen vectors.
    """

    def __init__(self, config: DynamicHardSamplerConfig, pool: TrainingPool, tables: Tables) -> None:
        super().__init__(
            HardSamplerConfig("hard", config.negatives, config.pool_fraction, config.pool_limit), pool, tables
        )
        self.warm_up, self.every = config.warm_up, config.every

    def due(self, epoch: int) -> bool:
        """At the end of the warm-up, and every so many epochs after it."""
        return epoch >= self.warm_up and (epoch - self.warm_up) % self.every == 0

    def mine_again(self, score: Score) -> None:
        """Fill the pools with the videos that score highest now."""
        pool, size, mined = self.pool, self.hard.shape[1], []
        parts = zip(torch.split(pool.queries, CHUNK), torch.split(pool.forbidden, CHUNK), strict=True)
        for queries, forbidden in parts:
            scores = score(queries)  # (chunk, N), searched where they are
            among = scores[:, pool.candidates.to(scores.device)]  # (chunk, C)
            mined.append(hardest_of(among, forbidden, size)[1])
        self.hard = pool.candidates[torch.cat(mined).cpu()]

    def state(self) -> dict[str, Tensor]:
        """The pools as they were mined last."""
        return {"hard": self.hard}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take them up again."""
        self.hard = state["hard"]
