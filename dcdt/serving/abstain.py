"""The score below which "nothing here fits", chosen on the validation queries."""

from typing import Any

import numpy as np
from torch import Tensor

from dcdt.serving.validation import Validation


def choose_threshold(validation: Validation, vectors: Tensor | None = None) -> dict[str, Any] | None:
    """The best score that tells questions with an answer from questions without one.

    Every validation query is asked twice: with the catalogue as it is, and with all videos related to it taken out, so
    that nothing is left that fits. The threshold makes the share of the first kept plus the share of the second refused
    as large as can be. Test queries are not read.

    Args:
        validation: of the run.
        vectors: (n, D) of its questions, where the service embeds them in another way than the run did.

    Returns:
        `value`, the shares `kept` and `refused` on validation, and the number of queries; None for a model that does
        not read the question.
    """
    if validation.restored.settings.model.name == "collaborative":
        return None
    found, missed = [], []
    for scores, judged in zip(validation.scores(vectors), validation.side.judged.tolist(), strict=True):
        found.append(float(scores.max()))
        scores[[video for video in judged if video >= 0]] = float("-inf")
        missed.append(float(scores.max()))
    return best_threshold(np.array(found), np.array(missed))


def best_threshold(found: np.ndarray, missed: np.ndarray) -> dict[str, Any]:
    """The threshold between best scores with (n,) and without (n,) an answer, and what it does to both.

    >>> best_threshold(np.array([3.0, 2.0, 0.5]), np.array([1.0, 0.0, 0.4]))
    {'value': 0.5, 'kept': 1.0, 'refused': 0.6666666666666666, 'queries': 3}
    """
    values = np.unique(np.concatenate([found, missed[np.isfinite(missed)]]))
    kept = (found[None] >= values[:, None]).mean(1)
    refused = (missed[None] < values[:, None]).mean(1)
    at = int(np.argmax(kept + refused))
    return {
        "value": float(values[at]),
        "kept": float(kept[at]),
        "refused": float(refused[at]),
        "queries": len(found),
    }
