"""The contrastive loss of the paper (eq. 7) and its usual squared form."""

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import hardtanh, mse_loss

from dcdt.losses.base import Loss, Targets
from dcdt.losses.config import ContrastiveConfig


class ContrastiveLoss(Loss):
    """Pull positives to distance 0 and push negatives beyond a margin.

    As printed (`squared=False`): `y d + (1 - y) max(m - d, 0)^2`. The usual form (Hadsell, Chopra and LeCun 2006;
    their label convention is the opposite): `y d^2 / 2 + (1 - y) max(m - d, 0)^2 / 2`.

    With unit vectors and margin 1 a negative stops pushing at cosine 0.5, since d^2 = 2 - 2 cos.

    | input | shape | meaning |
    |---|---|---|
    | distance | (B, C) | Euclidean distances of B queries to C videos each |
    | label | (B, C) | 1 for a positive, 0 for a negative |
    | weight | (B, C) | of each pair, 0: ignored; None: 1 for all |

    Example:
        >>> import torch
        >>> loss = ContrastiveLoss(ContrastiveConfig("contrastive", margin=1.0, squared=False))
        >>> loss(torch.tensor([[0.5, 0.25, 1.5]]), torch.tensor([[1.0, 0.0, 0.0]]))
        tensor([[0.5000, 0.5625, 0.0000]])
    """

    measure: ClassVar[str] = "distance"

    def __init__(self, config: ContrastiveConfig) -> None:
        super().__init__()
        self.margin = config.margin
        self.limit: Tensor
        self.register_buffer("limit", torch.tensor(config.margin), persistent=False)
        self.squared = config.squared

    def compute(self, distance: Tensor, targets: Targets) -> Tensor:
        """Compute the loss of every pair, (B, C), scaled so that its mean is the weighted mean."""
        label, weight = targets.label, targets.weight
        limit = self.limit.expand_as(distance)
        gap = mse_loss(hardtanh(distance, -math.inf, self.margin), limit, reduction="none")  # max(m - d, 0)^2
        loss = torch.lerp(gap, distance.square(), label) / 2 if self.squared else torch.lerp(gap, distance, label)
        return loss if weight is None else loss * weight / weight.mean()
