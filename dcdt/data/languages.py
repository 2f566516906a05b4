"""Tell the script of a text by its letters, and what of a question an embedder was not trained on."""

import unicodedata
from collections import Counter
from functools import cache
from importlib.util import find_spec
from typing import Any

from dcdt.data.tokens import tokenize

SIXTEEN = "ar zh en fr de it ja ko nl pl pt es th tr ru Latin Arabic Chinese Hiragana Katakana Hangul Thai Cyrillic"
KNOWN = {
    "all-MiniLM-L6-v2": "en Latin",
    "multilingual": SIXTEEN,
}  # languages and scripts that embedders were trained on
LATIN = "en fr de es it pt nl tr pl sv da no fi cs ro hu id vi"  # languages that are told apart in short texts
ENGLISH_WORDS = "the of is are and what why how when where which who does did can you your between with"
MIN_SHARE, MIN_CONFIDENCE = 0.25, 0.7  # of the letters of another script, and in another language


def scripts(text: str) -> Counter[str]:
    """Count the letters of a text by script; Greek ones only in words, since alone they are symbols of formulas.

    >>> scripts("Why is λ real? Почему")
    Counter({'Latin': 9, 'Cyrillic': 6})
    """
    words = "".join(c if c.isalpha() else " " for c in unicodedata.normalize("NFKC", text)).split()
    named = [(unicodedata.name(c, "?").replace("-", " ").split()[0], len(word)) for word in words for c in word]
    named = [("CHINESE" if name == "CJK" else name, length) for name, length in named]
    return Counter(name.title() for name, length in named if name != "GREEK" or length > 2)


def unknown_language(text: str, embedder: str) -> str | None:
    """Name the script or language of a question that an embedder was not trained on; None where it may know it.

    Languages in Latin letters are told by py3langid (the extra 'languages'), unless there is an English word.
    """
    known, letters = KNOWN.get(embedder, "").split(), scripts(text)
    foreign = Counter({name: n for name, n in letters.items() if name not in known})
    if known and foreign.total() >= max(2, MIN_SHARE * letters.total()):
        return f"{foreign.most_common(1)[0][0]} script"
    if not known or set(ENGLISH_WORDS.split()).intersection(tokenize(text)) or not find_spec("py3langid"):
        return None
    code, confidence = _identifier().classify(text)
    return None if code in known or confidence < MIN_CONFIDENCE else f"another language ('{code}')"


@cache
def _identifier() -> Any:  # noqa: ANN401 - py3langid has no types
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LATIN.split())
    return identifier
