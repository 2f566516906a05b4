"""The positives of a batch's other queries are a query's negatives."""

import torch
from torch import Tensor

from dcdt.data.tables import Tables
from dcdt.samplers.columns import ColumnSampler
from dcdt.samplers.config import InBatchSamplerConfig
from dcdt.samplers.pool import TrainingPool
from dcdt.utils.transfer import to_device


class InBatchSampler(ColumnSampler):
    """The distinct positives of a batch stand in its columns; what is related to a query is never its negative.

    Videos come into a batch as often as they are asked for, so popular ones would be pushed away more than their
    place in the catalogue deserves. `logq` corrects it: a video that stands in the batch with probability pi weighs
    1 / pi (its logit loses log pi), so that a rare column stands for the rare ones that are missing. The sum of a
    query's weighted negatives then is, in expectation, the sum over all videos that are asked for (Horvitz and
    Thompson 1952; Yi et al. 2019 subtract the log of the frequency, which is log pi up to a constant where it is
    small). A query's own positive is there for sure and weighs 1.

    Args:
        config: whether to correct, and whether several processes share their columns.
        pool: pairs, candidates and what is forbidden.
        tables: not used; samplers share one signature.
    """

    def __init__(self, config: InBatchSamplerConfig, pool: TrainingPool, tables: Tables) -> None:
        super().__init__(pool)
        self.logq, self.gather = config.logq, config.gather
        places = torch.searchsorted(pool.candidates, pool.pairs[:, 1].contiguous())
        self.counts = torch.bincount(places, minlength=len(pool.candidates))  # (C,) pairs of each candidate

    def columns(self, rows: Tensor) -> Tensor:
        """Positions of the distinct positives of the batch, (C,)."""
        return torch.searchsorted(self.pool.candidates, torch.unique(rows[:, 1]))

    def weigh(self, weight: Tensor, label: Tensor, columns: Tensor, size: int) -> Tensor:
        """A negative weighs 1 / pi, where asked for."""
        if not self.logq:
            return weight
        chance = to_device(self.chance(size)[columns].to(weight.dtype), weight.device)  # (C,)
        return torch.where(label > 0, weight, weight / chance)

    def chance(self, size: int) -> Tensor:
        """Probability that a video which is no positive of a query stands in the query's batch, (C,).

        The other size - 1 pairs of the batch are any of the other P - 1 with equal chance, of which c are the
        video's: `1 - binomial(P - 1 - c, size - 1) / binomial(P - 1, size - 1)`.
        """
        others, drawn = len(self.pool.pairs) - 1, size - 1
        spared = (others - self.counts).double()  # (C,) pairs that are not the video's
        none = torch.lgamma(spared + 1) - torch.lgamma((spared - drawn).clamp(min=0) + 1)
        whole = torch.tensor(others + 1.0).double()
        none = none - torch.lgamma(whole) + torch.lgamma(whole - drawn)
        return 1 - torch.where(spared < drawn, 0.0, none.exp())
