"""Small words of messages."""

from collections.abc import Iterable


def counted(n: int, one: str, many: str | None = None) -> str:
    """A number with its noun, and its verb where one follows.

    >>> counted(1, "video"), counted(2000, "query is", "queries are")
    ('1 video', '2,000 queries are')
    """
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def shown(name: str) -> str:
    r"""What a file or a command line gave, on one line and not long.

    >>> shown("two\nlines")
    'two lines'
    """
    return " ".join(name.split())[:80]


def listed(names: Iterable[str]) -> str:
    r"""Names that a file or a command line gave, each as `shown`.

    >>> listed(["width", "two\nlines"])
    'width, two lines'
    """
    return ", ".join(shown(name) for name in names)
