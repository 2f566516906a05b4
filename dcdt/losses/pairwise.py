"""The positives of each query side by side: what losses over (positive, negative) pairs start from."""

import torch
from torch import Tensor


def pairwise_differences(measured: Tensor, label: Tensor, n_positives: int | None = None) -> Tensor:
    """Every positive of a query less every column of it, (B, G, C), where no query has more than G positives.

    Args:
        measured: (B, C) distances or similarities.
        label: (B, C) 1 for a positive, 0 for a negative.
        n_positives: no query has more; None: counted, for which the CPU waits.

    Returns:
        `measured[b, p] - measured[b, c]` for the g-th positive p of query b.
    """
    return measured.gather(1, _positive_columns(label, n_positives)).unsqueeze(2) - measured.unsqueeze(1)


def pair_weights(label: Tensor, weight: Tensor | None, n_positives: int | None = None) -> Tensor:
    """What each pair of `pairwise_differences` counts: the weight of a negative, 0 for any other column, (B, G, C)."""
    counted = 1 - label if weight is None else (1 - label) * weight  # (B, C)
    held = label.gather(1, _positive_columns(label, n_positives))  # (B, G), 0 where a query has fewer than G positives
    return held.unsqueeze(2) * counted.unsqueeze(1)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over the pairs of each query, (B,), of values and weights (B, G, C); 0 where no pair counts."""
    total = weights.sum((1, 2))
    return (values * weights).sum((1, 2)) / torch.where(total > 0, total, torch.ones_like(total))


def _positive_columns(label: Tensor, n_positives: int | None) -> Tensor:
    """Columns of the positives of each query, (B, G), filled up with other columns; G is exact on a CPU."""
    if n_positives is None or label.device.type == "cpu":
        n_positives = int(label.sum(1).max())
    return label.topk(min(n_positives, label.shape[1]), dim=1).indices
