"""InfoNCE: a softmax over the columns of a query, with one positive or several."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from dcdt.losses.config import InfoNCEConfig

LEAST = 0.01  # a learned temperature never falls below it, as in CLIP


class InfoNCELoss(nn.Module):
    """Cross-entropy of the softmax `p_c` of `similarity / temperature` over a query's columns.

    `positives=each`: the mean over its positives of `-log p_c` (the form "out" of Khosla et al. 2020, supervised
    contrastive learning): every positive is to have its share. `positives=any`: `-log sum p_c`: one suffices. With
    one positive both are the loss of van den Oord et al. 2018, and the softmax reading of the paper's eq. 3.

    A weight w of a cell counts it w times in the softmax's denominator, so that a column that was sampled with
    probability 1 / w stands for all of its kind (logQ correction).

    Use it with `sampler=catalogue` where the catalogue fits (a whole listwise softmax), else with `in_batch`.

    | input | shape | meaning |
    |---|---|---|
    | similarity | (B, C) | of B queries to C videos each; at least one is a positive |
    | label | (B, C) | 1 for a positive, 0 for a negative |
    | weight | (B, C) | what a cell counts, 0: not at all; None: 1 for all |

    Example:
        >>> loss = InfoNCELoss(InfoNCEConfig("infonce", "each", temperature=1.0, learn_temperature=False))
        >>> loss(torch.tensor([[0.0, 0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])).exp()
        tensor([4.])
    """

    measure: ClassVar[str] = "similarity"
    taught: ClassVar[bool] = False

    def __init__(self, config: InfoNCEConfig) -> None:
        super().__init__()
        self.positives = config.positives
        start = torch.tensor(config.temperature).log()
        self.log_temperature = nn.Parameter(start, requires_grad=config.learn_temperature)

    @property
    def temperature(self) -> Tensor:
        """The temperature as it stands, a scalar."""
        return self.log_temperature.exp().clamp(min=LEAST)

    def forward(
        self,
        similarity: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        teacher: Tensor | None = None,
        n_positives: int | None = None,
    ) -> Tensor:
        """Loss of every query, (B,)."""
        wide = torch.promote_types(similarity.dtype, torch.float32)  # not in bf16, whatever training uses
        logits = similarity.to(wide) / self.temperature  # (B, C)
        if weight is not None:
            logits = logits + weight.log()  # a cell of weight 0 leaves the softmax
        shares = logits.log_softmax(-1)
        positive = label > 0
        if self.positives == "any":
            return -shares.masked_fill(~positive, float("-inf")).logsumexp(-1)
        return -shares.masked_fill(~positive, 0).sum(-1) / positive.sum(-1)
