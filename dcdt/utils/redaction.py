"""Keys and tokens of the environment never reach a log, a file or the terminal, whatever an error quotes."""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

SECRET_NAMES = re.compile(r"(^|_)(KEY|APIKEY|TOKEN|SECRET|PASSWORD|PASSWD)(_ID)?$", re.IGNORECASE)
MIN_SECRET_CHARS = 8  # characters; a shorter value stands in too many innocent words to be told apart
MASK = "***"


def secret_values() -> list[str]:
    """Values of the environment's variables that are named like a secret, the longest first."""
    named = (value.strip() for name, value in os.environ.items() if SECRET_NAMES.search(name))
    return sorted({value for value in named if len(value) >= MIN_SECRET_CHARS}, key=lambda value: -len(value))


def redact(text: str) -> str:
    """The text with every secret of the environment left out.

    >>> os.environ["DOCTEST_API_KEY"] = "sk-of-the-doctest"
    >>> redact("Authorization: Bearer sk-of-the-doctest")
    'Authorization: Bearer ***'
    >>> del os.environ["DOCTEST_API_KEY"]
    """
    for value in secret_values():
        text = text.replace(value, MASK)
    return text


def redact_values(value: Any) -> Any:  # noqa: ANN401 - what a configuration can hold
    """The same for every text in plain lists and dictionaries."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact_values(key): redact_values(item) for key, item in value.items()}
    return [redact_values(item) for item in value] if isinstance(value, list) else value


class RedactedStream:
    """A stream of text that leaves secrets out of what is written to it.

    Args:
        stream: that the text goes to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text without secrets; the number of characters given, as of a file."""
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write every line without secrets."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the stream has
        return getattr(self._stream, name)


def refuse_arguments(arguments: Sequence[str]) -> None:
    """Refuse a secret on the command line: it would become part of names of folders, which are not redacted.

    Raises:
        SystemExit: one stands there (exit code 2).
    """
    if any(redact(text) != text for text in arguments):
        print(  # noqa: T201 - the command's own message
            "error: a key stands on the command line. Leave it out: keys are read from the environment alone.",
            file=sys.stderr,
        )
        raise SystemExit(2)


def redact_output() -> None:
    """Guard what this process prints, tracebacks and logs included; nothing changes where no secret is set."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if secret_values() and stream is not None and not isinstance(stream, RedactedStream):
            setattr(sys, name, RedactedStream(stream))


@contextmanager
def unredacted() -> Iterator[None]:
    """Show the streams beneath the guards for a while: what then hooks their `write` gets text without secrets."""
    guards = {name: stream for name in ("stdout", "stderr") if isinstance(stream := getattr(sys, name), RedactedStream)}
    for name, guard in guards.items():
        setattr(sys, name, guard._stream)
    try:
        yield
    finally:
        for name, guard in guards.items():
            setattr(sys, name, guard)
