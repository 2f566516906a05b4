"""The moments of a video that answer a question: where its best passages begin, and links that lead there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import numpy as np

from dcdt.serving.explanation import matched_words
from dcdt.serving.graphs import Scores
from dcdt.serving.passages import PASSAGE_COLUMNS

MAX_MOMENTS, SPREAD = 3, 0.1  # of a video; they score at most so much of the range of its passages below the best


@dataclass(frozen=True)
class Moment:
    """A passage: where it begins, None if not known, its text, words of the question in it, a link that leads there."""

    start_s: float | None
    text: str
    matched: list[str]
    link: str | None


def best_moments(scores: Scores | None, video: dict[str, Any], words: Sequence[str], template: str) -> list[Moment]:
    """Take the passages from a video's record, and choose the best that do not overlap, by their scores (p,)."""
    texts, starts, link = *(video.pop(name, None) for name in PASSAGE_COLUMNS), video["link"]
    if scores is None or not len(scores) == len(texts) == len(starts):
        return []
    chosen: list[int] = []
    for place in np.argsort(-scores, kind="stable").tolist():
        if scores[place] >= scores.max() - SPREAD * np.ptp(scores) and all(abs(place - other) > 1 for other in chosen):
            chosen.append(place)
    parts = [(starts[place], texts[place]) for place in chosen[:MAX_MOMENTS]]
    return [Moment(*at, matched_words(words, "", at[1]), timed_link(link, at[0], template)) for at in parts]


def timed_link(link: str | None, start: float | None, template: str = "") -> str | None:
    """Make the link to a second of a video, by a template or as its site knows it; None where neither does.

    >>> timed_link("https://youtu.be/a?t=9", 61.5), timed_link("https://e.org/a", 61.5, "{link}#s{seconds}")
    ('https://youtu.be/a?t=61', 'https://e.org/a#s61')
    """
    if link is None or start is None:
        return None
    if template:
        return template.replace("{seconds}", str(int(start))).replace("{link}", link)
    try:
        parts = urlsplit(link)
        host = f".{parts.hostname}"
    except ValueError:  # a stranger's
        return None
    if host.endswith(".vimeo.com"):
        return parts._replace(fragment=f"t={int(start)}s").geturl()
    query = [*((name, value) for name, value in parse_qsl(parts.query) if name != "t"), ("t", int(start))]
    return parts._replace(query=urlencode(query)).geturl() if host.endswith((".youtube.com", ".youtu.be")) else None
