"""Hard negatives that are mined anew with the current towers."""

import torch
from torch import Tensor

from dcdt.data.tables import Tables
from dcdt.samplers.base import Score
from dcdt.samplers.config import DynamicHardSamplerConfig, HardSamplerConfig
from dcdt.samplers.hard import HardSampler
from dcdt.samplers.mining import hardest_negatives
from dcdt.samplers.pool import TrainingPool

QUERY_CHUNK = 256  # queries scored at a time


class DynamicHardSampler(HardSampler):
    """Draw from hard negatives mined with the frozen vectors during the warm-up, then with the current towers.

    After `warm_up` epochs, and every `every` epochs from there, the pool of a query becomes the share of the
    unrelated videos that the model scores highest (Xiong et al. 2021). A resumed run continues with the pools it had.

    Args:
        config: number of negatives, share and limit of the pool, warm-up and interval.
        pool: pairs, candidates and forbidden negatives.
        tables: the frozen vectors.
    """

    def __init__(self, config: DynamicHardSamplerConfig, pool: TrainingPool, tables: Tables) -> None:
        super().__init__(
            HardSamplerConfig("hard", config.negatives, config.pool_fraction, config.pool_limit), pool, tables
        )
        self.warm_up, self.every = config.warm_up, config.every

    def should_refresh(self, epoch: int) -> bool:
        """Return whether it is the end of the warm-up, or a multiple of `every` epochs after it."""
        return epoch >= self.warm_up and (epoch - self.warm_up) % self.every == 0

    def refresh(self, score: Score) -> None:
        """Fill the pools with the videos that score highest now."""
        pool, size, mined = self.pool, self.hard.shape[1], []
        chunks = zip(torch.split(pool.queries, QUERY_CHUNK), torch.split(pool.forbidden, QUERY_CHUNK), strict=True)
        for queries, forbidden in chunks:
            scores = score(queries)  # (chunk, N), searched on their device
            among = scores[:, pool.candidates.to(scores.device)]  # (chunk, C)
            mined.append(hardest_negatives(among, forbidden, size)[1])
        self.hard = pool.candidates[torch.cat(mined).cpu()]

    def state(self) -> dict[str, Tensor]:
        """Return the pools as they were mined last."""
        return {"hard": self.hard}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the pools."""
        self.hard = state["hard"]
