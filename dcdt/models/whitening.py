"""Soft whitening: an unsupervised linear map that shrinks the directions that all videos share."""

import torch
from torch import Tensor

STRENGTH, POWER = 20.0, 0.5  # chosen on Khan maths, Cranfield and linear algebra together: docs/research.md


def soft_whitening(vectors: Tensor, strength: float = STRENGTH, power: float = POWER) -> Tensor:
    """Compute `(C + strength (D / n) m I)^(-power)`, C the second moment of the vectors, m its mean eigenvalue.

    The ridge grows as the vectors become few, so that a small catalogue is hardly changed. C is not centred: a shift
    of queries by the videos' mean hurt on small catalogues (docs/research.md).

    Args:
        vectors: (n, D).
        strength: of the ridge, in units of the mean eigenvalue at n = D.
        power: 0 changes nothing, 0.5 is full whitening but for the ridge.

    Returns:
        (D, D) symmetric, its mean eigenvalue 1, in the type and on the device of `vectors`.
    """
    n, width = vectors.shape
    x = vectors.cpu().double() / n**0.5  # not every device has double precision
    small = n < width  # then the Gram matrix has the same eigenvalues and fewer of them
    values, basis = torch.linalg.eigh(x @ x.T if small else x.T @ x)
    values = values.clamp(min=0)
    ridge = strength * width / n * float(x.square().sum()) / width
    scale = (values + ridge) ** -power
    if small:
        basis = torch.nn.functional.normalize(x.T @ basis, dim=0)  # (n, n) -> (D, n)
        other = ridge**-power  # eigenvalue of the other D - n directions
        matrix = other * torch.eye(width, dtype=x.dtype) + (basis * (scale - other)) @ basis.T
    else:
        matrix = (basis * scale) @ basis.T
    whitening: Tensor = (matrix / (matrix.trace() / width)).to(vectors.device, vectors.dtype)
    return whitening


def catalogue_whitening(videos: Tensor, candidates: Tensor) -> Tensor:
    """Compute the soft whitening (D, D) of the field vectors (F, N, D) of the candidate videos (N,)."""
    return soft_whitening(videos[:, candidates.to(videos.device)].flatten(0, 1))
