"""Similarities between vectors: large where they are alike. Computed in fp32 at least, also under autocast."""

import torch
from torch import Tensor

from dcdt.utils.precision import at_least_float32, autocast_off


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Compute dot products along the last dimension: the cosine similarity of normalised vectors."""
    with autocast_off(a):
        return torch.einsum("...w,...w->...", at_least_float32(a), at_least_float32(b))


def pairwise_dot(a: Tensor, b: Tensor) -> Tensor:
    """Compute the dot products (B, U) of all rows of (B, W) with all rows of (U, W)."""
    with autocast_off(a):
        return at_least_float32(a) @ at_least_float32(b).T
