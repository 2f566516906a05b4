"""InfoNCE: a softmax over the columns of a query, with one positive or several."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from dcdt.losses.base import Loss, Targets
from dcdt.losses.config import InfoNCEConfig
from dcdt.utils.precision import at_least_float32

MIN_TEMPERATURE = 0.01  # lower bound of a learned temperature, as in CLIP


class InfoNCELoss(Loss):
    """Cross-entropy of the softmax `p_c` of `similarity / temperature` over a query's columns.

    `positives=each`: the mean over its positives of `-log p_c` (the form "out" of Khosla et al. 2020, supervised
    contrastive learning): every positive must have its share. `positives=any`: `-log sum p_c`: one suffices. With
    one positive both are the loss of van den Oord et al. 2018, and the softmax reading of the paper's eq. 3.

    A negative of weight w counts w times in the softmax's denominator, so that a column that was sampled with
    probability 1 / w represents all of its kind (logQ correction). A positive of weight w has w times its loss.

    Use it with `sampler=catalogue` where the catalogue fits (a whole listwise softmax), else with `in_batch`.

    | input | shape | meaning |
    |---|---|---|
    | similarity | (B, C) | of B queries to C videos each; at least one is a positive |
    | label | (B, C) | 1 for a positive, 0 for a negative |
    | weight | (B, C) | of each pair, 0: ignored; None: 1 for all |

    Example:
        >>> loss = InfoNCELoss(InfoNCEConfig("infonce", "each", temperature=1.0, learn_temperature=False))
        >>> loss(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])).exp()
        tensor([4.])
    """

    measure: ClassVar[str] = "similarity"

    def __init__(self, config: InfoNCEConfig) -> None:
        super().__init__()
        self.positives = config.positives
        start = torch.tensor(config.temperature).log()
        self.log_temperature = nn.Parameter(start, requires_grad=config.learn_temperature)

    @property
    def temperature(self) -> Tensor:
        """The current temperature, a scalar."""
        return self.log_temperature.exp().clamp(min=MIN_TEMPERATURE)

    def compute(self, similarity: Tensor, targets: Targets) -> Tensor:
        """Compute the loss of every query, (B,)."""
        logits = at_least_float32(similarity) / self.temperature  # (B, C)
        positive = targets.label > 0
        weight = positive.to(logits.dtype)  # (B, C) of each positive, 0 elsewhere
        if targets.weight is not None:
            logits = logits + targets.weight.masked_fill(positive, 1).log()  # a pair of weight 0 leaves the softmax
            weight = weight * targets.weight
        log_probabilities = logits.log_softmax(-1)
        if self.positives == "any":
            loss = -log_probabilities.masked_fill(~positive, float("-inf")).logsumexp(-1)
            return loss * (weight.sum(-1) / positive.sum(-1))
        return -(log_probabilities.masked_fill(~positive, 0) * weight).sum(-1) / positive.sum(-1)
