"""The unit of inference of each query: its best positive, or the learner."""

import numpy as np
from numpy.typing import NDArray

from dcdt.data.types import Collection
from dcdt.evaluation.units import best_positives


def query_units(collection: Collection, tie_positions: NDArray[np.int64]) -> list[str]:
    """Name the unit of each query row: queries of one unit are resampled, and their signs flipped, together.

    It depends on the collection alone, so a unit spans folds and the sealed quarter.

    Args:
        collection: texts and judgments.
        tie_positions: (N,) position of each video in the order of ties.

    Returns:
        The id of the query's best positive (highest grade, ties by `tie_order`), empty without a positive; in a
        collection without questions the query's own id, which is the learner's.
    """
    if not collection.has_questions:
        return list(collection.queries.ids)
    names = [""] * len(collection.queries)
    positives, video_of = collection.positives, np.argsort(tie_positions)
    rows, positions = best_positives(positives.query, tie_positions[positives.video], positives.grade)
    for row, video in zip(rows.tolist(), video_of[positions].tolist(), strict=True):
        names[row] = collection.videos.ids[video]
    return names
