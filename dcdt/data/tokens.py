"""The tokenizer of lexical matching, for queries and videos alike."""

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from dcdt.data.formulas import check_parser, formula_tokens
from dcdt.utils.errors import needs_extra

_WORD = re.compile(r"[^\W_]+")
_HAN = re.compile(r"([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+)")
_STOP_WORDS = (  # the 33 of Lucene's English analyzer
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)


def tokenize(text: str) -> list[str]:
    """Split a text into lower-case Unicode words; runs of Han characters become overlapping pairs.

    >>> tokenize("Why A = QR?")
    ['why', 'a', 'qr']
    >>> tokenize("特征值 SVD")
    ['特征', '征值', 'svd']
    """
    runs: list[str] = _WORD.findall(fold_case(text))
    if text.isascii():
        return runs
    tokens: list[str] = []
    for run in runs:
        for piece in _HAN.split(run):
            if _HAN.fullmatch(piece) and len(piece) > 1:
                tokens.extend(piece[i : i + 2] for i in range(len(piece) - 1))
            elif piece:
                tokens.append(piece)
    return tokens


def fold_case(text: str) -> str:
    """Normalise a text (NFKC, lower case) for the comparison of words."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()


def contains_token(text: str, token: str) -> bool:
    """Return whether a token is among those of a folded text, without computing the others.

    >>> contains_token("ranks of a matrix", "matrix"), contains_token("ranks of a matrix", "rank")
    (True, False)
    """
    kind, pair = _character_kind(token[0]), len(token) > 1
    start = text.find(token)
    while start >= 0:
        beside = text[max(start - 1, 0) : start], text[start + len(token) : start + len(token) + 1]
        if (kind == "han" and pair) or kind not in map(_character_kind, beside):
            return True
        start = text.find(token, start + 1)
    return False


def _character_kind(character: str) -> str:
    """Classify a character; adjacent ones of one kind form a token."""
    if not character.isalnum():
        return "none"
    return "han" if _HAN.match(character) else "word"


def tokenizer(stem: bool = False, stop_words: bool = False, formulas: bool = False) -> Callable[[str], list[str]]:
    """Make a function like `tokenize` that drops English stop words, stems English words or reads formulas.

    >>> tokenizer(stop_words=True)("What is the rank of a matrix?")
    ['what', 'rank', 'matrix']

    Raises:
        UserError: `stem` or `formulas` is set and its package is not installed.
    """
    if formulas:
        check_parser()
        words = tokenizer(stem, stop_words)
        return lambda text: words(text) + formula_tokens(text)
    if not stem and not stop_words:
        return tokenize
    left_out = frozenset(_STOP_WORDS.split()) if stop_words else frozenset()
    reduce = _make_stemmer() if stem else str
    return lambda text: [reduce(token) for token in tokenize(text) if token not in left_out]


def _make_stemmer() -> Callable[[str], str]:
    """Make a cached stemmer of English (Porter 2)."""
    with needs_extra("stemming", "stem", "snowballstemmer", or_else=", or choose model.stem=false"):
        import snowballstemmer
    stem: Callable[[str], str] = snowballstemmer.stemmer("english").stemWord
    return cache(stem)
