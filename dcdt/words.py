"""Small words of messages."""


def counted(n: int, one: str, many: str | None = None) -> str:
    """A number with its noun, and its verb where one follows.

    >>> counted(1, "video"), counted(2000, "query is", "queries are")
    ('1 video', '2,000 queries are')
    """
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"
