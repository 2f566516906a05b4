"""Tell the script of a text by its letters, and its language by py3langid (the extra 'languages')."""

import unicodedata
from collections import Counter
from functools import cache
from importlib.util import find_spec
from typing import Any

LATIN = "en fr de es it pt nl tr pl sv da no fi cs ro hu id vi"  # languages that are told apart in short texts
NAMES = {"CJK": "Chinese"}  # of scripts, where Unicode has a name that few know
MIN_CONFIDENCE = 0.7  # of a language; below it nothing is said


def scripts(text: str) -> Counter[str]:
    """Count the letters of a text by script; Greek ones only in words, since alone they are symbols of formulas.

    >>> scripts("Why is λ real? Почему")
    Counter({'Latin': 9, 'Cyrillic': 6})
    """
    if text.isascii():
        return Counter(Latin=sum(map(str.isalpha, text)))
    words = "".join(c if c.isalpha() else " " for c in unicodedata.normalize("NFKC", text)).split()
    named = [(unicodedata.name(c, "?").replace("-", " ").split()[0], len(word)) for word in words for c in word]
    return Counter(NAMES.get(name, name.title()) for name, length in named if name != "GREEK" or length > 2)


def language(text: str) -> str | None:
    """Return the language of a text in Latin script, such as 'fr'; None if not certain, or without py3langid."""
    if not find_spec("py3langid"):
        return None
    code, confidence = _identifier().classify(text)
    return str(code) if confidence > MIN_CONFIDENCE else None


@cache
def _identifier() -> Any:  # noqa: ANN401 - py3langid has no types
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(LATIN.split())
    return identifier
