"""Collections in memory: documents, judgments, and the texts of a collection's fields."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdt.data.passages import Passages, make_passages
from dcdt.data.transcripts import MOMENTS, TRANSCRIPT, TRANSCRIPTS, Transcripts, read_moments, read_transcripts
from dcdt.utils.errors import MissingField, UserError
from dcdt.utils.text import one_line, pluralize

Rows = NDArray[np.int64]


TEXTS = ("title", "text")
CLICKS = "clicks"  # `metadata.weak` of queries whose judgments are clicks
MAX_WEIGHT = 1000  # of a judgment in training


@dataclass(frozen=True)
class Documents:
    """Rows of `corpus.jsonl` or `queries.jsonl`; row numbers are used everywhere else."""

    ids: list[str]
    titles: list[str]
    texts: list[str]
    metadata: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row number of each id."""
        return {name: row for row, name in enumerate(self.ids)}


@dataclass(frozen=True)
class Judgments:
    """Graded judgments as parallel arrays of row numbers; pairs that are not listed have grade 0."""

    query: Rows  # (J,)
    video: Rows  # (J,)
    grade: NDArray[np.float32]  # (J,)

    def __len__(self) -> int:
        return len(self.query)

    def where(self, keep: NDArray[np.bool_]) -> "Judgments":
        """Select the judgments for which `keep` (J,) is true."""
        return Judgments(self.query[keep], self.video[keep], self.grade[keep])


