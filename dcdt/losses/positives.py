"""The positives of each query side by side: what losses over (positive, negative) pairs start from."""

import torch
from torch import Tensor


def pair_gaps(measured: Tensor, label: Tensor) -> Tensor:
    """Every positive of a query less every column of it, (B, G, C), where no query has more than G positives.

    Args:
        measured: (B, C) distances or similarities.
        label: (B, C) 1 for a positive, 0 for a negative.

    Returns:
        `measured[b, p] - measured[b, c]` for the g-th positive p of query b.
    """
    return measured.gather(1, _places(label)).unsqueeze(2) - measured.unsqueeze(1)


def pair_weights(label: Tensor, weight: Tensor | None) -> Tensor:
    """What each pair of `pair_gaps` counts: the weight of a negative, 0 for any other column, (B, G, C)."""
    counted = 1 - label if weight is None else (1 - label) * weight  # (B, C)
    held = label.gather(1, _places(label))  # (B, G), 0 where a query has fewer than G positives
    return held.unsqueeze(2) * counted.unsqueeze(1)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over the pairs of each query, (B,), of values and weights (B, G, C); 0 where no pair counts."""
    total = weights.sum((1, 2))
    return (values * weights).sum((1, 2)) / torch.where(total > 0, total, torch.ones_like(total))


def _places(label: Tensor) -> Tensor:
    """Columns of the positives of each query, (B, G), filled up with other columns."""
    return label.topk(int(label.sum(1).max()), dim=1).indices
