"""The base class of all training losses, and what they are computed from beside the measured pairs."""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class Targets(NamedTuple):
    """Labels and weights of B queries with C videos each.

    Attributes:
        label: (B, C) 1 for a positive, 0 for a negative.
        weight: (B, C) weight of each pair, 0 for a related video that is no negative; None: 1 for all.
        teacher: (B, C) similarities of a teacher; None unless the loss has `needs_teacher`.
        n_positives: an upper bound of the positives of a query, so that a GPU need not be waited for; None: unknown.
    """

    label: Tensor
    weight: Tensor | None = None
    teacher: Tensor | None = None
    n_positives: int | None = None


class Loss(nn.Module):
    """Compute an unreduced loss of B queries with C videos each; subclasses define `compute`.

    `measure` says what the loss takes: "distance" or "similarity". A loss with `needs_teacher` is given the
    similarities of a teacher, by default the cosines of the frozen vectors.
    """

    measure: ClassVar[str]
    needs_teacher: ClassVar[bool] = False

    def forward(
        self,
        measured: Tensor,
        label: Tensor,
        weight: Tensor | None = None,
        teacher: Tensor | None = None,
        n_positives: int | None = None,
    ) -> Tensor:
        """Compute the loss of distances or similarities (B, C); the other arguments are those of `Targets`.

        Returns:
            The loss of every query, (B,), or of every pair, (B, C).
        """
        return self.compute(measured, Targets(label, weight, teacher, n_positives))

    def compute(self, measured: Tensor, targets: Targets) -> Tensor:
        """Compute the loss, (B,) or (B, C), of distances or similarities (B, C)."""
        raise NotImplementedError
