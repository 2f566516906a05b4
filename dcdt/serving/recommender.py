"""A finished run that answers questions: what `dcdt.load` returns. Neither torch nor lightning is imported."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dcdt.data.collection import Documents, as_one, lent_texts
from dcdt.data.tokens import tokenizer
from dcdt.embedders.openai_models import check_address
from dcdt.errors import UserError
from dcdt.serving.checks import check_served
from dcdt.serving.explain import explain, matched_words
from dcdt.serving.filters import parse_filter
from dcdt.serving.index import vector_column
from dcdt.serving.layout import EMBEDDER, MODEL, read_pointer
from dcdt.serving.lexical import EMPTY
from dcdt.serving.memory import rows_as_dicts
from dcdt.serving.scoring import SCORERS, Asked, Question, fused
from dcdt.serving.store import Store
from dcdt.serving.towers import Floats, Towers
from dcdt.serving.videos import filter_kinds, table_of

REMEMBERED = 2000  # texts whose vectors are kept for explanations: 12 MB at 1536 numbers
MOST, LONGEST = 1000, 2000  # videos of one answer, characters of one question
SHOWN = ("id", "title", "text", "series", "level", "link", "duration_s")
READS_VECTORS = ("towers", "joint")


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
        found = asdict(self)
        return found if self.why is not None else {key: value for key, value in found.items() if key != "why"}


class ServedRecommender:
    """Answers questions from an exported run, and changes its catalogue.

    Args:
        run: the run's folder; it must have a build (`python -m dcdt.index RUN build`, or `dcdt.load`).
        threads: of the embedder; 0: as many as there are cores.

    Raises:
        UserError: there is no build, or it is corrupt or of another run.
    """

    def __init__(self, run: str | Path, threads: int = 0) -> None:
        self.store = Store(Path(run))
        self.threads = threads
        model = self.store.model
        check_served(model, self.store.view, self.store.folder / MODEL, self.store.run)
        check_address(SimpleNamespace(**model["embedder"]))
        self.name: str = model["model"]
        self.parts: list[dict[str, Any]] = model["parts"]
        self.fusion: dict[str, Any] | None = model["fusion"]
        self.columns: dict[str, str] = model["columns"]
        self.kinds = filter_kinds(self.columns)
        self.threshold: dict[str, Any] | None = model["threshold"]
        self.towers = [Towers(self.store.folder, at, spec.get("width", 0)) for at, spec in enumerate(self.parts)]
        self.scorers = [SCORERS[spec["kind"]](spec, at, self.towers[at]) for at, spec in enumerate(self.parts)]
        self.reads_vectors = any(spec["kind"] in READS_VECTORS for spec in self.parts)
        self.notes = ["collaborative reads no question: without a learner's history videos come by popularity."] * any(
            spec["kind"] == "popularity" for spec in self.parts
        )
        self._embedder: Any = None
        self._seen: dict[str, Floats] = {}  # vectors of fields of videos that were explained

    def __len__(self) -> int:
        return len(self.store.view)

    def recommend(
        self,
        texts: str | Sequence[str],
        k: int = 10,
        where: str = "",
        explained: bool = False,
        abstain: bool = False,
    ) -> list[list[Recommendation]]:
        """The best k videos for each question.

        Args:
            texts: one question or several.
            k: how many, 1 to 1000; fewer come back where the catalogue or the filter holds fewer.
            where: filter, such as `level=intro,duration_s<600` (`dcdt.serving.filters`).
            explained: whether each video says what made up its score.
            abstain: leave out what scores below the threshold that validation chose, so that nothing may be left.

        Raises:
            UserError: a question is empty or too long, k is out of range, or the filter is none.
        """
        questions = [check_question(text) for text in ([texts] if isinstance(texts, str) else texts)]
        check_k(k)
        conditions = parse_filter(where, self.kinds)
        vectors = self.embed(questions) if self.reads_vectors else [None] * len(questions)
        view = self.store.view
        allowed = view.allowed(conditions)
        answers = []
        for text, vector in zip(questions, vectors, strict=True):
            asked = [scorer.ask(Question(text, vector), view) for scorer in self.scorers]
            rows, scores = self._top(asked, k, allowed)
            if abstain and self.threshold is not None:
                keep = scores >= self.threshold["value"]
                rows, scores = rows[keep], scores[keep]
            if not np.isfinite(scores).all():
                raise UserError(f"{self.store.folder} holds vectors that are not finite. {self.store.remedy}")
            shown = rows_as_dicts(view, rows, SHOWN)
            reasons = [explain(self, asked, view, int(row)) if explained else None for row in rows]
            answers.append(
                [
                    Recommendation(
                        at, float(score), **video, matched=matched_words(text, video["title"], video["text"]), why=why
                    )
                    for at, (score, video, why) in enumerate(zip(scores, shown, reasons, strict=True), start=1)
                ]
            )
        return answers

    def _top(self, asked: list[Asked], k: int, allowed: NDArray[np.bool_]) -> tuple[NDArray[np.int64], Any]:
        if self.fusion is None:
            return asked[0].top(k, allowed)
        return fused(asked, self.fusion, self.store.view, k, allowed)

    def embed(self, texts: Sequence[str]) -> Floats:
        """Frozen vectors (n, D) of texts, rounded as the embedding cache rounds them."""
        if self._embedder is None:
            self._embedder = open_embedder(self.store.model["embedder"], self.store.folder / EMBEDDER, self.threads)
        vectors = self._embedder.embed(texts).astype(np.float16).astype(np.float32)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise UserError(f"the embedder gives vectors that are zero or not finite. {self.store.remedy}")
        return np.asarray(vectors / lengths, dtype=np.float32)

    def add(self, videos: Documents) -> None:
        """Embed new videos, pass them through the video towers and make them searchable, without training.

        Raises:
            UserError: an id exists, or the catalogue cannot be written.
        """
        self.store.add(self.rows(videos))

    def update(self, videos: Documents) -> None:
        """Put these videos in the place of those with the same ids.

        Raises:
            UserError: an id is unknown, or the catalogue cannot be written.
        """
        self.store.update(self.rows(videos))

    def delete(self, ids: Sequence[str]) -> None:
        """Remove videos.

        Raises:
            UserError: an id is unknown, all would be gone, or the catalogue cannot be written.
        """
        if len(set(ids)) >= len(self):
            raise UserError(f"deleting {len(set(ids))} of {len(self)} videos would leave none; keep at least one.")
        self.store.delete(list(dict.fromkeys(ids)))

    def rows(self, videos: Documents) -> pa.Table:
        """Table rows of videos, with all that the parts of the model add."""
        table = table_of(videos, self.columns)
        texts = {name: lent_texts(videos, name) for name in self.fields}
        vectors = dict(zip(texts, self.embed_fields(list(texts.values())), strict=True)) if self.reads_vectors else {}
        for at, spec in enumerate(self.parts):
            for name, column in ADDED[spec["kind"]](self, at, spec, texts, vectors).items():
                table = table.append_column(name, column)
        return table

    @property
    def fields(self) -> list[str]:
        """Fields that some part reads."""
        names = [name for spec in self.parts for name in spec.get("fields", spec.get("config", {}).get("fields", []))]
        return list(dict.fromkeys(names))

    def embed_fields(self, fields: Sequence[Sequence[str]]) -> list[Floats]:
        """Frozen vectors (n, D) of each field of n videos."""
        distinct = list(dict.fromkeys(text for part in fields for text in part))
        known = {text: vector for text in distinct if (vector := self._seen.get(text)) is not None}
        missing = [text for text in distinct if text not in known]
        if missing:
            known |= dict(zip(missing, self.embed(missing), strict=True))
        if len(self._seen) > REMEMBERED:
            self._seen.clear()
        self._seen |= known
        return [np.stack([known[text] for text in part]) for part in fields]


Columns = dict[str, pa.Array]
Made = Callable[[ServedRecommender, int, dict[str, Any], dict[str, list[str]], dict[str, Floats]], Columns]


def _tower_columns(
    served: ServedRecommender, at: int, spec: dict[str, Any], texts: dict[str, list[str]], vectors: dict[str, Floats]
) -> Columns:
    own, _ = served.towers[at].videos(np.stack([vectors[name] for name in spec["fields"]]))  # (n, W)
    if not spec["lean"]:
        return {f"vector_{at}": vector_column(own)}
    view, name = served.store.view, f"raw_{at}"
    leaning = [lean(vector, view.scores(vector, name), view, name, spec) for vector in own]
    return {f"vector_{at}": vector_column(np.stack(leaning)), name: vector_column(own)}


def lean(vector: Floats, alike: Floats, view: Any, column: str, spec: dict[str, Any]) -> Floats:  # noqa: ANN401
    """A new video's unit vector (W,) leaning on its nearest ones in the catalogue, which do not lean back.

    The videos that are there stay as they are until the next build.
    """
    alike = np.where(view.alive, alike, -np.inf)
    k = min(int(spec["neighbours"]), int(view.alive.sum()))
    rows = np.argpartition(-alike, k - 1)[:k]
    mean = view.vectors_at(rows, column).mean(0)
    mean /= max(float(np.linalg.norm(mean)), 1e-12)
    total = vector + spec["lean"] * mean
    return np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), dtype=np.float32)


def _joint_columns(
    served: ServedRecommender, at: int, spec: dict[str, Any], texts: dict[str, list[str]], vectors: dict[str, Floats]
) -> Columns:
    shown, _ = served.towers[at].videos(np.stack([vectors[name] for name in spec["fields"]]))
    return {f"joint_{at}": vector_column(shown)}


def _lexical_columns(
    served: ServedRecommender, at: int, spec: dict[str, Any], texts: dict[str, list[str]], vectors: dict[str, Floats]
) -> Columns:
    config = spec["config"]
    split = tokenizer(config["stem"], config["stop_words"])
    joined = as_one([texts[name] for name in config["fields"]])
    return {f"words_{at}": pa.array([split(text) or [EMPTY] for text in joined], pa.list_(pa.string()))}


def _popularity_columns(
    served: ServedRecommender, at: int, spec: dict[str, Any], texts: dict[str, list[str]], vectors: dict[str, Floats]
) -> Columns:
    n = len(next(iter(texts.values()))) if texts else 0
    return {f"popularity_{at}": pa.array(np.full(n, float(spec["unseen"])))}


ADDED: dict[str, Made] = {
    "towers": _tower_columns,
    "joint": _joint_columns,
    "lexical": _lexical_columns,
    "popularity": _popularity_columns,
}


def load(run: str | Path, say: Callable[[str], None] = lambda text: None, threads: int = 0) -> ServedRecommender:
    """A recommender of a finished run; its index is built first where there is none (which needs torch, once).

    Args:
        run: the run's folder.
        say: is told what is being built.
        threads: of the embedder; 0: as many as there are cores.

    Raises:
        UserError: the run did not finish, has no saved state, or its index is of another run.
    """
    folder = Path(run)
    if read_pointer(folder) is None:
        from dcdt.serving.runs import require_finished

        require_finished(folder)
        from dcdt.serving.export import build

        build(folder, say)
    return ServedRecommender(folder, threads)


def open_embedder(config: dict[str, Any], folder: Path, threads: int) -> Any:  # noqa: ANN401 - any embedder
    """The embedder of a run: the exported local model beside the towers, or whatever the configuration names."""
    from omegaconf import OmegaConf

    from dcdt.config import SCHEMAS, typed

    parsed: Any = typed(SCHEMAS["embedder"][str(config["name"])], OmegaConf.create(config), "embedder")
    if config["name"] == "local":
        from dcdt.embedders.onnx import OnnxEmbedder

        return OnnxEmbedder(folder, parsed, threads)
    from dcdt.embedders import make_embedder

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
