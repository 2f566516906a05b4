"""Queries where nobody asks: what does each learner watch next, given all that came before?"""

from pathlib import Path

import numpy as np

from dcdt.data.interactions import load_interactions
from dcdt.data.types import Documents, Judgments
from dcdt.utils.errors import UserError


def next_video_queries(path: Path, videos: Documents) -> tuple[Documents, Judgments, Judgments]:
    """One query for each learner: the video watched last, held out, given those watched before.

    A video counts once a learner, at its first time. What a learner first watched at the last of these times is held
    out: one video as a rule, several where they carry the same time. Learners with a single time have no history and
    no query.

    Args:
        path: the file of interactions.
        videos: the catalogue.

    Returns:
        The queries, with the learner's id for theirs, no text, and `user_id` and `timestamp` as metadata; their
        positives (grade 1); and the pairs of query and video that are not ranked, since the learner has it already.

    Raises:
        UserError: a line is not what the layout says, or no learner has a history.
    """
    watches = load_interactions(path, videos.row_of)
    place = np.unique(watches.user * np.int64(len(videos)) + watches.item, return_index=True)[1]  # of first times
    place.sort()
    user, item, time = watches.user[place], watches.item[place], watches.time[place]
    last = np.full(len(watches.users), -np.inf)
    np.maximum.at(last, user, time)
    first = np.full(len(watches.users), np.inf)
    np.minimum.at(first, user, time)
    asking = np.flatnonzero(first < last)
    if not len(asking):
        raise UserError(f"{path}: no learner has two videos at different times, so none has a next one to rank.")
    query_of = np.full(len(watches.users), -1, dtype=np.int64)
    query_of[asking] = np.arange(len(asking))
    names = [watches.users[at] for at in asking.tolist()]
    metadata = [
        {"user_id": name, "timestamp": float(when)} for name, when in zip(names, last[asking].tolist(), strict=True)
    ]
    queries = Documents(names, [""] * len(names), [""] * len(names), metadata)
    held, known = query_of[user] >= 0, time < last[user]
    positives, taken = (
        Judgments(query_of[user[keep]], item[keep], np.ones(int(keep.sum()), dtype=np.float32))
        for keep in (held & ~known, held & known)
    )
    return queries, positives, taken
