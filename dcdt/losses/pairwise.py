"""Differences between the positives and the negatives of each query, for losses over pairs of them."""

import torch
from torch import Tensor


def pairwise_differences(measured: Tensor, label: Tensor, n_positives: int | None = None) -> Tensor:
    """Subtract every column of a query from each of its positives, (B, G, C), for at most G positives a query.

    Args:
        measured: (B, C) distances or similarities.
        label: (B, C) 1 for a positive, 0 for a negative.
        n_positives: an upper bound of the positives of a query; None: counted, for which the CPU waits.

    Returns:
        `measured[b, p] - measured[b, c]` for the g-th positive p of query b.
    """
    return measured.gather(1, _positive_columns(label, n_positives)).unsqueeze(2) - measured.unsqueeze(1)


def pair_weights(label: Tensor, weight: Tensor | None, n_positives: int | None = None) -> Tensor:
    """Weigh the pairs of `pairwise_differences`: a negative by its weight, any other column by 0, (B, G, C)."""
    negative = 1 - label if weight is None else (1 - label) * weight  # (B, C)
    positive = label.gather(
        1, _positive_columns(label, n_positives)
    )  # (B, G), 0 where a query has fewer than G positives
    return positive.unsqueeze(2) * negative.unsqueeze(1)


def weighted_mean(values: Tensor, label: Tensor, weight: Tensor | None, n_positives: int | None = None) -> Tensor:
    """Average values (B, G, C) over the pairs of each query, (B,), and multiply them by the weight of their positive.

    0 where no pair counts.
    """
    weights = pair_weights(label, weight, n_positives)
    total = weights.sum((1, 2))
    if weight is not None:
        values = values * weight.gather(1, _positive_columns(label, n_positives)).unsqueeze(2)
    return (values * weights).sum((1, 2)) / torch.where(total > 0, total, torch.ones_like(total))


def _positive_columns(label: Tensor, n_positives: int | None) -> Tensor:
    """Find the columns of the positives of each query, (B, G), padded with other columns; G is exact on a CPU."""
    if n_positives is None or label.device.type == "cpu":
        n_positives = int(label.sum(1).max())
    return label.topk(min(n_positives, label.shape[1]), dim=1).indices
