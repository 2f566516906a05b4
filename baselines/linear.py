"""Linear item-item models fitted on a matrix of learners by videos: EASE and SLIM."""

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.sparse import csr_matrix

from dcdt.utils.errors import UserError

MAX_VIDEOS = 20_000  # a matrix of all pairs of videos takes 3.2 GB, and fitting holds three
MAX_SWEEPS, TOLERANCE = 50, 1e-4  # of coordinate descent, and the change of a weight that ends it


def fit_ease(watched: csr_matrix, l2: float) -> NDArray[np.float32]:
    """Fit EASE (Steck 2019): the weights (N, N), diagonal 0, of the ridge regression of each video on the others.

    Args:
        watched: (U, N) counts of interactions.
        l2: penalty on the squared weights.

    Raises:
        UserError: there are too many videos.
    """
    return fit_ease_gram(gram_matrix(watched, "ease").toarray(), l2)


def fit_ease_gram(gram: NDArray[np.float64], l2: float) -> NDArray[np.float32]:
    """Fit EASE from the sum (N, N) of `x x'` over the learners' counts x, which is changed in place.

    Noise may have made it indefinite: then its negative eigenvalues count as 0.
    """
    diagonal = np.diag_indices(len(gram))
    gram[diagonal] += l2
    factor, failed = dpotrf(gram, lower=True)
    if failed:
        values, basis = np.linalg.eigh(gram)
        factor = dpotrf((basis * np.maximum(values, l2)) @ basis.T, lower=True)[0]
    inverse = dpotri(factor, lower=True)[0]  # its lower triangle
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    weights: NDArray[np.float32] = (inverse / -inverse[diagonal]).astype(np.float32)
    weights[diagonal] = 0
    return weights


def fit_slim(watched: csr_matrix, l1: float, l2: float) -> csr_matrix:
    """Fit SLIM (Ning and Karypis 2011): the weights (N, N), none negative, of the elastic net of each video on others.

    By coordinate descent on all videos at once. A weight can only be positive between videos that learners have in
    common, more than `l1` of them.

    Args:
        watched: (U, N) counts of interactions.
        l1: penalty on the weights.
        l2: penalty on the squared weights.

    Raises:
        UserError: there are too many videos.
    """
    gram = gram_matrix(watched, "slim")
    diagonal, n = gram.diagonal(), gram.shape[0]
    gram.setdiag(0)
    gram.eliminate_zeros()
    weights = np.zeros((n, n), dtype=np.float32)
    for _ in range(MAX_SWEEPS):
        change = 0.0
        for video in range(n):
            row = slice(gram.indptr[video], gram.indptr[video + 1])
            neighbours, shared = gram.indices[row], gram.data[row]  # (H,)
            targets = neighbours[shared > l1]  # (T,)
            fitted = shared @ weights[np.ix_(neighbours, targets)]
            new = np.maximum(shared[shared > l1] - l1 - fitted, 0) / (diagonal[video] + l2)
            change = max(change, np.abs(new - weights[video, targets]).max(initial=0))
            weights[video, targets] = new
        if change < TOLERANCE:
            break
    return csr_matrix(weights)


def gram_matrix(watched: csr_matrix, kind: str) -> csr_matrix:
    """Compute the sum (N, N) of `x x'` over the counts x of all learners (U, N)."""
    n = watched.shape[1]
    if n > MAX_VIDEOS:
        raise UserError(
            f"model.kind={kind} takes at most {MAX_VIDEOS:,} videos, whose pairs it weighs; here are {n:,}.\n"
            "Choose model.kind=als or an item-item kind."
        )
    watched = watched.astype(np.float64)
    return csr_matrix(watched.T @ watched)
