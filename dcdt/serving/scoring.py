"""How an exported model scores a question: one scorer for each kind of part, and their fusion.

Every scorer turns a question into an `Asked`, which can score the whole catalogue, or find its own best and score
chosen rows, so that a large catalogue need not be scored whole.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dcdt.data.tokens import tokenizer
from dcdt.serving.arrow import numbers
from dcdt.serving.histories import collaborative_scores, learner_vector
from dcdt.serving.index import best
from dcdt.serving.learners import Watched
from dcdt.serving.lexical import Lexical
from dcdt.serving.memory import View
from dcdt.serving.towers import Floats, Scores, Towers, unit
from dcdt.utils.errors import UserError

Rows = NDArray[np.int64]
EARLIER = "earlier videos"  # what a reason calls the learner's part of a score
ALIKE = {"float64": 1e-6, "float32": 0.1}  # of the mean square: a variance below it would lose digits as a difference
CANDIDATES = 200  # of each part that a fusion over a large catalogue ranks, at least


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        text: in words.
        vector: (D,) frozen; None where no part reads vectors.
        watched: what the learner who asks has watched, where that is known.
    """

    text: str
    vector: Floats | None
    watched: Watched | None = None


class Asked(Protocol):
    """A question put to one part over one view of the catalogue."""

    def scores(self) -> Scores:
        """Scores of all rows (N,)."""
        ...

    def top(self, k: int, allowed: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """Rows and scores of the best k among the allowed rows (N,), the best first."""
        ...

    def at(self, rows: Rows) -> Scores:
        """Scores of some rows (n,)."""
        ...

    def spread(self) -> tuple[float, float]:
        """Mean and standard deviation of the scores of the whole catalogue."""
        ...

    def why(self, row: int) -> dict[str, Any]:
        """What made up the score of a row, beside its fields."""
        ...


class _Whole:
    """A question whose scores of all rows are cheap or needed anyway."""

    view: View
    _scores: Scores | None = None
    _square = 0.0  # sum of all squares

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        raise NotImplementedError

    def scores(self) -> Scores:
        """Scores of all rows (N,), computed once."""
        if self._scores is None:
            self._scores = self.compute()
            self._square = float(self._scores @ self._scores)
            if not np.isfinite(self._square):
                raise UserError("the index holds numbers that are not finite. Run: python -m dcdt.index RUN build")
        return self._scores

    def top(self, k: int, allowed: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """Rows and scores of the best k among the allowed rows."""
        scores = self.scores() if allowed.all() else np.where(allowed, self.scores(), -np.inf)
        rows = best(scores, None if self.view.anns else self.view.order, k)
        return rows, scores[rows]

    def at(self, rows: Rows) -> Scores:
        """Scores of some rows (n,)."""
        return self.scores()[rows]

    def mean(self, scores: Scores) -> float:
        """Mean of the scores of the videos that are alive."""
        return float(scores.mean())

    def spread(self) -> tuple[float, float]:
        """Mean and standard deviation over the catalogue."""
        scores, whole = self.scores(), len(self.view) == len(self.view.alive)
        scores = scores if whole else scores[self.view.alive]
        mean, square = self.mean(scores), (self._square if whole else float(scores @ scores)) / len(scores)
        if square - mean**2 > ALIKE[scores.dtype.name] * square:
            return mean, (square - mean**2) ** 0.5
        return mean, float(scores.std(dtype=np.float64)) if scores.max() > scores.min() else 0.0

    def why(self, row: int) -> dict[str, Any]:
        """What made up the score of a row, beside its fields."""
        return {}


class AskedTowers(_Whole):
    """The inner product of a query vector with the vectors of the catalogue.

    Args:
        view: the catalogue.
        column: of its vectors.
        vector: (W,) of the question and, in some models, of the learner.
        weights: over the fields, where there are some.
        beside: pieces of the vector (W,) that come from the learner, by name; the fields make up the rest.
    """

    def __init__(
        self,
        view: View,
        column: str,
        vector: Floats,
        weights: dict[str, float] | None = None,
        beside: dict[str, Floats] | None = None,
    ) -> None:
        self.view, self.column, self.vector, self.weights = view, column, vector, weights
        self.beside = beside or {}
        self._found: tuple[Rows, Scores] = np.zeros(0, dtype=np.int64), np.zeros(0)  # what was searched
        self.question = vector - sum(self.beside.values(), np.zeros_like(vector))  # (W,)

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        return self.view.scores(self.vector, self.column).astype(np.float64)

    def top(self, k: int, allowed: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """Rows and scores of the best k among the allowed rows."""
        rows, scores = self.view.search(self.vector, k, allowed, self.column)
        self._found = rows, scores.astype(np.float64)
        return self._found

    def at(self, rows: Rows) -> Scores:
        """Scores of some rows (n,)."""
        if self._scores is not None or self.column not in self.view.anns:
            return super().at(rows)
        found = np.full(len(rows), np.nan)
        _, here, there = np.intersect1d(rows, self._found[0], return_indices=True)
        found[here] = self._found[1][there]
        missing = np.flatnonzero(np.isnan(found))
        found[missing] = self.view.scores_at(rows[missing], self.vector, self.column)
        return found

    def spread(self) -> tuple[float, float]:
        """Mean and standard deviation over the catalogue."""
        ann = self.view.anns.get(self.column)
        return super().spread() if ann is None else ann.spread(self.vector)

    def why(self, row: int) -> dict[str, Any]:
        """What made up the score of a row, beside its fields."""
        found: dict[str, Any] = {"attention": self.weights} if self.weights else {}
        if self.beside:
            shown = self.view.vectors_at(np.array([row]), self.column)[0]
            found["beside"] = {name: float(piece @ shown) for name, piece in self.beside.items()}
        return found


class TowersScorer:
    """A decoupled model. One that reads histories adds the direction of what the learner watched to the question's."""

    def __init__(self, spec: dict[str, Any], part: int, towers: Towers) -> None:
        self.spec, self.column, self.towers = spec, f"vector_{part}", towers

    def ask(self, question: Question, view: View) -> AskedTowers:
        """Encode the question."""
        assert question.vector is not None
        encoded, weights = self.towers.query(question.vector[None])
        named = None
        if weights is not None:
            if weights.shape[1] != len(self.spec["fields"]):
                raise UserError(f"{self.towers.folder} is corrupt: its query tower weighs {weights.shape[1]} fields.")
            named = dict(zip(self.spec["fields"], map(float, weights[0]), strict=True))
        if not self.spec.get("reads_history") or question.watched is None:
            return AskedTowers(view, self.column, encoded[0], named)
        history = unit(question.watched.vectors(self.column).sum(0))
        length = max(float(np.linalg.norm(encoded[0] + history)), 1e-12)
        vector = np.asarray((encoded[0] + history) / length, dtype=np.float32)
        return AskedTowers(view, self.column, vector, named, {EARLIER: np.asarray(history / length, dtype=np.float32)})


class HistoryScorer:
    """dcdt_history: a video's vector is `[v; t; p]`, of its texts, for the learner's tower, and its popularity.

    The question's is `[question; weight * learner; weight * a]` (`dcdt.models.history`).
    """

    def __init__(self, spec: dict[str, Any], part: int, towers: Towers) -> None:
        self.spec, self.column, self.towers = spec, f"vector_{part}", towers
        self.learned = towers.learned

    def ask(self, question: Question, view: View) -> AskedTowers:
        """Encode question and learner."""
        assert question.vector is not None
        asked, facts = self.towers.query(question.vector[None])[0][0], self.spec["learner"]
        basis, narrow = self.learned["basis"], self.learned["map"]  # (D, d), (d, d)
        learner = np.zeros(len(narrow), dtype=np.float32)
        if question.watched is not None:
            shown = question.watched.vectors(self.column, facts["length"])[:, len(asked) : -1]  # (L, d)
            learner = learner_vector(facts, narrow, shown, unit(asked @ basis))
        weight = float(facts["weight"])
        pieces = np.zeros((2, len(asked) + len(narrow) + 1), dtype=np.float32)
        pieces[0, len(asked) : -1] = weight * learner
        pieces[1, -1] = weight * facts["prior"]
        vector = np.r_[asked, np.zeros(len(narrow) + 1, dtype=np.float32)] + pieces.sum(0)
        return AskedTowers(view, self.column, vector, None, {EARLIER: pieces[0], "popularity": pieces[1]})


class AskedJoint(_Whole):
    """`sigmoid(w . ReLU(a + v) + b)` for the query side a and the video sides v of single_tower."""

    def __init__(self, view: View, column: str, asked: Floats, weight: Floats, bias: np.float32) -> None:
        self.view, self.column, self.asked, self.weight, self.bias = view, column, asked, weight, bias

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        parts = [self._score(part.vectors[self.column]) for part in self.view.parts]
        return np.concatenate(parts).astype(np.float64)

    def _score(self, shown: NDArray[Any], chunk: int = 2048) -> Floats:
        scores = np.empty(len(shown), dtype=np.float32)
        for start in range(0, len(shown), chunk):
            hidden = np.maximum(shown[start : start + chunk] + self.asked, 0)  # (n, F * W)
            scores[start : start + chunk] = hidden @ self.weight + self.bias
        return np.asarray(1 / (1 + np.exp(-scores)), dtype=np.float32)

    def why(self, row: int) -> dict[str, Any]:
        """What made up the score of a row, beside its fields."""
        shown = self.view.vectors_at(np.array([row]), self.column)[0]
        return {"hidden": np.maximum(shown + self.asked, 0) * self.weight}


class JointScorer:
    """single_tower: no vector can be searched, so every video is scored."""

    def __init__(self, spec: dict[str, Any], part: int, towers: Towers) -> None:
        self.spec, self.column, self.towers = spec, f"joint_{part}", towers
        self.weight = np.array(spec["output"]["weight"], dtype=np.float32)
        self.bias = np.float32(spec["output"]["bias"])

    def ask(self, question: Question, view: View) -> Asked:
        """Compute the query side."""
        assert question.vector is not None
        return AskedJoint(view, self.column, self.towers.query(question.vector[None])[0][0], self.weight, self.bias)


class AskedLexical(_Whole):
    """BM25 of a question's words."""

    def __init__(self, view: View, index: Lexical, words: list[str]) -> None:
        self.view, self.index, self.words = view, index, words

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        return self.index.score(self.words)

    def mean(self, scores: Scores) -> float:
        """Mean of the scores of the videos that are alive: what each word adds in all, without a look at each."""
        return self.index.mean(self.words)

    def why(self, row: int) -> dict[str, Any]:
        """What made up the score of a row, beside its fields."""
        terms: dict[str, float] = {}
        for word in self.words:
            rows, gains, away, _ = self.index.contribution(word)
            at = np.flatnonzero(rows == row)
            terms[word] = terms.get(word, 0.0) + float(gains[at[0]] if len(at) else away)
        return {"terms": {word: gain for word, gain in terms.items() if gain}}


class LexicalScorer:
    """bm25."""

    def __init__(self, spec: dict[str, Any], part: int, towers: Towers) -> None:
        self.config, self.column = spec["config"], f"words_{part}"
        self.split = tokenizer(self.config["stem"], self.config["stop_words"])
        self._known: tuple[View, Lexical] | None = None

    def index(self, view: View) -> Lexical:
        """The index of a view, made once."""
        known = self._known
        if known is None or known[0] is not view:
            postings = [part.postings(self.column) for part in view.parts]
            known = view, Lexical(self.config, postings, view.alive, np.float32 if view.anns else np.float64)
            self._known = known
        return known[1]

    def ask(self, question: Question, view: View) -> Asked:
        """Split the question into words."""
        return AskedLexical(view, self.index(view), self.split(question.text))


class AskedPopularity(_Whole):
    """The same for everybody."""

    def __init__(self, view: View, column: str) -> None:
        self.view, self.column = view, column

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        return np.asarray(numbers(self.view.table[self.column]), dtype=np.float64)


class AskedLearner(_Whole):
    """Scores (M,) of the videos of the export for one learner; what came later stands last."""

    def __init__(self, view: View, known: Scores, places: Rows) -> None:
        self.view, self.known, self.places = view, known, places

    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""
        found = np.full(len(self.view.alive), float(self.known.min()))
        here = self.places >= 0
        found[self.places[here]] = self.known[here]
        return found


class PopularityScorer:
    """collaborative: what those with a similar history watched; without a learner's history, by popularity."""

    def __init__(self, spec: dict[str, Any], part: int, towers: Towers) -> None:
        self.spec, self.part, self.towers = spec, part, towers  # what it learned is read when a learner is named

    def ask(self, question: Question, view: View) -> Asked:
        """Nothing of the question is read but who asks it."""
        watched = question.watched
        if watched is None or not len(watched.items):
            return AskedPopularity(view, f"popularity_{self.part}")
        return AskedLearner(
            view, collaborative_scores(self.spec["config"], self.towers.learned, watched.items), watched.places
        )


SCORERS: dict[str, Any] = {
    "towers": TowersScorer,
    "history": HistoryScorer,
    "joint": JointScorer,
    "lexical": LexicalScorer,
    "popularity": PopularityScorer,
}


def fused(
    asked: list[Asked], fusion: dict[str, Any], view: View, k: int, allowed: NDArray[np.bool_]
) -> tuple[Rows, Scores]:
    """The best k of two parts together: exactly over a catalogue that is scored whole, else among their candidates.

    Over a large catalogue a candidate's scores are exact, and so is their mean over the catalogue; the deviation of
    vectors that are searched narrowed is that along the directions kept, with what is left spread evenly
    (`Ann.spread`). A video outside the best `CANDIDATES` of both parts is not considered. Ranks are counted among the
    candidates.
    """
    if not view.anns:
        scores = np.full(len(view.alive), -np.inf)
        rows = np.flatnonzero(view.alive)
        scores[rows] = fuse(asked, fusion, rows, view)
        scores[~allowed] = -np.inf
        found = best(scores, view.order, k)
        return found, scores[found]
    wide = max(CANDIDATES, 4 * k)
    rows = np.unique(np.concatenate([part.top(wide, allowed)[0] for part in asked]))
    scores = fuse(asked, fusion, rows, view)
    found = best(scores, None, k)
    return rows[found], scores[found]


def fuse(asked: list[Asked], fusion: dict[str, Any], rows: Rows, view: View) -> Scores:
    """Fused scores of some rows, by z-scores or by reciprocal ranks."""
    if fusion["kind"] == "rrf":
        return np.asarray(sum(1 / (fusion["k"] + _ranks(part.at(rows), view, rows)) for part in asked))
    weights = (fusion["weight"], 1 - fusion["weight"])
    return np.asarray(sum(weight * z_scores(part, rows) for weight, part in zip(weights, asked, strict=True)))


def z_scores(asked: Asked, rows: Rows) -> Scores:
    """Scores of some rows less the catalogue's mean, over its deviation; 0 where that is 0."""
    mean, deviation = asked.spread()
    return (asked.at(rows) - mean) / deviation if deviation > 0 else np.zeros(len(rows))


def tie_order(view: View, rows: Rows) -> Rows:
    """Where rows stand among equals, as in every evaluation; a large catalogue is not hashed for it."""
    return rows if view.anns else view.order[rows]


def _ranks(scores: Scores, view: View, rows: Rows) -> Scores:
    ties = tie_order(view, rows)
    ranks = np.empty(len(rows))
    ranks[np.lexsort((ties, -scores))] = np.arange(1, len(rows) + 1)
    return ranks
