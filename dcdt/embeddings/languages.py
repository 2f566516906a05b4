"""Name an embedder, and what of a question it was not trained on."""

from pathlib import Path
from typing import Any

from dcdt.data.languages import language, scripts
from dcdt.data.tokens import tokenize
from dcdt.embeddings.providers.local_models import PACKAGES

MULTILINGUAL = "ar zh en fr de it ja ko nl pl pt es th tr ru"
MULTILINGUAL_SCRIPTS = "Latin Arabic Chinese Hiragana Katakana Hangul Thai Cyrillic"
MIN_SHARE = 0.25  # of the letters of a question that another script must have
ENGLISH_WORDS = "the of is are and what why how when where which who does did can you your between with"


def embedder_name(config: Any) -> str:  # noqa: ANN401 - any embedder's configuration
    """Name the model of an embedder."""
    known = PACKAGES.get(getattr(config, "package", ""))
    return known.model if known else Path(getattr(config, "model", getattr(config, "package", config.name))).name


def unknown_language(text: str, config: Any) -> str | None:  # noqa: ANN401
    """Name the script or the language of a question that an embedder was not trained on; None where it may know it.

    A question with English words, and one whose language is not certain, raise no alarm.
    """
    english = getattr(config, "package", "") in PACKAGES
    if not english and config.name != "multilingual":
        return None
    letters = scripts(text)
    foreign = {name: n for name, n in letters.items() if name not in ("Latin" if english else MULTILINGUAL_SCRIPTS)}
    if sum(foreign.values()) >= max(2, MIN_SHARE * letters.total()):
        return f"{max(foreign, key=lambda name: foreign[name])} script"
    code = None if set(ENGLISH_WORDS.split()).intersection(tokenize(text)) else language(text)
    is_known = code is None or code in ("en" if english else MULTILINGUAL)
    return None if is_known else f"another language ('{code}')"
