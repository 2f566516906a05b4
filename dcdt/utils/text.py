"""Small words of messages."""

from collections.abc import Iterable
from decimal import Decimal


def pluralize(n: int, one: str, many: str | None = None) -> str:
    """A number with its noun, and its verb where one follows.

    >>> pluralize(1, "video"), pluralize(2000, "query is", "queries are")
    ('1 video', '2,000 queries are')
    """
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def format_number(value: float) -> str:
    """A number as a command line would give it.

    >>> [format_number(value) for value in (1e30, 1e4, 200.0, 0.001, 3e-07, 1.25e-8, float("inf"))]
    ['1e30', '1e4', '200', '0.001', '3e-7', '1.25e-8', 'inf']
    """
    if float(value).is_integer() and abs(value) < 10_000:
        return str(int(value))
    return str(Decimal(repr(float(value))).normalize()).lower().replace("e+", "e").replace("infinity", "inf")


def one_line(text: object, most: int = 80) -> str:
    r"""What a file, a command line or another library gave, on one line of at most so many characters.

    >>> one_line("two\nlines"), one_line(ValueError("no number"), 4)
    ('two lines', 'no n')
    """
    return " ".join(str(text).split())[:most]


def join_names(names: Iterable[str]) -> str:
    r"""Names that a file or a command line gave, each as `one_line`.

    >>> join_names(["width", "two\nlines"])
    'width, two lines'
    """
    return ", ".join(one_line(name) for name in names)
