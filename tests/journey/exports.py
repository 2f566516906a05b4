"""A collection as the tables that somebody would export from their own platform: odd column names, odd order."""

import csv
import random
from pathlib import Path

from dcdt.data.types import Collection

VIDEOS, QUESTIONS, SEED = 500, 100, 7


def write_exports(collection: Collection, folder: Path, videos: int = VIDEOS, questions: int = QUESTIONS) -> None:
    """Write catalogue.csv (semicolons, a BOM), asked.csv and new.csv, with the columns that docs/quickstart.md names.

    Args:
        collection: where texts and judgments come from; queries are those in its languages with a positive.
        folder: where the files go.
        videos: of the catalogue, with every positive of the questions among them; the last three of the rest are new.
        questions: labelled ones, a row for each of their positives.
    """
    draw = random.Random(SEED)
    slices = {int(row) for rows in collection.slice_rows().values() for row in rows}
    answers: dict[int, list[int]] = {}
    for query, video in zip(collection.positives.query.tolist(), collection.positives.video.tolist(), strict=True):
        if query not in slices:
            answers.setdefault(query, []).append(video)
    asked = draw.sample(sorted(answers), min(questions, len(answers)))
    needed = {video for query in asked for video in answers[query]}
    others = [row for row in range(len(collection.videos)) if row not in needed]
    draw.shuffle(others)
    new, others = others[:3], others[3:]
    kept = [*sorted(needed), *others[: max(0, videos - len(needed))]]
    draw.shuffle(kept)
    draw.shuffle(asked)
    found = collection.videos
    head = ["minutes", "Course Name", "Clip Nr", "Blurb"]
    lengths = [round(data.get("duration_s", 0) / 60, 1) or "" for data in found.metadata]
    _write(
        folder / "catalogue.csv",
        [head, *([lengths[row], found.titles[row], found.ids[row], found.texts[row]] for row in kept)],
        ";",
    )
    rows = [(collection.queries.texts[query], found.ids[video]) for query in asked for video in answers[query]]
    _write(folder / "asked.csv", [["What they asked", "Clip"], *rows], ",")
    _write(
        folder / "new.csv",
        [head, *([lengths[row], found.titles[row], found.ids[row], found.texts[row]] for row in new)],
        ";",
    )


def _write(path: Path, rows: list, separator: str) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as lines:
        csv.writer(lines, delimiter=separator).writerows(rows)
