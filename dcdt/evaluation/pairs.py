"""Pair metrics of the paper: classify (query, video) pairs at a threshold chosen on validation."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def best_f1_threshold(scores: ArrayLike, labels: ArrayLike) -> float:
    """Find the threshold with the best F1; a pair is predicted positive if its score is at least the threshold.

    Candidates are the midpoints between adjacent distinct scores, and the lowest score itself (everything positive:
    there is nothing below it to halve). Ties go to the highest threshold: the fewest predicted positives.

    Args:
        scores: (P,) finite, of the validation pairs.
        labels: (P,) 0 or 1, at least one of them 1.

    Returns:
        The threshold.

    Raises:
        ValueError: empty or unequal inputs, scores that are not finite, no positive label.

    >>> best_f1_threshold([0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0])
    0.55
    """
    values, positive = _checked(scores, labels)
    if not positive.any():
        raise ValueError(f"0 of {len(positive)} pairs are positive: F1 needs at least 1 to choose a threshold")
    order = np.argsort(-values, kind="stable")
    descending = values[order]
    last = np.append(np.flatnonzero(descending[1:] < descending[:-1]), len(descending) - 1)  # (D,) end of each score
    true_positives = np.cumsum(positive[order])[last]  # (D,)
    f1 = 2 * true_positives / (positive.sum() + last + 1)  # (D,) one division, so equal fractions are equal floats
    best = int(np.argmax(f1))  # the first: fewest predicted positives
    upper = float(descending[last[best]])
    if best == len(last) - 1:
        return upper
    lower = float(descending[last[best] + 1])
    middle = (lower + upper) / 2
    return middle if lower < middle <= upper else upper  # none between neighbouring floats


def pair_metrics(scores: ArrayLike, labels: ArrayLike, threshold: float) -> dict[str, float]:
    """Compute accuracy, precision, recall and F1 at a threshold, and AUROC.

    Precision is 0 if nothing is predicted positive and recall 0 if nothing is positive, as in scikit-learn with
    `zero_division=0`; AUROC is NaN if one class is missing.

    Args:
        scores: (P,) finite; predicted positive from `threshold` up.
        labels: (P,) 0 or 1.
        threshold: from `best_f1_threshold` on the validation pairs.

    Returns:
        accuracy, precision, recall, f1, auroc.

    Raises:
        ValueError: empty or unequal inputs, scores that are not finite, a threshold that is NaN.
    """
    values, positive = _checked(scores, labels)
    if np.isnan(threshold):
        raise ValueError("the threshold is NaN")
    predicted = values >= threshold  # (P,)
    hits = int((predicted & positive).sum())
    n_predicted, n_positive = int(predicted.sum()), int(positive.sum())
    return {
        "accuracy": float((predicted == positive).mean()),
        "precision": hits / max(n_predicted, 1),
        "recall": hits / max(n_positive, 1),
        "f1": 2 * hits / max(n_predicted + n_positive, 1),
        "auroc": _auroc(values, positive),
    }


def _auroc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Compute the probability that a positive outscores a negative, ties counted half (Mann-Whitney U)."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if n_positive == 0 or n_negative == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)  # (D,), (P,), (D,)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2  # (D,) from 1
    u = mean_ranks[inverse][positive].sum() - n_positive * (n_positive + 1) / 2
    return float(u / (n_positive * n_negative))


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values, marks = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if values.ndim != 1 or values.shape != marks.shape or len(values) == 0:
        raise ValueError(f"scores {values.shape} and labels {marks.shape} must both be (P,), P at least 1")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} scores are not finite")
    if not np.isin(marks, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, found {np.unique(marks[~np.isin(marks, (0, 1))])[:5].tolist()}")
    return values, marks.astype(np.bool_)
