"""The triplet loss: a positive must be nearer than a negative, by a margin."""

from typing import ClassVar

from torch import Tensor

from dcdt.losses.base import Loss, Targets
from dcdt.losses.config import TripletConfig
from dcdt.losses.pairwise import pairwise_differences, weighted_mean


class TripletLoss(Loss):
    """`max(margin + d_positive - d_negative, 0)`, in the mean over all pairs of a positive and a negative of a query.

    Schroff, Kalenichenko and Philbin 2015 (with the plain distance, where they square it). Unlike the contrastive
    loss it has no absolute scale: once every positive is nearer by the margin, the loss is 0.

    | input | shape | meaning |
    |---|---|---|
    | distance | (B, C) | Euclidean distances of B queries to C videos each |
    | label | (B, C) | 1 for a positive, 0 for a negative |
    | weight | (B, C) | of each pair, 0: ignored; None: 1 for all |

    Example:
        >>> import torch
        >>> loss = TripletLoss(TripletConfig("triplet", margin=0.5))
        >>> loss(torch.tensor([[1.0, 1.25, 2.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
        tensor([0.1250])
    """

    measure: ClassVar[str] = "distance"

    def __init__(self, config: TripletConfig) -> None:
        super().__init__()
        self.margin = config.margin

    def compute(self, distance: Tensor, targets: Targets) -> Tensor:
        """Compute the mean loss of every query, (B,); 0 where it has no negative."""
        label, n_positives = targets.label, targets.n_positives
        gap = (self.margin + pairwise_differences(distance, label, n_positives)).clamp(min=0)  # (B, G, C)
        return weighted_mean(gap, label, targets.weight, n_positives)
