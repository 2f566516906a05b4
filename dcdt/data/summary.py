"""Summarise a collection: counts, and warnings about what may be unintended."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from itertools import pairwise

import numpy as np

from dcdt.data.interactions import Interactions, load_interactions
from dcdt.data.languages import scripts, unknown_language
from dcdt.data.splits import is_sealed
from dcdt.data.times import SECONDS_PER_YEAR
from dcdt.data.types import Collection, normalise_text
from dcdt.utils.errors import NotApplicable
from dcdt.utils.text import one_line, pluralize

MIN_DESCRIPTION_WORDS = 5  # shorter descriptions are counted in a warning
MIN_JUDGED_QUERIES = 100  # with fewer, intervals are wide
MAX_SAMPLED_TEXTS = 5_000  # texts whose language is detected
MAX_GAP_SECONDS = 10 * SECONDS_PER_YEAR  # between interactions and questions
DEFAULT_EMBEDDER = "all-MiniLM-L6-v2"
FOREIGN = "Most videos are not in English, which the default embedder knows alone; embedder=multilingual knows sixteen."
WORD_BINS = (0, 1, 5, 10, 20, 40, 80, 160, 320)  # words


@dataclass(frozen=True)
class CollectionSummary:
    """Figures of a collection.

    Attributes:
        statistics: name and value, in the order of printing.
        lengths: histogram of the words of descriptions: label and number of videos.
        warnings: what may be unintended, a sentence each.
        n_queries: 0 for a catalogue without questions.
        is_foreign: whether most videos are described in another language or script than English.
    """

    statistics: list[tuple[str, str]]
    lengths: list[tuple[str, int]]
    warnings: list[str]
    n_queries: int
    is_foreign: bool = False


def summarise_collection(collection: Collection) -> CollectionSummary:
    """Count what a collection holds.

    Raises:
        UserError: interactions.csv is invalid.
    """
    videos, queries = collection.videos, collection.queries
    try:
        interactions = load_interactions(collection.path / "interactions.csv", collection.videos.row_of)
    except NotApplicable:
        interactions = None
    word_counts = [len(text.split()) for text in videos.texts]
    twins = _count_repeated([f"{title}\n{text}" for title, text in zip(videos.titles, videos.texts, strict=True)])
    distinct_queries = Counter(map(normalise_text, queries.texts))
    positives = np.bincount(collection.positives.query, minlength=len(queries))
    judged, grades = int((positives > 0).sum()), Counter(collection.judgments.grade.tolist())
    weak = sum("weak" in metadata for metadata in queries.metadata)
    untitled, bare = videos.titles.count(""), word_counts.count(0)
    statistics = [
        ("videos", f"{len(videos):,}"),
        ("without a title", f"{untitled:,}"),
        ("without a description", f"{bare:,}"),
        ("words a description", _format_percentiles(word_counts)),
        ("languages of descriptions", _format_languages(videos.texts)),
        (
            "queries",
            f"{len(queries):,}, {len(distinct_queries):,} of them distinct" + (f", {weak:,} weak" if weak else ""),
        ),
        ("queries with a positive", f"{judged:,}"),
        ("positives a query", _format_percentiles(positives[positives > 0].tolist())),
        ("grades", ", ".join(f"{grade:g}: {n:,}" for grade, n in sorted(grades.items(), reverse=True))),
        ("a positive is", f"a grade of at least {collection.positive_grade:g}"),
        ("languages of queries", _format_languages(queries.texts)),
        ("sealed quarter", f"{sum(map(is_sealed, distinct_queries)):,} distinct queries"),
        ("splits of its own", ", ".join(collection.given_sides) if len(collection.given_sides) > 1 else "none"),
        *_interaction_statistics(interactions),
        *_transcript_statistics(collection),
    ]
    n_short, n_unanswered = sum(0 < n < MIN_DESCRIPTION_WORDS for n in word_counts), len(queries) - judged
    n_few, kinds = judged if judged < MIN_JUDGED_QUERIES else 0, _weak_kinds(collection)
    checks = [
        (twins, "video repeats", "videos repeat", "the title and description of another: only one can come first."),
        (untitled, "video has", "videos have", "no title; the description is used for both towers."),
        (bare, "video has", "videos have", "no description; the title is used for both towers."),
        (n_short, "description has", "descriptions have", f"fewer than {MIN_DESCRIPTION_WORDS} words."),
        (
            n_few,
            "query has",
            "queries have",
            f"a positive; with fewer than {MIN_JUDGED_QUERIES} the intervals are wide.",
        ),
        (weak, "query is", "queries are", f"weak: made from {kinds}, without human judgments, for training only."),
        (n_unanswered, "query has", "queries have", "no positive: left out of every run."),
    ]
    described = _sample([f"{title} {text}"[:500] for title, text in zip(videos.titles, videos.texts, strict=True)])
    is_foreign = 2 * sum(bool(unknown_language(text, DEFAULT_EMBEDDER)) for text in described) > len(described)
    warnings = [
        *collection.left_out,
        *([FOREIGN] if is_foreign else []),
        *_compare_times(collection, interactions),
        *_compare_learners(collection, interactions),
        *([collection.transcripts.note] if collection.transcripts and collection.transcripts.note else []),
        *(f"{pluralize(n, singular, plural)} {consequence}" for n, singular, plural, consequence in checks if n),
    ]
    return CollectionSummary(statistics, _length_histogram(word_counts), warnings, len(queries), is_foreign)


def _compare_times(collection: Collection, interactions: Interactions | None) -> list[str]:
    """Warn where the interactions lie all after the questions, or years before them, as with times of another unit."""
    times = [metadata.get("timestamp") for metadata in collection.queries.metadata]
    questions = [float(time) for time in times if isinstance(time, int | float)]
    if interactions is None or not questions:
        return []
    first, last = float(interactions.time.min()), float(interactions.time.max())
    if first < max(questions) and min(questions) - last < MAX_GAP_SECONDS:
        return []
    days = " to ".join(map(_format_day, (first, last))), " to ".join(map(_format_day, (min(questions), max(questions))))
    return [f"The interactions are of {days[0]}, the questions of {days[1]}: are both times seconds since 1970?"]


def _compare_learners(collection: Collection, interactions: Interactions | None) -> list[str]:
    """Warn where interactions.csv names none of the learners who ask, as where one of the two has 7.0 for 7."""
    names = [str(metadata["user_id"]) for metadata in collection.queries.metadata if metadata.get("user_id")]
    if interactions is None or not names or set(names) & set(interactions.users):
        return []
    example = f"such as '{one_line(names[0])}'; it has '{one_line(interactions.users[0])}'"
    return [f"interactions.csv names none of the learners who ask, {example}: no history is known to any model."]


def _interaction_statistics(interactions: Interactions | None) -> list[tuple[str, str]]:
    if interactions is None:
        return [("interactions", "none")]
    first, last = (_format_day(float(time)) for time in (interactions.time.min(), interactions.time.max()))
    return [
        ("interactions", f"{len(interactions):,} of {len(interactions.users):,} learners, {first} to {last}"),
        ("watches a learner", _format_percentiles(np.bincount(interactions.user).tolist())),
    ]


def _transcript_statistics(collection: Collection) -> list[tuple[str, str]]:
    if collection.transcripts is None:
        return [("transcripts", "none")]
    transcripts, passages = collection.transcripts.segments, collection.passages
    hours = sum(segments[-1].end or segments[-1].start or 0 for segments in transcripts if segments) / 3600
    counts = f"{sum(map(bool, transcripts)):,} of {len(transcripts):,} videos, {hours:,.0f} hours"
    return [
        ("transcripts", f"{counts}, {len(passages.texts):,} passages"),
        ("moments", f"{len(collection.moments):,}"),
    ]


def _format_day(time: float) -> str:
    """Format the day of a time in seconds; the number itself if it is out of range.

    >>> _format_day(86400.5), _format_day(1e300)
    ('1970-01-02', '1e+300')
    """
    try:
        return datetime.fromtimestamp(time, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return f"{time:g}"


def _weak_kinds(collection: Collection) -> str:
    return " and ".join(sorted({str(data["weak"]) for data in collection.queries.metadata if "weak" in data}))


def _count_repeated(texts: Sequence[str]) -> int:
    """Count texts that repeat another, ignoring case, punctuation and spaces."""
    return len(texts) - len(set(map(normalise_text, texts)))


def _format_percentiles(numbers: Sequence[int]) -> str:
    if not numbers:
        return "none"
    low, middle, high = np.percentile(numbers, [5, 50, 95])
    return f"{middle:.0f} (5 to 95 %: {low:.0f} to {high:.0f})"


def _length_histogram(word_counts: Sequence[int]) -> list[tuple[str, int]]:
    edges = [*WORD_BINS, max(WORD_BINS[-1], *word_counts) + 1]
    counts = np.histogram(word_counts, bins=edges)[0].tolist()
    bounds = [(low, high - 1) for low, high in pairwise(edges)]
    labels = [f"{low} to {high}" if high > low else str(low) for low, high in bounds]
    labels[-1] = f"{edges[-2]} or more"
    return list(zip(labels, counts, strict=True))


def _sample(texts: Sequence[str]) -> list[str]:
    """Return texts that are not empty, at most MAX_SAMPLED_TEXTS of them, evenly over the file."""
    texts = [text for text in texts if text.strip()]
    return texts[:: 1 + len(texts) // MAX_SAMPLED_TEXTS]


def _format_languages(texts: Sequence[str]) -> str:
    """Format the shares of languages (with the extra 'languages') or scripts of at least one in a hundred."""
    sample = _sample(texts)
    if find_spec("py3langid"):
        from py3langid import classify

        counts = Counter(classify(text)[0] for text in sample)
    else:
        found = [scripts(text[:500]).most_common(1) for text in sample]
        counts = Counter(f"{script[0][0]} script" if script else "no letters" for script in found)
    shares = [(name, n / max(1, len(sample))) for name, n in counts.most_common()]
    return ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.01) or "none"
