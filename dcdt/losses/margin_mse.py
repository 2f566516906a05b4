"""Margin-MSE: learn the margin between a positive and a negative from a teacher."""

from typing import ClassVar

from torch import Tensor

from dcdt.losses.base import Loss, Targets
from dcdt.losses.config import MarginMSEConfig
from dcdt.losses.pairwise import pairwise_differences, weighted_mean


class MarginMSELoss(Loss):
    """`((s_positive - s_negative) - (t_positive - t_negative))^2` in the mean over the pairs of a query.

    Hofstätter et al. 2020; the teacher t is the cosine of the frozen vectors. It carries the frozen geometry into
    towers that start at random, at whatever width; towers that start as the frozen cosine have nothing to learn here.
    With `teacher` a model that needs no epochs (BM25), t is its z-score, in units of the frozen cosine's spread.

    | input | shape | meaning |
    |---|---|---|
    | similarity | (B, C) | of B queries to C videos each |
    | label | (B, C) | 1 for a positive, 0 for a negative |
    | weight | (B, C) | of each pair, 0: ignored; None: 1 for all |
    | teacher | (B, C) | the teacher's similarities of the same pairs |

    Example:
        >>> import torch
        >>> similarity, teacher = torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.5]])
        >>> MarginMSELoss(MarginMSEConfig("margin_mse", None))(similarity, torch.tensor([[1.0, 0.0]]), teacher=teacher)
        tensor([0.2500])
    """

    measure: ClassVar[str] = "similarity"
    needs_teacher: ClassVar[bool] = True

    def __init__(self, config: MarginMSEConfig) -> None:
        super().__init__()
        self.teacher = config.teacher

    def compute(self, similarity: Tensor, targets: Targets) -> Tensor:
        """Compute the mean loss of every query, (B,); 0 where it has no negative."""
        label, n_positives = targets.label, targets.n_positives
        assert targets.teacher is not None
        error = pairwise_differences(similarity, label, n_positives) - pairwise_differences(
            targets.teacher, label, n_positives
        )  # (B, G, C)
        return weighted_mean(error.square(), label, targets.weight, n_positives)
