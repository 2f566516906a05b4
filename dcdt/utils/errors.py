"""The one exception that means: the user can mend this; and the operating system's errors in the same words."""

import errno
import os

from dcdt.utils.text import format_number

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BAD_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_NO_PERMISSION = (errno.EROFS, errno.EACCES, errno.EPERM)

MAX_LINE_CHARS = 1000  # characters of a line


class UserError(Exception):
    """A mistake the user can mend: one or two lines that name the value, the limit and the remedy.

    The commands print it without a traceback and exit with code 2. What it quotes may be anything: characters that a
    terminal obeys are written out, and a line is cut where nobody would read on.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(_printable(line) for line in message.split("\n")))


class MissingField(UserError):
    """No video has a field that is asked for: a mistake in a single run, not applicable in a sweep."""


class Diverged(UserError):
    """Training left the range of numbers: a mistake in a single run, the worst of several trials."""

    @classmethod
    def in_epoch(cls, epoch: int, reason: str, lr: float) -> "Diverged":
        """The error of an epoch, with what was found and the learning rate that led there."""
        return cls(f"training diverged in epoch {epoch}: {reason}.\nLower optimizer.lr ({format_number(lr)}).")


class NotApplicable(Exception):
    """The collection lacks what the model needs (no interactions, no text): a row in the table, not a failure."""


def format_error(error: Exception) -> str:
    """A mistake or an error of the operating system in one or two lines: the file, the reason and the remedy.

    >>> print(format_error(OSError(28, "No space left on device", "table.md")))
    table.md: No space left on device.
    Free some space, then give the same command again; what is there stays as it was.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    place = f"{error.filename}: " if error.filename else ""
    if error.errno in _NO_SPACE:
        remedy = "\nFree some space, then give the same command again; what is there stays as it was."
    elif error.errno in _NO_PERMISSION:
        remedy = "\nGive a folder that can be written and files that can be read."
    else:
        remedy = ""
    return f"{place}{os.strerror(error.errno)}.{remedy}"


def is_user_error(error: Exception) -> bool:
    """Whether an error is one that the user can mend: a mistake, a full disk, or a folder without rights.

    >>> is_user_error(OSError(28, "No space left on device")), is_user_error(ValueError("x"))
    (True, False)
    """
    return isinstance(error, UserError) or (
        isinstance(error, OSError) and error.errno in (*_NO_SPACE, *_NO_PERMISSION, *_BAD_PATH)
    )


def _printable(line: str) -> str:
    r"""A line of a message without characters that are not printed.

    >>> _printable("the id 'a\x1b[2J' is odd")
    "the id 'a\\x1b[2J' is odd"
    """
    text = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in line[:MAX_LINE_CHARS]
    )
    return text if len(line) <= MAX_LINE_CHARS else f"{text}\u2026"
