"""One tokenizer for both sides of lexical matching."""

import re
import unicodedata
from collections.abc import Callable
from functools import cache

from dcdt.utils.errors import UserError

_WORD = re.compile(r"[^\W_]+")
_HAN = re.compile(r"([\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+)")
_STOP_WORDS = (  # the 33 of Lucene's English analyzer
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)


def tokenize(text: str) -> list[str]:
    """Lower-case Unicode words; runs of Han characters become overlapping pairs of characters.

    >>> tokenize("Why A = QR?")
    ['why', 'a', 'qr']
    >>> tokenize("特征值 SVD")
    ['特征', '征值', 'svd']
    """
    words: list[str] = _WORD.findall(fold_case(text))
    if text.isascii():
        return words
    tokens: list[str] = []
    for word in words:
        for part in _HAN.split(word):
            if _HAN.fullmatch(part) and len(part) > 1:
                tokens.extend(part[at : at + 2] for at in range(len(part) - 1))
            elif part:
                tokens.append(part)
    return tokens


def fold_case(text: str) -> str:
    """A text in the one form in which words are compared."""
    return (text if text.isascii() else unicodedata.normalize("NFKC", text)).lower()


def contains_token(text: str, token: str) -> bool:
    """Whether a token is among those of a folded text, found without making the others.

    >>> contains_token("ranks of a matrix", "matrix"), holds("ranks of a matrix", "rank")
    (True, False)
    """
    kind, pair = _character_kind(token[0]), len(token) > 1
    at = text.find(token)
    while at >= 0:
        beside = text[max(at - 1, 0) : at], text[at + len(token) : at + len(token) + 1]
        if (kind == "han" and pair) or kind not in map(_character_kind, beside):
            return True
        at = text.find(token, at + 1)
    return False


def _character_kind(character: str) -> str:
    """Of what characters next to each other make one token."""
    if not character.isalnum():
        return "none"
    return "han" if _HAN.match(character) else "word"


def tokenizer(stem: bool = False, stop_words: bool = False) -> Callable[[str], list[str]]:
    """`tokenize`, without English stop words and with English words reduced to their stems where asked for.

    >>> tokenizer(stop_words=True)("What is the rank of a matrix?")
    ['what', 'rank', 'matrix']

    Raises:
        UserError: stems are asked for and the stemmer is not installed.
    """
    if not stem and not stop_words:
        return tokenize
    left_out = frozenset(_STOP_WORDS.split()) if stop_words else frozenset()
    reduce = _make_stemmer() if stem else str
    return lambda text: [reduce(token) for token in tokenize(text) if token not in left_out]


def _make_stemmer() -> Callable[[str], str]:
    """English stems (Porter 2), each word once."""
    try:
        import snowballstemmer
    except ImportError as error:
        raise UserError(
            "stemming needs the package snowballstemmer: pip install 'dcdt[stem]', or choose model.stem=false."
        ) from error
    stem: Callable[[str], str] = snowballstemmer.stemmer("english").stemWord
    return cache(stem)