@dataclass(frozen=True)
class Collection:
    """Texts and judgments of one collection. `given_sides`: the sides of a folder with its own splits."""

    path: Path
    name: str
    videos: Documents
    queries: Documents
    judgments: Judgments
    given_sides: dict[str, Rows]
    positive_grade: float = 1.0
    languages: list[str] = field(default_factory=list)
    simulated: list[str] = field(default_factory=list)
    has_questions: bool = True  # false: a query is a learner's next video (`next_video.py`)
    excluded: Judgments | None = None  # pairs that are not ranked: watched already, or a question that is a video too
    left_out: tuple[str, ...] = ()  # what no run reads, a sentence each

    @property
    def group_keys(self) -> list[str]:
        """The key by which queries are grouped: the text of a question; without questions the learner."""
        return self.queries.texts if self.has_questions else self.queries.ids

    @cached_property
    def positives(self) -> Judgments:
        """Judgments of at least the positive grade."""
        return self.judgments.where(self.judgments.grade >= self.positive_grade)

    @cached_property
    def related(self) -> Judgments:
        """Judgments of any grade above 0."""
        return self.judgments.where(self.judgments.grade > 0)

    @cached_property
    def never_negative(self) -> Judgments:
        """Pairs that are never drawn as negatives: related ones, and a question and its own video."""
        own = self.excluded if self.has_questions else None
        parts = [self.related] if own is None else [self.related, own]
        columns = zip(*((part.query, part.video, part.grade) for part in parts), strict=True)
        return Judgments(*map(np.concatenate, columns))

    @cached_property
    def weights(self) -> dict[int, dict[int, float]]:
        """Weights of judgments in training, by query and video row, of queries with `metadata.weights`; others are 1.

        Raises:
            UserError: a weight is no number above 0.
        """
        weights: dict[int, dict[int, float]] = {}
        for row, metadata in enumerate(self.queries.metadata):
            given = metadata.get("weights") or {}
            for name, value in given.items() if isinstance(given, dict) else [("", given)]:
                if not isinstance(value, int | float) or not 0 < value <= MAX_WEIGHT:
                    place = f"the query '{one_line(self.queries.ids[row])}' has the weight {one_line(str(value))}"
                    raise UserError(f"{place}; give a number above 0, at most {MAX_WEIGHT}.")
                if name in self.videos.row_of:
                    weights.setdefault(row, {})[self.videos.row_of[name]] = float(value)
        return weights

    @cached_property
    def duplicates(self) -> dict[int, list[int]]:
        """Rows of the videos with the same description (or title, without one), for each that has duplicates."""
        groups: dict[str, list[int]] = {}
        for row, (title, text) in enumerate(zip(self.videos.titles, self.videos.texts, strict=True)):
            groups.setdefault(normalise_text(text or title), []).append(row)
        return {row: rows for rows in groups.values() if len(rows) > 1 for row in rows}

    @cached_property
    def content_hash(self) -> str:
        """Hash of all ids, texts and judgments, on which splits depend; the order of lines does not matter."""
        digest = hashlib.sha256()
        for documents in (self.videos, self.queries):
            for texts in sorted(zip(documents.ids, documents.titles, documents.texts, strict=True)):
                digest.update(json.dumps(texts).encode())
        triples = sorted(
            (self.queries.ids[q], self.videos.ids[v], float(g))
            for q, v, g in zip(self.judgments.query, self.judgments.video, self.judgments.grade, strict=True)
        )
        digest.update(json.dumps([triples, self.positive_grade]).encode())
        return digest.hexdigest()[:16]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that a run reads: content, given splits, metadata, collection.yaml and interactions.csv."""
        sides = {name: sorted(self.queries.ids[row] for row in rows) for name, rows in self.given_sides.items()}
        metadata = [
            dict(zip(documents.ids, documents.metadata, strict=True)) for documents in (self.videos, self.queries)
        ]
        hashes = [_file_hash(self.path / name) for name in ("interactions.csv", TRANSCRIPTS, MOMENTS)]
        files = hashes[: 1 if hashes[1:] == [None, None] else 3]  # without transcripts as in version 0.1
        content = [self.content_hash, sides, metadata, sorted(self.languages), sorted(self.simulated), *files]
        if self.has_questions and self.excluded is not None:
            content.append([self.queries.ids[row] for row in self.excluded.query])
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @cached_property
    def transcripts(self) -> Transcripts | None:
        """What the videos say, read at first use; None without transcripts.jsonl.

        Raises:
            UserError: a line is invalid, with file and line.
        """
        path = self.path / TRANSCRIPTS
        return read_transcripts(path, self.videos.row_of) if path.is_file() else None

    @cached_property
    def passages(self) -> Passages:
        """The passages of the transcripts, cut at first use; of a video without one its title, or its text."""
        segments = self.transcripts.segments if self.transcripts is not None else [[] for _ in self.videos.ids]
        return make_passages(segments, with_fallback([""] * len(self.videos), self.videos))

    def vector_texts(self, name: str) -> list[str]:
        """Return the texts whose vectors are a field: passages (P,) of transcripts, else the text of every video.

        Raises:
            MissingField: no video has this key of metadata.
        """
        return self.passages.texts if name == TRANSCRIPT and self.transcripts is not None else self.field_texts(name)

    @cached_property
    def moments(self) -> list[tuple[int, int, float]]:
        """Query row, video row and the second asked about, read at first use; none without moments.tsv.

        Raises:
            UserError: a line is invalid, with file and line.
        """
        path = self.path / MOMENTS
        return read_moments(path, self.queries.row_of, self.videos.row_of) if path.is_file() else []

    def field_texts(self, name: str) -> list[str]:
        """Return the text of every video for one tower: `title`, `text`, `transcript`, or a metadata key as `tags`.

        The fallback of a missing field is the title, or the text without one.

        Raises:
            MissingField: no video has this key of metadata.
        """
        if name not in TEXTS:
            self.check_fields([name])
        return with_fallback(self._raw_texts(name), self.videos)

    def _raw_texts(self, name: str) -> list[str]:
        """Return a field of every video, empty if a video lacks it; transcripts.jsonl goes before metadata."""
        is_transcript = name == TRANSCRIPT and self.transcripts is not None
        return self.transcripts.texts if is_transcript else raw_texts(self.videos, name)  # type: ignore[union-attr]

    def check_fields(self, fields: Sequence[str]) -> None:
        """Refuse fields that no video has; of title and text one is enough, the fallback for the other.

        Raises:
            MissingField: no video has this key of metadata, or any of the fields.
        """
        lacking = [name for name in fields if not any(self._raw_texts(name))]
        fatal = [name for name in lacking if name not in TEXTS or len(lacking) == len(fields)]
        if fatal:
            raise MissingField(
                f"field '{one_line(fatal[0])}': no video of {self.name} has it.\n"
                f"Set model.fields to some of {', '.join(self.fields)}."
                + " Pictures are read by model=zero_shot with image_embedder=clip."
                * (fatal[0] == "image")
            )

    def describe_fallbacks(self, fields: Sequence[str]) -> list[str]:
        """Describe to the user how many videos lack a title or a description, and the fallback, a sentence each."""
        sentences = []
        for name, fallback in (("title", "description"), ("text", "title"), (TRANSCRIPT, "title or description")):
            n = self._raw_texts(name).count("") if name in fields else 0
            field_name = "description" if name == "text" else name
            if n:
                sentences.append(
                    f"{pluralize(n, 'video has', 'videos have')} no {field_name}; the {fallback} is used instead."
                )
        return sentences

    @cached_property
    def fields(self) -> list[str]:
        """The fields that some video has: title, text, the keys of the videos' metadata, and transcript."""
        texts = {"title": self.videos.titles, "text": self.videos.texts}
        names = [name for name, values in texts.items() if any(values)] + _metadata_keys(self.videos)
        return list(dict.fromkeys([*names, *([TRANSCRIPT] if self.transcripts is not None else [])]))

    def slice_rows(self) -> dict[str, Rows]:
        """Group query rows by language, for languages outside `languages`: reported apart, never trained on."""
        spoken = set(self.languages)
        slices: dict[str, list[int]] = {}
        for row, metadata in enumerate(self.queries.metadata):
            language = metadata.get("lang")
            if language is not None and not isinstance(language, str):
                raise UserError(
                    f"the query '{one_line(self.queries.ids[row])}' has 'lang' {str(language)[:40]!r}; "
                    "give a text, as en."
                )
            if spoken and language is not None and language not in spoken:
                slices.setdefault(str(language), []).append(row)
        return {language: np.array(rows, dtype=np.int64) for language, rows in sorted(slices.items())}


