"""A finished run that answers questions: what `dcdt.load` returns. Neither torch nor lightning is imported."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdt.data.types import Documents, lent_texts
from dcdt.embeddings.config import refuse_foreign_base_url
from dcdt.embeddings.providers.batching import rounded
from dcdt.embeddings.providers.onnx import MODEL as GRAPH
from dcdt.embeddings.providers.onnx import QUESTIONS, OnnxEmbedder
from dcdt.serving.arrow import positions
from dcdt.serving.checks import check_served
from dcdt.serving.columns import ADDED
from dcdt.serving.explain import explain, matched_words, telling_words
from dcdt.serving.filters import Condition, parse_filter
from dcdt.serving.layout import EMBEDDER, FOLDER, MODEL, read_pointer
from dcdt.serving.learners import LEARNERS, Learners, Watched, check_user
from dcdt.serving.memory import MemoryIndex, View, rows_as_dicts
from dcdt.serving.ondisk import TableStore
from dcdt.serving.reranking import RankHead
from dcdt.serving.scoring import SCORERS, Asked, Question, Rows, fused
from dcdt.serving.shared import SharedStore
from dcdt.serving.store import Store
from dcdt.serving.threads import one_thread
from dcdt.serving.towers import Floats, Scores, Towers
from dcdt.serving.videos import documents_of, filter_kinds, table_of
from dcdt.utils.errors import UserError
from dcdt.utils.files import read_json

REMEMBERED = 2000  # texts whose vectors are kept for explanations: 12 MB at 1536 numbers
MOST, LONGEST = 1000, 2000  # videos of one answer, characters of one question
SHOWN = ("id", "title", "text", "series", "level", "link", "duration_s")
ENGINES = ("memory", "lance")
READS_VECTORS = ("towers", "joint", "history")
NOTES = {  # of parts that read who asks, by kind: what they go by without
    "popularity": "{} reads no question: without a learner's history videos come by popularity.",
    "history": "{}: without a learner's history videos come by the question and by how often they are watched.",
    "towers": "{} reads histories: without a learner's the question alone counts.",
}
UNKNOWN = "this learner is not known to the run, so the answer is that for anybody."


@dataclass(frozen=True)
class Recommendation:
    """One video of an answer.

    Attributes:
        rank: from 1.
        score: of the model; higher is better, and comparable within one model alone.
        id, title, text, series, level, link, duration_s: of the video; None where it is not known.
        matched: words of the question that its title or text holds.
        why: what made up the score, where that was asked for.
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
    why: dict[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        found = dict(vars(self))
        return found if self.why is not None else {key: value for key, value in found.items() if key != "why"}


@dataclass(frozen=True)
class Answers:
    """What was found for some questions.

    Attributes:
        version: of the catalogue that answered.
        videos: of each question, the best first.
        unfit: of each question, whether there were videos and all of them scored below the threshold.
    """

    version: int
    videos: list[list[Recommendation]]
    unfit: list[bool]


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
        self.store: Any = open_store(Path(run), engine)
        self.engine = engine
        self.threads = threads
        model = self.store.model
        check_served(model, self.store.view, self.store.folder / MODEL, self.store.run)
        refuse_foreign_base_url(SimpleNamespace(**model["embedder"]))
        self.name: str = model["model"]
        self.parts: list[dict[str, Any]] = model["parts"]
        self.fusion: dict[str, Any] | None = model["fusion"]
        self.columns: dict[str, str] = model["columns"]
        self.kinds = filter_kinds(self.columns)
        self.threshold: dict[str, Any] | None = model["threshold"]
        self.towers = [
            Towers(self.store.folder, at, spec.get("width", 0), spec.get("asked"), spec.get("linear", False))
            for at, spec in enumerate(self.parts)
        ]
        self.scorers = [SCORERS[spec["kind"]](spec, at, self.towers[at]) for at, spec in enumerate(self.parts)]
        head = model.get("head")
        self.head = RankHead(head, self.store.folder, self.fusion) if head is not None else None
        self.reads_vectors = reads_vectors(self.parts, head)
        readers = [spec for spec in self.parts if spec.get("reads_history")]
        self.learners = Learners(self.store.folder / LEARNERS) if readers else None
        self.notes = [NOTES[spec["kind"]].format(spec["name"]) for spec in readers]
        self.questions: dict[str, Any] | None = model.get("questions")  # of builds that embed them with 8-bit weights
        self._embedders: dict[str, Any] = {}
        self._seen: dict[str, Floats] = {}  # vectors of fields of videos that were explained

    def __len__(self) -> int:
        return len(self.store)

    def recommend(
        self,
        texts: str | Sequence[str],
        k: int = 10,
        where: str = "",
        explained: bool = False,
        abstain: bool = False,
        user: str | None = None,
    ) -> list[list[Recommendation]]:
        """The best k videos for each question.

        Args:
            texts: one question or several.
            k: how many, 1 to 1000; fewer come back where the catalogue or the filter holds fewer.
            where: filter, such as `level=intro,duration_s<600` (`dcdt.serving.filters`).
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
        """As `recommend`, with the version of the catalogue and which questions nothing fits."""
        questions = [check_question(text) for text in ([texts] if isinstance(texts, str) else texts)]
        check_k(k)
        conditions = parse_filter(where, self.kinds)
        view = self.store.view
        found = Answers(view.version, [], [])
        least = self.threshold["value"] if abstain and self.threshold is not None else -np.inf
        with one_thread():
            vectors = self.embed(questions) if self.reads_vectors else [None] * len(questions)
            watched = self._watched(user, view)
            for text, vector in zip(questions, vectors, strict=True):
                one = Question(text, vector, watched)
                videos, unfit = self._answer(one, k, conditions, view, least, explained)
                found.videos.append(videos)
                found.unfit.append(unfit)
        return found

    def _answer(
        self, question: Question, k: int, conditions: Sequence[Condition], view: View, least: float, explained: bool
    ) -> tuple[list[Recommendation], bool]:
        """The best k videos that score at least so much, and whether all that were found score less."""
        if self.engine == "lance":
            view = self._found(question, k, conditions)
        asked = [scorer.ask(question, view) for scorer in self.scorers]
        rows, scores, evidence = self._top(question, asked, view, k, view.allowed(conditions))
        if not np.isfinite(scores).all():
            raise UserError(f"{self.store.folder} holds vectors that are not finite. {self.store.remedy}")
        kept = int((scores >= least).sum())  # the best come first
        unfit, rows, scores = kept < 1 <= len(rows), rows[:kept], scores[:kept]
        reasons = [
            explain(self, asked, view, int(row), facts) if explained else None
            for row, facts in zip(rows, evidence, strict=False)
        ]
        words = telling_words(question.text)
        videos = [
            Recommendation(
                at, float(score), **shown, matched=matched_words(words, shown["title"], shown["text"]), why=why
            )
            for at, (score, shown, why) in enumerate(
                zip(scores, rows_as_dicts(view, rows, SHOWN), reasons, strict=True), start=1
            )
        ]
        return videos, unfit

    def notes_for(self, user: str | None) -> list[str]:
        """What is to be known of an answer to this learner, or to nobody in particular."""
        if user is None:
            return self.notes
        return [] if self._items(user) is not None else [UNKNOWN, *self.notes]

    def _items(self, user: str | None) -> NDArray[np.int64] | None:
        """What a learner watched, as positions among the videos of the export; None for nobody or an unknown one."""
        if user is None:
            return None
        if self.learners is None:
            raise UserError(
                f"model={self.name} knows no learners; leave the user out, or ask a run of a model that reads "
                "histories (collaborative, dcdt_history, zero_shot_history, hybrid_history)."
            )
        return self.learners.items(check_user(user))

    def _watched(self, user: str | None, view: View) -> Watched | None:
        items = self._items(user)
        if items is None or self.learners is None:
            return None
        places = self.learners.places
        if self.engine == "lance":
            view = self.store.lookup(places.ids.take(positions(np.unique(items))).to_pylist())
        return Watched(items, places.rows(view), view)

    def _found(self, question: Question, k: int, conditions: Sequence[Condition]) -> View:
        """What the table finds for a question."""
        asked = self.scorers[0].ask(question, self.store.view)
        view: View = self.store.near(asked.vector, k, conditions, asked.column)
        return view

    def _top(
        self, question: Question, asked: list[Asked], view: View, k: int, allowed: NDArray[np.bool_]
    ) -> tuple[Rows, Scores, Iterable[dict[str, float] | None]]:
        """Rows and scores of the best k, and what a rank head added up for each."""
        if self.head is not None:
            ranked = self.head.top(question, asked, view, k, allowed)
            return ranked.rows, ranked.scores, ranked.evidence
        if self.fusion is None:
            return *asked[0].top(k, allowed), repeat(None)
        return *fused(asked, self.fusion, view, k, allowed), repeat(None)

    def embed(self, texts: Sequence[str]) -> Floats:
        """Frozen vectors (n, D) of questions, rounded as the embedding cache rounds them."""
        return self._embed(texts, QUESTIONS if self.questions is not None else GRAPH)

    def _embed(self, texts: Sequence[str], graph: str) -> Floats:
        if graph not in self._embedders:
            folder = self.store.folder / EMBEDDER
            self._embedders[graph] = open_embedder(self.store.model["embedder"], folder, self.threads, graph)
        vectors = rounded(self._embedders[graph].embed(texts))
        if not np.isfinite(vectors).all():
            raise UserError(f"the embedder gives vectors that are zero or not finite. {self.store.remedy}")
        return vectors

    def add(self, videos: Documents) -> None:
        """Embed new videos, pass them through the video towers and make them searchable, without training.

        Raises:
            UserError: an id exists, or the catalogue cannot be written.
        """
        self._writable().add(self.rows(videos))

    def update(self, videos: Documents) -> None:
        """Put these videos in the place of those with the same ids.

        Raises:
            UserError: an id is unknown, or the catalogue cannot be written.
        """
        self._writable().update(self.rows(videos))

    def videos(self, ids: Sequence[str]) -> Documents:
        """Videos of the catalogue by their ids.

        Raises:
            UserError: an id is unknown.
        """
        memory: MemoryIndex = self._writable().memory
        rows = np.array(memory.rows_of(ids), dtype=np.int64)
        return documents_of(memory.state.rows(rows, ("id", "title", "text", "metadata")))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove videos.

        Raises:
            UserError: an id is unknown, all would be gone, or the catalogue cannot be written.
        """
        if len(set(ids)) >= len(self):
            raise UserError(f"deleting {len(set(ids))} of {len(self)} videos would leave none; keep at least one.")
        self._writable().delete(list(dict.fromkeys(ids)))

    def _writable(self) -> Store:
        if self.engine == "lance":
            raise UserError("engine=lance reads the catalogue; change it by python -m dcdt.index, or by engine=memory.")
        store: Store = self.store
        return store

    def rows(self, videos: Documents) -> pa.Table:
        """Table rows of videos, with all that the parts of the model add."""
        table = table_of(videos, self.columns)
        texts = {name: lent_texts(videos, name) for name in self.fields or ["title"]}
        vectors = dict(zip(texts, self.embed_fields(list(texts.values())), strict=True)) if self.reads_vectors else {}
        for at, spec in enumerate(self.parts):
            for name, column in ADDED[spec["kind"]](self.towers[at], self._near, at, spec, texts, vectors).items():
                table = table.append_column(name, column)
        for name, column in (self.head.columns(vectors) if self.head is not None else {}).items():
            table = table.append_column(name, column)
        return table

    def _near(self, vector: Floats, k: int, column: str) -> View:
        view: View = self.store.view
        return view

    @property
    def fields(self) -> list[str]:
        """Fields that some part reads."""
        names = [name for spec in self.parts for name in spec.get("fields", spec.get("config", {}).get("fields", []))]
        names += self.head.fields if self.head is not None else []
        return list(dict.fromkeys(names))

    def embed_fields(self, fields: Sequence[Sequence[str]]) -> list[Floats]:
        """Frozen vectors (n, D) of each field of n videos."""
        distinct = list(dict.fromkeys(text for part in fields for text in part))
        known = {text: vector for text in distinct if (vector := self._seen.get(text)) is not None}
        missing = [text for text in distinct if text not in known]
        if missing:
            known |= dict(zip(missing, self._embed(missing, GRAPH), strict=True))
        if len(self._seen) > REMEMBERED:
            self._seen.clear()
        self._seen |= known
        return [np.stack([known[text] for text in part]) for part in fields]


def reads_vectors(parts: Sequence[dict[str, Any]], head: Any) -> bool:  # noqa: ANN401 - a description or an export
    """Whether a model of these parts, and of this rank head or None, reads vectors of texts."""
    return head is not None or any(spec["kind"] in READS_VECTORS for spec in parts)


def open_store(run: Path, engine: str) -> Store | TableStore:
    """The catalogue of a run: in memory, in memory and shared with other machines, or where it lies.

    Raises:
        UserError: there is no such engine, no build, or it does not fit.
    """
    if engine not in ENGINES:
        raise UserError(f"engine is {engine!r}; it must be {' or '.join(ENGINES)}.")
    if engine == "lance":
        return TableStore(run)
    pointer = read_pointer(run)
    shared = pointer is not None and read_json(run / FOLDER / pointer.build / MODEL).get("catalogue")
    return SharedStore(run) if shared else Store(run)


def open_embedder(config: dict[str, Any], folder: Path, threads: int, graph: str) -> Any:  # noqa: ANN401 - any embedder
    """The embedder of a run: the exported local model beside the towers, or whatever the configuration names."""
    from dcdt.config import validate
    from dcdt.config.registry import GROUPS, choose

    parsed: Any = validate(choose(GROUPS["embedder"], config["name"], "embedder").schema, config, "embedder")
    if config["name"] == "local":
        return OnnxEmbedder(folder, parsed, threads, graph)
    from dcdt.embeddings.providers import make_embedder

    return make_embedder(parsed)


def check_question(text: str) -> str:
    """The question without surrounding blanks.

    Raises:
        UserError: it is empty, too long, or no text.
    """
    if not isinstance(text, str):
        raise UserError(f"a question is {type(text).__name__}; it must be a text.")
    found = " ".join(text.split())
    if not found:
        raise UserError("the question is empty; ask something.")
    if len(found) > LONGEST:
        raise UserError(f"the question has {len(found):,} characters; at most {LONGEST:,} are read. Shorten it.")
    return found


def check_k(k: int) -> None:
    """Raise UserError where k is no number of videos an answer can have."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= MOST:
        raise UserError(f"k is {k}; it must be a whole number from 1 to {MOST}.")
