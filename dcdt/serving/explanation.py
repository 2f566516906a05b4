"""Explain an answer: what each field, word and scorer added to the score of a video."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dcdt.data.tokens import contains_token, fold_case, tokenize, tokenizer
from dcdt.serving.manifest import Manifest
from dcdt.serving.scorers.base import CatalogueScores, EmbedTexts
from dcdt.serving.scorers.hybrid import z_scores
from dcdt.utils.errors import UserError

OTHER_WORDS = "question words"  # in explanations: what words that only ask, and stop words, added together
_split = tokenizer(stop_words=True)
_QUESTION_WORDS = (  # words that only ask, also stemmed ("whi", "doe"), and the "s" of "what's"
    "what why whi how when where which who do does doe did can could should would i you we my me our about from s "
    "explain"
)


def content_words(question: str) -> list[str]:
    """Words of a question but for stop words and those that only ask, each once.

    >>> content_words("What is the rank of a matrix?")
    ['rank', 'matrix']
    """
    return [word for word in dict.fromkeys(_split(question)) if word not in _QUESTION_WORDS.split()]


def matched_words(words: Sequence[str], title: str, text: str) -> list[str]:
    """Return those of the words that a title or text holds.

    >>> matched_words(["rank", "matrix"], "What rank and nullity are", "")
    ['rank']
    """
    both = fold_case(f"{title} {text}") if words else ""
    return [word for word in words if contains_token(both, word)]


def explain(
    manifest: Manifest,
    scores: Sequence[CatalogueScores],
    row: int,
    embed: EmbedTexts,
    evidence: dict[str, float] | None = None,
) -> dict[str, Any]:
    """Explain the score of a row.

    Args:
        manifest: of the run.
        scores: of the query, by each scorer.
        row: of a video.
        embed: texts of each field to their frozen vectors.
        evidence: what a rank head added up.

    Returns:
        `parts`: for each scorer its `name`, `score` and, where they apply, `fields` (what title, description, similar
        videos and the learner's earlier ones added; they sum to the score), `attention` (weights over the fields),
        `terms` (what each word added; they sum to the score) and, in a fusion of two, `z` and `share` of the score. Of
        two stages also `evidence`: what each kind of it added (weight times value); it sums to the video's score.

    Raises:
        UserError: a number is not finite.
    """
    rows, parts = np.array([row]), []
    for number, (scorer, scored) in enumerate(zip(manifest.scorers, scores, strict=True)):
        reasons = {"name": scorer.name, "score": float(scored.scores_of(rows)[0]), **scored.explain(row, embed)}
        if manifest.fusion is not None and manifest.fusion.kind == "convex" and number < 2 == manifest.fusion.n_scorers:
            reasons["z"] = float(z_scores(scored, rows)[0])
            reasons["share"] = manifest.fusion.weights[number] * reasons["z"]
        terms = reasons.get("terms", {})
        if other := {word for word in terms if tokenize(word) == [word] and not content_words(word)}:
            rest = {word: value for word, value in terms.items() if word not in other}
            reasons["terms"] = rest | {OTHER_WORDS: sum(terms[word] for word in other)}
        parts.append(reasons)
        numbers = [value for value in reasons.values() if isinstance(value, float)]
        numbers += [value for group in reasons.values() if isinstance(group, dict) for value in group.values()]
        if not np.isfinite(numbers).all():
            raise UserError("the index holds numbers that are not finite. Run: python -m dcdt.index RUN build")
    return {"parts": parts} if evidence is None else {"parts": parts, "evidence": evidence}
