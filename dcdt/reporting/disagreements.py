"""The test queries on which two models differ most, with their texts: for the local page only."""

import re
from dataclasses import dataclass
from itertools import islice

from dcdt.data.types import Collection
from dcdt.reporting.cells import per_query
from dcdt.reporting.units import load_unchanged_collection
from dcdt.reporting.variants import Variant
from dcdt.runs.reader import Run
from dcdt.utils.errors import UserError

MAX_QUERIES, MAX_VIDEOS = 10, 5
MAX_TREC_BYTES, MAX_LINE_CHARS = 1 << 32, 10_000  # of run.trec
_BLANK = re.compile(r"\s")


@dataclass(frozen=True)
class Disagreement:
    """A query: its text, the metric of both models, and the first videos of each with whether they are positives."""

    query: str
    kind: str
    warm: str
    values: tuple[float, float]
    tops: tuple[list[tuple[str, bool]], list[tuple[str, bool]]]


def disagreements(one: Variant, other: Variant, metric: str) -> tuple[list[Disagreement], str]:
    """Find the queries with the largest difference; return them, and a note if texts are not available.

    Rankings are those of each model's first run (lowest fold and seed) that tested the query.
    """
    ours, theirs = per_query(one.runs, metric), per_query(other.runs, metric)
    gaps = {name: abs(ours[name] - theirs[name]) for name in ours.keys() & theirs.keys()}
    names = sorted((name for name, gap in gaps.items() if gap > 0), key=lambda name: (-gaps[name], name))[:MAX_QUERIES]
    collection, reason = load_unchanged_collection(one.runs[0])
    note = f"Ids instead of texts: {reason}" if reason else ""
    results = []
    for name in names:
        runs = tuple(next(run for run in variant.runs if name in run.sides["test"].ids) for variant in (one, other))
        i = runs[0].sides["test"].ids.index(name)
        scores = runs[0].sides["test"]
        text = collection.queries.texts[collection.queries.row_of[name]] if collection else name
        tops = tuple(_top_videos(run, name, collection) for run in runs)
        results.append(
            Disagreement(text, scores.kinds[i], scores.warm[i], (ours[name], theirs[name]), (tops[0], tops[1]))
        )
    return results, note


def _top_videos(run: Run, query: str, collection: Collection | None) -> list[tuple[str, bool]]:
    """Read the titles (ids without a collection) of a query's first videos in run.trec; empty without the file."""
    prefix, path = f"{_trec_id(query)} ", run.folder / "run.trec"
    if not path.is_file():  # also a link to a device, which has no end
        return []
    if path.stat().st_size > MAX_TREC_BYTES:
        raise UserError(f"{path} has more than {MAX_TREC_BYTES:,} bytes, at which reading stops.")
    try:
        with path.open(encoding="utf-8") as file:
            lines = iter(lambda: file.readline(MAX_LINE_CHARS), "")
            ranked = list(islice((line.split()[2] for line in lines if line.startswith(prefix)), MAX_VIDEOS))
    except (OSError, IndexError, UnicodeDecodeError):
        return []
    if collection is None:
        return [(name, False) for name in ranked]
    videos = collection.videos
    row_of = {_trec_id(name): row for row, name in enumerate(videos.ids)}
    judged = collection.positives
    positive = set(judged.video[judged.query == collection.queries.row_of[query]].tolist())
    rows = [row_of[name] for name in ranked if name in row_of]
    return [(videos.titles[row] or videos.texts[row][:80], row in positive) for row in rows]


def _trec_id(name: str) -> str:
    return _BLANK.sub("%20", name)
