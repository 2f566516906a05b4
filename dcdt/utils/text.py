"""Small words of messages."""

from collections.abc import Iterable
from decimal import Decimal


def counted(n: int, one: str, many: str | None = None) -> str:
    """A number with its noun, and its verb where one follows.

    >>> counted(1, "video"), counted(2000, "query is", "queries are")
    ('1 video', '2,000 queries are')
    """
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def typed_number(value: float) -> str:
    """A number as a command line would give it.

    >>> [typed_number(value) for value in (1e30, 1e4, 200.0, 0.001, 3e-07, 1.25e-8, float("inf"))]
    ['1e30', '1e4', '200', '0.001', '3e-7', '1.25e-8', 'inf']
    """
    if float(value).is_integer() and abs(value) < 10_000:
        return str(int(value))
    return str(Decimal(repr(float(value))).normalize()).lower().replace("e+", "e").replace("infinity", "inf")


def shown(text: object, most: int = 80) -> str:
    r"""What a file, a command line or another library gave, on one line of at most so many characters.

    >>> shown("two\nlines"), shown(ValueError("no number"), 4)
    ('two lines', 'no n')
    """
    return " ".join(str(text).split())[:most]


def listed(names: Iterable[str]) -> str:
    r"""Names that a file or a command line gave, each as `shown`.

    >>> listed(["width", "two\nlines"])
    'width, two lines'
    """
    return ", ".join(shown(name) for name in names)
