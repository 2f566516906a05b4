"""Weak supervision: queries and judgments made by rule from titles or watches, marked as weak."""

from collections import Counter, defaultdict
from itertools import combinations

from dcdt.data.importer import ImportedRecords
from dcdt.data.types import normalise_text
from dcdt.utils.errors import UserError

KINDS = ("titles", "cowatched")
MIN_TITLE_WORDS = 3  # of a title that becomes a query
MAX_COMPANIONS, MIN_SHARED_LEARNERS, MAX_HISTORY = 3, 2, 200


def add_weak_queries(records: ImportedRecords, kind: str, grade: float) -> int:
    """Add queries with `metadata.weak`; existing queries are neither repeated nor changed.

    `titles`: a video's title is a query for it (inverse cloze). `cowatched`: a title is a query for the video and the
    three that most of its learners watched too, two learners at least.

    Args:
        records: of the collection; queries and judgments are added to them.
        kind: titles or cowatched.
        grade: of every new judgment, so that it counts as a positive.

    Returns:
        The number of queries added.

    Raises:
        UserError: no query can be made.
    """
    used_texts = {normalise_text(query["text"]) for query in records.queries.values()}
    companions = _companions(records) if kind == "cowatched" else {}
    added = 0
    for name, video in records.videos.items():
        title = video["title"]
        answers = [name, *companions.get(name, [])]
        is_usable = video["text"] if kind == "titles" else len(answers) > 1
        if not is_usable or len(title.split()) < MIN_TITLE_WORDS or normalise_text(title) in used_texts:
            continue
        used_texts.add(normalise_text(title))
        query = f"weak-{kind}-{name}"
        records.queries[query] = {"_id": query, "text": title, "metadata": {"weak": kind}}
        records.grades |= {(query, answer): grade for answer in answers}
        added += 1
    if not added:
        requirement = (
            "titles of three words and descriptions" if kind == "titles" else "interactions of at least two learners"
        )
        raise UserError(f"--bootstrap-queries {kind}: no query can be made; it needs {requirement}.")
    return added


def _companions(records: ImportedRecords) -> dict[str, list[str]]:
    """Find for each video those that share most learners with it, by the cosine of their sets of learners."""
    if not records.watches:
        raise UserError("--bootstrap-queries cowatched needs the watches of learners: --interactions FILE")
    histories: dict[str, dict[str, float]] = defaultdict(dict)
    for user, item, time in records.watches:
        histories[user][item] = max(time, histories[user].get(item, time))
    learners: Counter[str] = Counter()
    pair_counts: Counter[tuple[str, str]] = Counter()
    for history in histories.values():
        latest = sorted(history, key=lambda item: (-history[item], item))[:MAX_HISTORY]
        learners.update(latest)
        pair_counts.update(combinations(sorted(latest), 2))
    shared: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for (one, other), n in pair_counts.items():
        if n >= MIN_SHARED_LEARNERS:
            cosine = n / (learners[one] * learners[other]) ** 0.5
            shared[one].append((-cosine, other))
            shared[other].append((-cosine, one))
    return {name: [other for _, other in sorted(others)[:MAX_COMPANIONS]] for name, others in shared.items()}