def raw_texts(videos: Documents, name: str) -> list[str]:
    """Return a field of every video: `title`, `text`, or a metadata key; empty if a video lacks it."""
    if name in ("title", "text"):
        return videos.titles if name == "title" else videos.texts
    return [_metadata_text(metadata.get(name)) for metadata in videos.metadata]


def texts_with_fallback(videos: Documents, name: str) -> list[str]:
    """Return a field of every video, with the title (or the text) as fallback of a missing one."""
    return with_fallback(raw_texts(videos, name), videos)


def with_fallback(values: Sequence[str], videos: Documents) -> list[str]:
    """Replace empty values of videos by the title, or by the text without one."""
    return [value or title or text for value, title, text in zip(values, videos.titles, videos.texts, strict=True)]


def join_fields(columns: Sequence[Sequence[str]]) -> list[str]:
    """Join several fields of every video to one text; the fallback of a missing field is not repeated.

    >>> join_fields([["Rank", "Span"], ["Rank", "What is a span?"]])
    ['Rank', 'Span What is a span?']
    """
    return [" ".join(dict.fromkeys(texts)) for texts in zip(*columns, strict=True)]


class _Spaces(dict[int, str]):
    """Translation of punctuation to spaces; each character is looked up once."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        self[code] = " " if unicodedata.category(char).startswith("P") else char
        return self[code]


_SPACES = _Spaces()


def normalise_text(text: str) -> str:
    """Normalise a text for grouping: NFKC, case folded, punctuation and repeated spaces dropped.

    >>> normalise_text("What is  A = QR?") == normalise_text("what is a = qr")
    True
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    stripped = folded.translate(_SPACES)
    return " ".join(stripped.split()) or " ".join(folded.split())


def positives_by_query(judgments: Judgments, n_queries: int) -> list[list[int]]:
    """Group video rows by query row, in file order."""
    rows: list[list[int]] = [[] for _ in range(n_queries)]
    for query, video in zip(judgments.query.tolist(), judgments.video.tolist(), strict=True):
        rows[query].append(video)
    return rows


def _file_hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _metadata_text(value: Any) -> str:  # noqa: ANN401 - metadata is whatever the user wrote
    if value is None:
        return ""
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _metadata_keys(videos: Documents) -> list[str]:
    return sorted({key for metadata in videos.metadata for key in metadata})
