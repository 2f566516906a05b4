"""Exceptions for mistakes of the user, and the format of error messages."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dcdt.utils.redaction import redact
from dcdt.utils.text import format_number, printable

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BAD_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_NO_PERMISSION = (errno.EROFS, errno.EACCES, errno.EPERM)

MAX_LINE_CHARS = 1000


class UserError(Exception):
    """A mistake of the user: one or two lines that name the value, the limit and the remedy.

    The commands print it without a traceback and exit with code 2. Secrets are redacted, control characters of quoted
    text are escaped, and lines are cut to MAX_LINE_CHARS.
    """

    def __init__(self, message: str) -> None:
        super().__init__("\n".join(map(_cut, printable(redact(message)).split("\n"))))


class MissingField(UserError):
    """No video has a configured field: an error in a single run, not applicable in a sweep."""


class Diverged(UserError):
    """Training diverged to NaN or infinity: an error in a single run, the worst of several trials."""

    @classmethod
    def in_epoch(cls, epoch: int, reason: str, lr: float) -> "Diverged":
        """Make the error of an epoch, with the reason and the learning rate."""
        return cls(f"training diverged in epoch {epoch}: {reason}.\nLower optimizer.lr ({format_number(lr)}).")


class NotApplicable(Exception):
    """The collection lacks what the model needs (no interactions, no text): a row in the table, not a failure."""


def format_error(error: Exception) -> str:
    """Format a mistake or an operating-system error in one or two lines: the file, the reason and the remedy.

    >>> print(format_error(OSError(28, "No space left on device", "table.md")))
    table.md: No space left on device.
    Free some space, then give the same command again; existing files are unchanged.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    prefix = f"{printable(str(error.filename))}: " if error.filename else ""
    if error.errno in _NO_SPACE:
        remedy = "\nFree some space, then give the same command again; existing files are unchanged."
    elif error.errno in _NO_PERMISSION:
        remedy = "\nGive a folder that can be written and files that can be read."
    else:
        remedy = ""
    return f"{prefix}{os.strerror(error.errno)}.{remedy}"


def is_user_error(error: Exception) -> bool:
    """Return whether the user can fix an error: a mistake, a full disk, or a folder without permission.

    >>> is_user_error(OSError(28, "No space left on device")), is_user_error(ValueError("x"))
    (True, False)
    """
    return isinstance(error, UserError) or (
        isinstance(error, OSError) and error.errno in (*_NO_SPACE, *_NO_PERMISSION, *_BAD_PATH)
    )


def raise_system_error(error: BaseException) -> None:
    """Raise an error of the system or of memory again: it is no fault of the file that was being read."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno):
        raise error


def check_encodable(text: str, location: str) -> str:
    """Return a text that UTF-8 can encode.

    Raises:
        UserError: it holds half a character, as JSON can escape it, or a byte of another encoding from a command line.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        what = f"lone surrogate (\\u{ord(text[error.start]):x}), half a character or a byte that is not UTF-8"
        raise UserError(f"{location}: {what}, in {text[max(0, error.start - 30) : error.end + 30]!r}.") from error
    return text


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the command with a message on stderr and exit code 2 at a mistake of the user or an error of the system."""
    try:
        yield
    except (UserError, OSError) as error:
        print(f"error: {format_error(error)}", file=sys.stderr)  # noqa: T201 - the command's own message
        raise SystemExit(2) from None


def _cut(line: str) -> str:
    return line if len(line) <= MAX_LINE_CHARS else f"{line[:MAX_LINE_CHARS]}\u2026"
