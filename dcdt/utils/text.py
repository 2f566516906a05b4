"""Format numbers and names in messages."""

import re
from collections.abc import Iterable
from decimal import Decimal
from difflib import get_close_matches
from math import nan

from dcdt.utils.redaction import redact

# Characters that steer a terminal, a line or the direction of what follows, tags that nobody sees, and half surrogates.
# Of Unicode's format characters those remain that texts need: soft hyphens, joiners and breaks within words (ZWJ of
# emoji, ZWNJ of Persian, ZWSP of Thai), invisible operators of formulas, and signs of a script that are seen.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u180e\u200e\u200f\u2028-\u202e\u2065-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Escape characters that a stranger's text could steer a terminal with; JSON stays JSON.

    >>> printable("\x1b[2J title\u202e"), printable("标题　1")
    ('\\x1b[2J title\\u202e', '标题　1')
    """
    return _UNPRINTABLE.sub(lambda match: _escaped(match[0]), text)


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass").hex(" ", 2).split()
    return f"\\x{ord(char):02x}" if char < " " else "".join(f"\\u{unit}" for unit in units)


def pluralize(n: int, singular: str, plural: str | None = None) -> str:
    """Format a number with its noun, and its verb if one follows.

    >>> pluralize(1, "video"), pluralize(2000, "query is", "queries are")
    ('1 video', '2,000 queries are')
    """
    return f"{n:,} {singular if n == 1 else plural or f'{singular}s'}"


def format_number(value: float) -> str:
    """Format a number as on a command line.

    >>> [format_number(value) for value in (1e30, 1e4, 200.0, 0.001, 3e-07, 1.25e-8, float("inf"))]
    ['1e30', '1e4', '200', '0.001', '3e-7', '1.25e-8', 'inf']
    """
    if float(value).is_integer() and abs(value) < 10_000:
        return str(int(value))
    return str(Decimal(repr(float(value))).normalize()).lower().replace("e+", "e").replace("infinity", "inf")


def parse_number(text: str) -> float:
    """Parse a number as tables and commands write it; NaN if the text is none.

    >>> parse_number("1e3"), parse_number("2024_01"), parse_number("")
    (1000.0, nan, nan)
    """
    try:
        return nan if "_" in text else float(text)  # Python's underscores between digits are for names
    except ValueError:
        return nan


def one_line(text: object, max_chars: int = 80) -> str:
    r"""Convert a value to text on one line of at most `max_chars` characters, printable and without secrets.

    >>> one_line("two\nlines"), one_line(ValueError("no number"), 4)
    ('two lines', 'no n')
    """
    return printable(" ".join(redact(str(text)).split()))[:max_chars]


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Ask for the choice that a mistyped name resembles; empty where it resembles none.

    >>> did_you_mean("dctd", ["bm25", "dcdt"]), did_you_mean("x", ["bm25"])
    (" Did you mean 'dcdt'?", '')
    """
    close = get_close_matches(name, list(choices), 1)
    return f" Did you mean '{close[0]}'?" if close else ""


def join_names(names: Iterable[str]) -> str:
    r"""Join names, each shortened by `one_line`.

    >>> join_names(["width", "two\nlines"])
    'width, two lines'
    """
    return ", ".join(one_line(name) for name in names)
