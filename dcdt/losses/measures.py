"""How far apart (distance) or how alike (similarity) two vectors are: two words, two functions."""

import torch
from torch import Tensor

EPS = 1e-6


def euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distance along the last dimension; smooth at 0, where the plain norm has no gradient.

    Args:
        a: (..., W).
        b: (..., W), broadcast against `a`.

    Returns:
        (...), at least EPS.
    """
    return (a - b).square().sum(-1).add(EPS**2).sqrt()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product along the last dimension: the cosine similarity of normalised vectors."""
    return torch.einsum("...w,...w->...", a, b)


def chord(similarity: Tensor) -> Tensor:
    """Euclidean distance of unit vectors with this dot product, `sqrt(2 - 2 s)`; smooth where they coincide."""
    return (2 - 2 * similarity).clamp(min=0).add(EPS**2).sqrt()
