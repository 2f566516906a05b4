"""Weak supervision from what exists: queries and judgments that nobody wrote, labelled as such."""

from collections import Counter, defaultdict
from itertools import combinations

from dcdt.data.importer import ImportedRecords
from dcdt.data.types import normalise_text
from dcdt.utils.errors import UserError

KINDS = ("titles", "cowatched")
MIN_TITLE_WORDS = 3  # of a title that is to be a question
MAX_COMPANIONS, MIN_SHARED_LEARNERS, MAX_HISTORY = 3, 2, 200


def add_weak_queries(found: ImportedRecords, kind: str, grade: float) -> int:
    """Add queries with `metadata.weak`; no real query is repeated and none is changed.

    `titles`: a video's title asks for its description (inverse cloze). `cowatched`: a title asks for the video and for
    the three that most of its learners watched too, two learners at least.

    Args:
        found: what was read; gets the queries and their judgments.
        kind: titles or cowatched.
        grade: of every judgment, so that it counts as a positive.

    Returns:
        The number of queries added.

    Raises:
        UserError: nothing there to make a query of.
    """
    taken = {normalise_text(query["text"]) for query in found.queries.values()}
    companions = _companions(found) if kind == "cowatched" else {}
    added = 0
    for name, video in found.videos.items():
        title = video["title"]
        answers = [name, *companions.get(name, [])]
        enough = video["text"] if kind == "titles" else len(answers) > 1
        if not enough or len(title.split()) < MIN_TITLE_WORDS or normalise_text(title) in taken:
            continue
        taken.add(normalise_text(title))
        query = f"weak-{kind}-{name}"
        found.queries[query] = {"_id": query, "text": title, "metadata": {"weak": kind}}
        found.grades |= {(query, answer): grade for answer in answers}
        added += 1
    if not added:
        need = "titles of three words and descriptions" if kind == "titles" else "interactions of at least two learners"
        raise UserError(f"--bootstrap-queries {kind}: no query can be made; it needs {need}.")
    return added


def _companions(found: ImportedRecords) -> dict[str, list[str]]:
    """For each video those that share most learners with it, by the cosine of their sets of learners."""
    if not found.watches:
        raise UserError("--bootstrap-queries cowatched needs the watches of learners: --interactions FILE")
    histories: dict[str, dict[str, float]] = defaultdict(dict)
    for user, item, time in found.watches:
        histories[user][item] = max(time, histories[user].get(item, time))
    learners: Counter[str] = Counter()
    together: Counter[tuple[str, str]] = Counter()
    for history in histories.values():
        latest = sorted(history, key=lambda item: (-history[item], item))[:MAX_HISTORY]
        learners.update(latest)
        together.update(combinations(sorted(latest), 2))
    shared: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for (one, other), n in together.items():
        if n >= MIN_SHARED_LEARNERS:
            cosine = n / (learners[one] * learners[other]) ** 0.5
            shared[one].append((-cosine, other))
            shared[other].append((-cosine, one))
    return {name: [other for _, other in sorted(others)[:MAX_COMPANIONS]] for name, others in shared.items()}
