"""Why a video is in an answer: what each field, word and part of the model added to its score."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from dcdt.data.tokens import contains_token, fold_case, tokenizer
from dcdt.data.types import texts_with_fallback
from dcdt.serving.memory import View
from dcdt.serving.scoring import Asked, z_scores
from dcdt.serving.videos import documents_of
from dcdt.utils.errors import UserError

_LEAN = "similar videos"
_split = tokenizer(stop_words=True)
_ASKING = frozenset(  # words that only ask
    re.findall(r"\w+", "what why how when where which who do does did can could should i you we my me about")
)


def telling_words(question: str) -> list[str]:
    """Words of a question but for stop words and those that only ask, each once.

    >>> telling_words("What is the rank of a matrix?")
    ['rank', 'matrix']
    """
    return [word for word in dict.fromkeys(_split(question)) if word not in _ASKING]


def matched_words(words: Sequence[str], title: str, text: str) -> list[str]:
    """Which of these words a title or text holds.

    >>> matched_words(["rank", "matrix"], "What rank and nullity are", "")
    ['rank']
    """
    shown = fold_case(f"{title} {text}") if words else ""
    return [word for word in words if contains_token(shown, word)]


def explain(
    served: Any,  # noqa: ANN401 - a circle of imports
    asked: list[Asked],
    view: View,
    row: int,
    evidence: dict[str, float] | None = None,
) -> dict[str, Any]:
    """What made up the score of a row.

    Args:
        served: the recommender.
        asked: the question, as each part was asked.
        view: the catalogue.
        row: of a video.
        evidence: what a rank head added up.

    Returns:
        `parts`: for each part of the model its `name`, `score` and, where they apply, `fields` (what title,
        description, similar videos and the learner's earlier ones added; they sum to the score), `attention` (weights
        over the fields), `terms` (what each word added; they sum to the score) and, in a fusion, `z` and `share` of
        the fused score. Of two stages also `evidence`: what each kind of it added (weight times value); it sums to
        the video's score.
    """
    rows = np.array([row])
    parts = []
    for at, (spec, question) in enumerate(zip(served.parts, asked, strict=True)):
        found: dict[str, Any] = {"name": spec["name"], "score": float(question.at(rows)[0])}
        why = question.why(row)
        hidden = why.pop("hidden", None)
        beside = why.pop("beside", {})
        if spec["kind"] in ("towers", "history"):
            rest = found["score"] - sum(beside.values())
            found["fields"] = _field_shares(served, at, question, view, row, rest) | beside
        elif hidden is not None:
            halves = np.split(hidden, len(spec["fields"]))
            found["fields"] = dict(zip(spec["fields"], (float(part.sum()) for part in halves), strict=True))
        found |= why
        if served.fusion is not None and served.fusion["kind"] == "convex" and at < 2:
            weight = (served.fusion["weight"], 1 - served.fusion["weight"])[at]
            found["z"] = float(z_scores(question, rows)[0])
            found["share"] = weight * found["z"]
        parts.append(found)
        numbers = [value for value in found.values() if isinstance(value, float)]
        numbers += [value for group in found.values() if isinstance(group, dict) for value in group.values()]
        if not np.isfinite(numbers).all():
            raise UserError(f"{served.store.folder} holds numbers that are not finite. {served.store.remedy}")
    return {"parts": parts} if evidence is None else {"parts": parts, "evidence": evidence}


def _field_shares(served: Any, at: int, asked: Any, view: View, row: int, score: float) -> dict[str, float]:  # noqa: ANN401
    """What each field added to an inner product; they sum to it.

    A part of the vector counts in proportion to its inner product with the query; what a video owes to its neighbours
    is what is left.
    """
    spec = served.parts[at]
    table = view.rows(np.array([row]), view.table.column_names)
    videos = documents_of(table)
    fields = served.embed_fields([texts_with_fallback(videos, name) for name in spec["fields"]])
    own, adds = served.towers[at].videos(np.stack(fields))  # (1, W), (P, 1, W)
    width = adds.shape[-1]
    if len(adds) != len(spec["adds"]):
        what = f"part {at} names {len(spec['adds'])} things that make up a video, its tower gives {len(adds)}"
        raise UserError(f"{served.store.folder} is corrupt: {what}. {served.store.remedy}")
    products = adds[:, 0] @ asked.question[:width]  # (P,)
    length = float(np.linalg.norm(adds.sum(0)[0])) / max(float(np.linalg.norm(own[0, :width])), 1e-12)
    shares = products / max(length, 1e-12)
    if spec["lean"]:
        leaning, alone = (view.vectors_at(np.array([row]), f"{kind}_{at}")[0] for kind in ("vector", "raw"))
        shares = shares * _share_of_own(leaning, alone, float(spec["lean"]))
    found = dict(zip(spec["adds"], map(float, shares), strict=True))
    if spec["lean"]:
        found[_LEAN] = score - sum(found.values())
    return found


def _share_of_own(vector: np.ndarray, own: np.ndarray, weight: float) -> float:
    """A in `vector = a (own + weight n)`, all of length 1 but the sum: how much of its own vector a video keeps."""
    cosine = float(np.clip(vector @ own, -1, 1))
    return float(1 / max(cosine + max(cosine**2 - 1 + weight**2, 0.0) ** 0.5, 1e-12))
