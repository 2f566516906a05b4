"""Queries without questions: predict each learner's last video from the ones before."""

from pathlib import Path

import numpy as np

from dcdt.data.interactions import load_interactions
from dcdt.data.types import Documents, Judgments
from dcdt.utils.errors import UserError

LENGTHS = {2: "1 to 2 watched", 5: "3 to 5 watched", 10: "6 to 10 watched"}  # of a history: kinds of queries by maximum
LONGER = "over 10 watched"


def next_video_queries(path: Path, videos: Documents) -> tuple[Documents, Judgments, Judgments]:
    """Make one query for each learner: the last video is held out, the history are those before.

    A video counts once a learner, at its first time. The videos that a learner first watched at the last of these times
    are held out: usually one, several if they have the same time. Learners with a single time have no history and
    no query.

    Args:
        path: the file of interactions.
        videos: the catalogue.

    Returns:
        The queries, with the learner's id for theirs, no text, and `user_id`, `timestamp` and `kind` (the length of the
        history) as metadata; their positives (grade 1); and the pairs of query and video that are not ranked, since
        the learner has watched it.

    Raises:
        UserError: a line is invalid, or no learner has a history.
    """
    watches = load_interactions(path, videos.row_of)
    first_watch = np.unique(watches.user * np.int64(len(videos)) + watches.item, return_index=True)[1]  # of first times
    first_watch.sort()
    user, item, time = watches.user[first_watch], watches.item[first_watch], watches.time[first_watch]
    last = np.full(len(watches.users), -np.inf)
    np.maximum.at(last, user, time)
    first = np.full(len(watches.users), np.inf)
    np.minimum.at(first, user, time)
    asking = np.flatnonzero(first < last)
    if not len(asking):
        raise UserError(f"{path}: no learner has two videos at different times, so none has a next one to rank.")
    query_of = np.full(len(watches.users), -1, dtype=np.int64)
    query_of[asking] = np.arange(len(asking))
    names = [watches.users[user_row] for user_row in asking.tolist()]
    has_query, is_earlier = query_of[user] >= 0, time < last[user]
    lengths = np.bincount(query_of[user[has_query & is_earlier]], minlength=len(asking))
    kinds = np.array([*LENGTHS.values(), LONGER])[np.searchsorted(list(LENGTHS), lengths)]
    metadata = [
        {"user_id": name, "timestamp": float(asked_at), "kind": kind}
        for name, asked_at, kind in zip(names, last[asking].tolist(), kinds.tolist(), strict=True)
    ]
    queries = Documents(names, [""] * len(names), [""] * len(names), metadata)
    positives, earlier = (
        Judgments(query_of[user[keep]], item[keep], np.ones(int(keep.sum()), dtype=np.float32))
        for keep in (has_query & ~is_earlier, has_query & is_earlier)
    )
    return queries, positives, earlier
