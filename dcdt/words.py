"""Small words of messages."""

from collections.abc import Iterable


def counted(n: int, one: str, many: str | None = None) -> str:
    """A number with its noun, and its verb where one follows.

    >>> counted(1, "video"), counted(2000, "query is", "queries are")
    ('1 video', '2,000 queries are')
    """
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def listed(names: Iterable[str]) -> str:
    r"""Names that a file or a command line gave, on one line and none of them long.

    >>> listed(["width", "two\nlines"])
    'width, two lines'
    """
    return ", ".join(" ".join(name.split())[:60] for name in names)
