"""How far apart (distance) or how alike (similarity) two vectors are: two words, two functions.

All are computed in fp32 at least, also under autocast: between 0.5 and 1 bf16 has steps of 0.004, which at a
temperature of 0.05 are steps of 0.08 in a logit.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

EPS = 1e-6


def full_precision(tensor: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off on the device of a tensor: products keep the precision of what they are given."""
    return torch.autocast(tensor.device.type, enabled=False)


def wide(tensor: Tensor) -> Tensor:
    """A tensor of half precision in fp32, others as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def dot_products(a: Tensor, b: Tensor) -> Tensor:
    """Dot products (B, U) of all rows of (B, W) with all rows of (U, W)."""
    with full_precision(a):
        return wide(a) @ wide(b).T


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance along the last dimension; smooth at 0, where the plain norm has no gradient.

    Args:
        a: (..., W).
        b: (..., W), broadcast against `a`.

    Returns:
        (...), at least EPS.
    """
    return (wide(a) - wide(b)).square().sum(-1).add(EPS**2).sqrt()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product along the last dimension: the cosine similarity of normalised vectors."""
    with full_precision(a):
        return torch.einsum("...w,...w->...", wide(a), wide(b))


def chord(similarity: Tensor) -> Tensor:
    """Euclidean distance of unit vectors with this dot product, `sqrt(2 - 2 s)`; smooth where they coincide."""
    return (2 - 2 * wide(similarity)).clamp(min=0).add(EPS**2).sqrt()
