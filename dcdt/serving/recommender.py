"""A finished run that answers questions: what `dcdt.load` returns. Neither torch nor lightning is imported."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdt.data.languages import unknown_language
from dcdt.data.transcripts import TRANSCRIPT
from dcdt.data.types import Documents, texts_with_fallback
from dcdt.embeddings.config import refuse_foreign_base_url
from dcdt.embeddings.providers.batching import round_to_float16
from dcdt.embeddings.providers.local_models import embedder_name
from dcdt.embeddings.providers.onnx import OnnxEmbedder
from dcdt.serving.arrow import row_array
from dcdt.serving.blas_threads import one_thread
from dcdt.serving.catalogue.base import Catalogue
from dcdt.serving.catalogue.engines import open_catalogue
from dcdt.serving.catalogue.facets import find_facets
from dcdt.serving.catalogue.filters import Condition, parse_filter
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.explanation import content_words, explain, matched_words
from dcdt.serving.graphs import Floats, unit
from dcdt.serving.layout import EMBEDDER, MODEL
from dcdt.serving.learners import LEARNERS, Learners, Watched, check_user
from dcdt.serving.manifest import Manifest, check_catalogue
from dcdt.serving.moments import Moment, best_moments
from dcdt.serving.passages import PASSAGE_COLUMNS, passage_columns, read_segments
from dcdt.serving.scorers import SCORERS
from dcdt.serving.scorers.base import Columns, NewVideos, Query
from dcdt.serving.scorers.hybrid import combine
from dcdt.serving.scorers.two_stage import Ranked, RankHead
from dcdt.serving.videos import documents_of, filter_kinds, table_of
from dcdt.utils.errors import UserError, check_encodable
from dcdt.utils.text import one_line

CACHED_TEXTS = 2000  # whose vectors are cached for explanations: 12 MB at 1536 numbers
MAX_K, MAX_QUESTION_CHARS = 1000, 2000
RESULT_COLUMNS = ("id", "title", "text", "series", "level", "link", "duration_s")
UNKNOWN_LANGUAGE = "the question is in {}, of which the embedder ({}) knows nothing: do not trust this answer."
UNKNOWN_LEARNER = "this learner is not known to the run, so the answer is that for anybody."


@dataclass(frozen=True)
class Recommendation:
    """One video of an answer.

    Attributes:
        rank: from 1.
        score: of the model; higher is better, and comparable within one model alone.
        id, title, text, series, level, link, duration_s: of the video; None where it is not known.
        matched: words of the question that its title or text holds.
        moments: the best first, of a model that tells the passages of a transcript apart.
        why: what made up the score; None without `explained`.
    """

    rank: int
    score: float
    id: str
    title: str
    text: str
    series: str | None
    level: str | None
    link: str | None
    duration_s: float | None
    matched: list[str] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    why: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values, for JSON, without `why` and `moments` where there are none."""
        values = vars(self) | {"moments": [vars(moment) for moment in self.moments]}
        return {key: value for key, value in values.items() if value or key not in ("why", "moments")}


@dataclass(frozen=True)
class Answers:
    """The answers to some questions.

    Attributes:
        version: of the catalogue that answered.
        videos: of each question, the best first.
        nothing_fits: of each question, whether there were videos and all of them scored below the threshold.
    """

    version: int
    videos: list[list[Recommendation]]
    nothing_fits: list[bool]


