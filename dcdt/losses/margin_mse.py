"""Margin-MSE: learn by how much a positive beats a negative from a teacher."""

from typing import ClassVar

from torch import Tensor, nn

from dcdt.losses.config import MarginMSEConfig
from dcdt.losses.positives import pair_gaps, pair_weights, weighted_mean


class MarginMSELoss(nn.Module):
    """`((s_positive - s_negative) - (t_positive - t_negative))^2` in the mean over the pairs of a query.

    Hofstätter et al. 2020; the teacher t is the cosine of the frozen vectors. It carries the frozen geometry into
    towers that start at random, at whatever width; towers that start as the frozen cosine have nothing to learn here.
    With `teacher` a model that needs no epochs (BM25), t is its z-score, in units of the frozen cosine's spread.

    | input | shape | meaning |
    |---|---|---|
    | similarity | (B, C) | of B queries to C videos each |
    | label | (B, C) | 1 for a positive, 0 for a negative |
    | weight | (B, C) | what a negative counts, 0: not at all; None: 1 for all |
    | teacher | (B, C) | the teacher's similarity of the same cells |

    Example:
        >>> import torch
        >>> similarity, teacher = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.5]])
        >>> MarginMSELoss(MarginMSEConfig("margin_mse", None))(similarity, torch.tensor([[1.0, 0.0]]), teacher=teacher)
        tensor([0.2500])
    """

    measure: ClassVar[str] = "similarity"
    taught: ClassVar[bool] = True

    def __init__(self, config: MarginMSEConfig) -> None:
        super().__init__()
        self.teacher = config.teacher

    def forward(
        self,
        similarity: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        teacher: Tensor | None = None,
        n_positives: int | None = None,
    ) -> Tensor:
        """Mean loss of every query, (B,); 0 where it has no negative."""
        assert teacher is not None
        error = pair_gaps(similarity, label, n_positives) - pair_gaps(teacher, label, n_positives)  # (B, G, C)
        return weighted_mean(error.square(), pair_weights(label, weight, n_positives))
