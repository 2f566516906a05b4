"""Redact the keys and tokens of the environment, and those in addresses, from logs, files and the terminal."""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

SECRET_NAMES = re.compile(r"(^|_)(KEY|APIKEY|TOKEN|SECRET|PASSWORD|PASSWD)(_ID)?$", re.IGNORECASE)
MIN_SECRET_CHARS = 8  # shorter values occur in too many other words
MASK = "***"
_IN_ADDRESSES = [  # passwords, which may hold a slash, and no port; tokens, but no user of ssh; values of queries
    re.compile(r"""(://[^\s/@:"'<>,]*:)(?!\d{1,5}/)(?:[^\s/"<>]+|[^\s@"<>]+)(?=@)"""),
    re.compile(r"(?<!ssh)(://)[\w.~!$&'()*+,;=%-]+(?=@)", re.ASCII),
    re.compile(
        r"""([?&;#](?:[\w.-]*[-_.])?(?:api[-_]?key|(?:access|auth|id|refresh|security)[-_]?token|secret|password|pwd"""
        r"""|sig(?:nature)?)=)[^\s&;#"'<>,]+""",
        re.IGNORECASE,
    ),
    re.compile(r"""([?&;#](?:[\w.-]*[-_.])?(?:key|token|auth)=)[^\s&;#"'<>,]{8,}""", re.IGNORECASE),
]


def secret_values() -> list[str]:
    """Return the values of environment variables that are named like a secret, the longest first."""
    named = (value.strip() for name, value in os.environ.items() if SECRET_NAMES.search(name))
    return sorted({value for value in named if len(value) >= MIN_SECRET_CHARS}, key=lambda value: -len(value))


def redact(text: str) -> str:
    """Replace every secret of the environment, and the passwords, tokens and keys of addresses, in a text.

    >>> os.environ["DOCTEST_API_KEY"] = "sk-of-the-doctest"
    >>> redact("Authorization: Bearer sk-of-the-doctest")
    'Authorization: Bearer ***'
    >>> del os.environ["DOCTEST_API_KEY"]
    >>> redact("http://me:hunter2@host:8000/v1")
    'http://me:***@host:8000/v1'
    >>> redact("https://ghp_1234@host/?api-key=abc&k=5")
    'https://***@host/?api-key=***&k=5'
    """
    for value in secret_values():
        text = text.replace(value, MASK)
    for pattern in _IN_ADDRESSES:
        text = pattern.sub(rf"\1{MASK}", text)
    return text


def redact_values(value: Any) -> Any:  # noqa: ANN401 - what a configuration can hold
    """Replace every secret in the texts of plain lists and dictionaries."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact_values(key): redact_values(item) for key, item in value.items()}
    return [redact_values(item) for item in value] if isinstance(value, list) else value


class RedactedStream:
    """A text stream that redacts secrets.

    Args:
        stream: to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text without secrets; return its number of characters."""
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write every line without secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)


def redact_output() -> None:
    """Redact what this process prints, with tracebacks and logs."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactedStream):
            setattr(sys, name, RedactedStream(stream))


@contextmanager
def unredacted() -> Iterator[None]:
    """Restore the original streams inside the block: whatever hooks their `write` then gets redacted text."""
    guards = {name: stream for name in ("stdout", "stderr") if isinstance(stream := getattr(sys, name), RedactedStream)}
    for name, guard in guards.items():
        setattr(sys, name, guard._stream)
    try:
        yield
    finally:
        for name, guard in guards.items():
            setattr(sys, name, guard)