class ServedRecommender:
    """Answers questions from an exported run, and changes its catalogue.

    Args:
        run: the run's folder; it must have a build (`python -m dcdt.index RUN build`, or `dcdt.load`).
        threads: of the embedder; 0: as many as there are cores.
        engine: `memory`, or `lance`: the table is searched where it lies, and changed by others alone.

    Raises:
        UserError: there is no build, it is corrupt or of another run, or the model needs the whole catalogue in memory.
    """

    def __init__(self, run: str | Path, threads: int = 0, engine: str = "memory") -> None:
        self.catalogue: Catalogue = open_catalogue(Path(run), engine)
        self.threads = threads
        self.manifest: Manifest = self.catalogue.manifest
        folder, manifest = self.catalogue.folder, self.manifest
        check_catalogue(manifest, self.catalogue.snapshot, folder / MODEL, self.catalogue.run)
        refuse_foreign_base_url(SimpleNamespace(**manifest.embedder))
        self.name = manifest.model
        self.kinds = filter_kinds(manifest.columns)
        self.scorers: list[Any] = [
            SCORERS[scorer.kind](scorer, number, folder) for number, scorer in enumerate(manifest.scorers)
        ]
        self.head = RankHead(manifest.head, folder, manifest.fusion) if manifest.head is not None else None
        self.learners = Learners(folder / LEARNERS) if manifest.reads_history else None
        self.link = ""  # template of links to a moment: {link} and {seconds} are filled in
        self.embedder = embedder_name(manifest.embedder_config) if manifest.reads_vectors else None
        self._embedder: Any = None
        self.example, self.facets = "", list[dict[str, Any]]()  # for the page, by `describe`
        self._vectors: dict[str, Floats] = {}  # of fields of videos that were explained

    def __len__(self) -> int:
        return len(self.catalogue)

    def check_abstain(self) -> None:
        """Raise UserError for a run that no score tells below which nothing fits."""
        if self.manifest.threshold is None:
            raise UserError(f"this run of {self.name} has no score below which nothing fits; leave --abstain out.")

    def recommend(
        self,
        texts: str | Sequence[str],
        k: int = 10,
        where: str = "",
        explained: bool = False,
        abstain: bool = False,
        user: str | None = None,
    ) -> list[list[Recommendation]]:
        """Recommend the best k videos for each question.

        Args:
            texts: one question or several.
            k: how many, 1 to 1000; fewer come back where the catalogue or the filter holds fewer.
            where: filter, such as `level=intro,duration_s<600` (`dcdt.serving.catalogue.filters`).
            explained: whether each video says what made up its score.
            abstain: leave out what scores below the threshold that validation chose, so that nothing may be left.
            user: who asks, as interactions.csv names learners; one it does not name is answered like anybody.

        Raises:
            UserError: a question is empty or too long, k is out of range, the filter is none, or the model knows no
                learners.
        """
        return self.answer(texts, k, where, explained, abstain, user).videos

    def answer(
        self,
        texts: str | Sequence[str],
        k: int = 10,
        where: str = "",
        explained: bool = False,
        abstain: bool = False,
        user: str | None = None,
    ) -> Answers:
        """Recommend videos, and say which version of the catalogue answered and which questions nothing fits."""
        questions = [check_question(text) for text in ([texts] if isinstance(texts, str) else texts)]
        check_k(k)
        conditions = parse_filter(where, self.kinds)
        snapshot, threshold = self.catalogue.snapshot, self.manifest.threshold
        answers = Answers(snapshot.version, [], [])
        least = threshold.value if abstain and threshold is not None else -np.inf
        with one_thread():
            vectors = self.embed(questions) if self.manifest.reads_vectors else [None] * len(questions)
            watched = self._watched(user, snapshot)
            for text, vector in zip(questions, vectors, strict=True):
                query = Query(text, vector, watched)
                videos, nothing_fits = self._answer(query, k, conditions, snapshot, least, explained)
                answers.videos.append(videos)
                answers.nothing_fits.append(nothing_fits)
        return answers

    def _answer(
        self, query: Query, k: int, conditions: Sequence[Condition], snapshot: Snapshot, least: float, explained: bool
    ) -> tuple[list[Recommendation], bool]:
        """Find the best k videos that score at least `least`, and whether all that there are score less."""
        snapshot = self.catalogue.candidates(snapshot, partial(self.scorers[0].score, query), k, conditions)
        by_scorer = [scorer.score(query, snapshot) for scorer in self.scorers]
        combined = combine(iter(by_scorer), self.manifest.fusion)
        allowed, head = snapshot.allowed(conditions), self.head
        ranked = head.top(query, by_scorer, snapshot, k, allowed) if head else Ranked(*combined.top(k, allowed), [])
        rows, scores = ranked.rows, ranked.scores
        if not np.isfinite(scores).all():
            raise UserError(f"{self.catalogue.folder} holds vectors that are not finite. {self.catalogue.remedy}")
        n_fit = int((scores >= least).sum())  # the best come first
        nothing_fits, rows, scores = n_fit < 1 <= len(rows), rows[:n_fit], scores[:n_fit]
        reasons = [
            explain(self.manifest, by_scorer, int(row), self.embed_fields, of_row) if explained else None
            for row, of_row in zip(rows, ranked.evidence or repeat(None), strict=False)
        ]
        words = content_words(query.text)
        videos: list[Recommendation] = []
        records = snapshot.records(rows, [*RESULT_COLUMNS, *(PASSAGE_COLUMNS if self.manifest.has_transcripts else ())])
        for score, video, row, why in zip(scores, records, rows.tolist(), reasons, strict=True):
            video["moments"] = best_moments(combined.passage_scores(row), video, words, self.link)
            video["matched"] = matched_words(words, video["title"], video["text"])
            videos.append(Recommendation(len(videos) + 1, float(score), **video, why=why))
        return videos, nothing_fits

    def notes_for(self, user: str | None, question: str = "") -> list[str]:
        """Return the remarks on an answer to this learner, or to nobody in particular, and on its question."""
        unknown = unknown_language(question, self.embedder or "")
        notes = [UNKNOWN_LANGUAGE.format(unknown, self.embedder)] if unknown else []
        if user is None:
            return notes + self.manifest.notes
        return notes if self._items(user) is not None else [*notes, UNKNOWN_LEARNER, *self.manifest.notes]

    def describe(self) -> None:
        """Find what the page says of the catalogue; with engine=lance, whose videos lie on disk, nothing."""
        snapshot = self.catalogue.snapshot
        table = snapshot.table.select([name for name in self.kinds if name != "text"])
        table = table if len(snapshot) == len(table) else table.filter(pa.array(snapshot.present))
        self.example = str(table["title"][0])[:80] if len(table) else ""
        self.facets = find_facets(table, self.kinds)

    def _items(self, user: str | None) -> NDArray[np.int64] | None:
        """Look up what a learner watched, among the videos of the export; None for nobody or an unknown learner."""
        if user is None:
            return None
        if self.learners is None:
            raise UserError(
                f"model={self.name} knows no learners; leave the user out, or ask a run of a model that reads "
                "histories (collaborative, dcdt_history, dcdt_hierarchical, zero_shot_history, hybrid_history)."
            )
        return self.learners.items(check_user(user))

    def _watched(self, user: str | None, snapshot: Snapshot) -> Watched | None:
        items = self._items(user)
        if items is None or self.learners is None:
            return None
        exported = self.learners.exported
        snapshot = self.catalogue.lookup(snapshot, exported.ids.take(row_array(np.unique(items))).to_pylist())
        return Watched(items, exported.rows(snapshot), snapshot, self.learners.units(str(user)))

    def embed(self, texts: Sequence[str]) -> Floats:
        """Embed texts, rounded as the embedding cache rounds them: (n, D)."""
        if self._embedder is None:
            folder = self.catalogue.folder / EMBEDDER
            self._embedder = open_embedder(self.manifest.embedder_config, folder, self.threads, self.catalogue.remedy)
        vectors = round_to_float16(self._embedder.embed(texts))
        if not np.isfinite(vectors).all():
            raise UserError(f"the embedder gives vectors that are zero or not finite. {self.catalogue.remedy}")
        return vectors

    def add(self, videos: Documents) -> None:
        """Embed new videos, pass them through the video towers and make them searchable, without training.

        Raises:
            UserError: an id exists, or the catalogue cannot be written.
        """
        self.catalogue.check_writable()
        self.catalogue.add(self.rows(videos))

    def update(self, videos: Documents) -> None:
        """Replace the videos with the same ids by these.

        Raises:
            UserError: an id is unknown, or the catalogue cannot be written.
        """
        self.catalogue.check_writable()
        self.catalogue.update(self.rows(videos))

    def videos(self, ids: Sequence[str]) -> Documents:
        """Look up videos of the catalogue by their ids.

        Raises:
            UserError: an id is unknown.
        """
        ids = list(dict.fromkeys(ids))
        snapshot = self.catalogue.lookup(self.catalogue.snapshot, ids)
        rows = snapshot.rows_of(ids)
        if (rows < 0).any():
            raise UserError(f"there is no video with the id '{one_line(ids[int(np.argmin(rows))])}'.")
        return documents_of(snapshot.rows(rows, ("id", "title", "text", "metadata")))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove videos.

        Raises:
            UserError: an id is unknown, all would be gone, or the catalogue cannot be written.
        """
        if len(set(ids)) >= len(self):
            raise UserError(f"deleting {len(set(ids))} of {len(self)} videos would leave none; keep at least one.")
        self.catalogue.delete(list(dict.fromkeys(ids)))

    def rows(self, videos: Documents) -> pa.Table:
        """Make the table rows of videos, with the columns of all scorers."""
        table, fields = table_of(videos, self.manifest.columns), self.manifest.text_fields
        snapshot = self.catalogue.snapshot
        texts = {name: texts_with_fallback(videos, name) for name in fields or ["title"]}
        vectors: dict[str, Floats] = {}
        if self.manifest.reads_vectors:
            vectors = dict(zip(texts, self.embed_fields(list(texts.values())), strict=True))
        columns: list[Columns] = []
        new = NewVideos(texts, vectors)
        if self.manifest.has_transcripts:
            texts[TRANSCRIPT], passages = read_segments(videos)
            columns.append(passage_columns(videos, passages))
            spoken = self.embed(passages.texts) if self.manifest.reads_vectors else None  # (p, D)
            if spoken is not None:
                vectors[TRANSCRIPT] = unit(np.add.reduceat(spoken, passages.offsets[:-1]))
            new = NewVideos(texts, vectors, passages, spoken)
        columns += [scorer.columns(new, snapshot) for scorer in self.scorers]
        for added in [*columns, *([self.head.columns(vectors)] if self.head is not None else [])]:
            for name, column in added.items():
                table = table.append_column(name, column)
        return table

    def embed_fields(self, fields: Sequence[Sequence[str]]) -> list[Floats]:
        """Embed each field of n videos: (n, D) each; vectors are cached by text."""
        distinct = list(dict.fromkeys(text for part in fields for text in part))
        vector_of = {text: vector for text in distinct if (vector := self._vectors.get(text)) is not None}
        missing = [text for text in distinct if text not in vector_of]
        if missing:
            vector_of |= dict(zip(missing, self.embed(missing), strict=True))
        if len(self._vectors) > CACHED_TEXTS:
            self._vectors.clear()
        self._vectors |= vector_of
        return [np.stack([vector_of[text] for text in part]) for part in fields]


def open_embedder(config: Any, folder: Path, threads: int, remedy: str) -> Any:  # noqa: ANN401 - any embedder
    """Open the embedder of a run: the exported local model of the build, or what the configuration names."""
    if config.name == "local":
        return OnnxEmbedder(folder, config, threads, remedy)
    from dcdt.embeddings.providers import make_embedder

    return make_embedder(config)


def check_question(text: str) -> str:
    """Return a question with its blanks normalised.

    Raises:
        UserError: it is empty, too long, no text, or not of UTF-8.
    """
    if not isinstance(text, str):
        raise UserError(f"a question is {type(text).__name__}; it must be a text.")
    question = check_encodable(" ".join(text.split()), "the question")
    if not question:
        raise UserError("the question is empty; ask something.")
    if len(question) > MAX_QUESTION_CHARS:
        raise UserError(
            f"the question has {len(question):,} characters; at most {MAX_QUESTION_CHARS:,} are read. Shorten it."
        )
    return question


def check_k(k: int) -> None:
    """Raise UserError where k is no number of videos an answer can have."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MAX_K:
        raise UserError(f"k is {k}; it must be a whole number from 1 to {MAX_K}.")
