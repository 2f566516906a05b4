"""The triplet loss: a positive is to be nearer than a negative, by a margin."""

from typing import ClassVar

from torch import Tensor, nn

from dcdt.losses.config import TripletConfig
from dcdt.losses.positives import pair_gaps, pair_weights, weighted_mean


class TripletLoss(nn.Module):
    """`max(margin + d_positive - d_negative, 0)`, in the mean over all pairs of a positive and a negative of a query.

    Schroff, Kalenichenko and Philbin 2015 (with the plain distance, where they square it). Other than the contrastive
    loss it knows no absolute scale: once every positive is nearer by the margin, nothing pulls.

    | input | shape | meaning |
    |---|---|---|
    | distance | (B, C) | Euclidean distances of B queries to C videos each |
    | label | (B, C) | 1 for a positive, 0 for a negative |
    | weight | (B, C) | what a negative counts, 0: not at all; None: 1 for all |

    Example:
        >>> import torch
        >>> loss = TripletLoss(TripletConfig("triplet", margin=0.5))
        >>> loss(torch.tensor([[1.0, 1.25, 2.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
        tensor([0.1250])
    """

    measure: ClassVar[str] = "distance"
    taught: ClassVar[bool] = False

    def __init__(self, config: TripletConfig) -> None:
        super().__init__()
        self.margin = config.margin

    def forward(
        self,
        distance: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        teacher: Tensor | None = None,
        n_positives: int | None = None,
    ) -> Tensor:
        """Mean loss of every query, (B,); 0 where it has no negative."""
        gap = (self.margin + pair_gaps(distance, label, n_positives)).clamp(min=0)  # (B, G, C)
        return weighted_mean(gap, pair_weights(label, weight, n_positives))
