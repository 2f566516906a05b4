"""Linear item-item models fitted on a matrix of learners by videos: EASE."""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.sparse import csr_matrix

from dcdt.utils.errors import UserError

MAX_VIDEOS = 20_000  # a matrix of all pairs of videos takes 3.2 GB, and fitting holds three


def fit_ease(watched: csr_matrix, l2: float) -> NDArray[np.float32]:
    """Fit EASE (Steck 2019): the weights (N, N), diagonal 0, of the ridge regression of each video on the others.

    Args:
        watched: (U, N) counts of interactions.
        l2: penalty on the squared weights.

    Raises:
        UserError: there are too many videos.
    """
    gram = _gram(watched).toarray()  # (N, N)
    diagonal = np.diag_indices(len(gram))
    gram[diagonal] += l2
    inverse = dpotri(dpotrf(gram, lower=True)[0], lower=True)[0]  # its lower triangle
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights: NDArray[np.float32] = (inverse / -inverse[diagonal]).astype(np.float32)
    weights[diagonal] = 0
    return weights


def _gram(watched: csr_matrix) -> csr_matrix:
    n = watched.shape[1]
    if n > MAX_VIDEOS:
        raise UserError(
            f"model.kind=ease takes at most {MAX_VIDEOS:,} videos, whose pairs it weighs; here are {n:,}.\n"
            "Choose model.kind=als or an item-item kind."
        )
    watched = watched.astype(np.float64)
    return csr_matrix(watched.T @ watched)
