"""In-batch negatives: the positives of the other queries of a batch."""

import torch
from torch import Tensor

from dcdt.data.tables import Tables
from dcdt.samplers.config import InBatchSamplerConfig
from dcdt.samplers.pool import TrainingPool
from dcdt.samplers.shared_columns import SharedColumnSampler
from dcdt.utils.transfer import to_device


class InBatchSampler(SharedColumnSampler):
    """Use the distinct positives of a batch as its columns; a video related to a query is never its negative.

    Videos occur in batches as often as they are positives, so popular ones would be pushed away too much. `logq`
    corrects it: a video that is in the batch with probability pi weighs 1 / pi (its logit loses log pi), so that a rare
    column represents the rare ones that are missing. The sum of a query's weighted negatives then is, in expectation,
    the sum over all videos that are a positive of some query (Horvitz and Thompson 1952; Yi et al. 2019 subtract the
    log of the frequency, which is log pi up to a constant where it is small). A query's own positive weighs 1.

    Args:
        config: whether to correct, and whether several processes share their columns.
        pool: pairs, candidates and forbidden negatives.
        tables: not used; samplers share one signature.
    """

    def __init__(self, config: InBatchSamplerConfig, pool: TrainingPool, tables: Tables) -> None:
        super().__init__(pool)
        self.logq, self.gather = config.logq, config.gather
        positions = torch.searchsorted(pool.candidates, pool.pairs[:, 1].contiguous())
        self.counts = torch.bincount(positions, minlength=len(pool.candidates))  # (C,) pairs of each candidate

    def columns(self, rows: Tensor) -> Tensor:
        """Return the positions of the distinct positives of the batch, (C,)."""
        return torch.searchsorted(self.pool.candidates, torch.unique(rows[:, 1]))

    def weigh(self, weight: Tensor, label: Tensor, columns: Tensor, size: int) -> Tensor:
        """Weigh a negative by 1 / pi if `logq` is set."""
        if not self.logq:
            return weight
        probability = to_device(self.inclusion_probability(size)[columns].to(weight.dtype), weight.device)  # (C,)
        return torch.where(label > 0, weight, weight / probability)

    def inclusion_probability(self, size: int) -> Tensor:
        """Compute the probability that a video which is no positive of a query is in the query's batch, (C,).

        The other size - 1 pairs of the batch are any of the other P - 1 with equal chance, of which c are the
        video's: `1 - binomial(P - 1 - c, size - 1) / binomial(P - 1, size - 1)`.
        """
        n_others, n_drawn = len(self.pool.pairs) - 1, size - 1
        other_pairs = (n_others - self.counts).double()  # (C,) pairs that are not the video's
        absent = torch.lgamma(other_pairs + 1) - torch.lgamma((other_pairs - n_drawn).clamp(min=0) + 1)
        n_pairs = torch.tensor(n_others + 1.0).double()
        absent = absent - torch.lgamma(n_pairs) + torch.lgamma(n_pairs - n_drawn)
        return 1 - torch.where(other_pairs < n_drawn, 0.0, absent.exp())
