"""Exceptions for mistakes of the user, and the format of error messages."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from dcdt.utils.redaction import redact
from dcdt.utils.shell import program
from dcdt.utils.text import format_number, one_line, printable

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BAD_PATH = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_NO_PERMISSION = (errno.EROFS, errno.EACCES, errno.EPERM)

_NO_MEMORY = re.compile("out of memory|allocate memory|memory allocation|map segment|bad_alloc", re.IGNORECASE)
_BLAMES = re.compile("corrupt|[Dd]elete|install|anew")  # a file or a package

_COMMAND = re.compile(r"(?<![\w/.'-])python -m dcdt\.")  # not one that names its interpreter already

MAX_LINE_CHARS = 1000


class UserError(Exception):
    """A mistake of the user: one or two lines that name the value, the limit and the remedy.

    The commands print it without a traceback and exit with code 2. Secrets are redacted, control characters of quoted
    text are escaped, and lines are cut to MAX_LINE_CHARS. Made while an error of the system is handled (no permission,
    no memory), it says that instead of blaming a file or a package.
    """

    def __init__(self, message: str) -> None:
        cause = sys.exc_info()[1]  # what is being handled
        if isinstance(cause, Exception) and _BLAMES.search(message) and _is_of_system(cause):
            message = format_error(cause)
        message = _COMMAND.sub(lambda _: program(""), message)
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
    if is_out_of_memory(error):
        return f"not enough memory: {one_line(error) or type(error).__name__}.\nFree some, or lower batch_size."
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


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an error, or one behind it, is a lack of memory, which libraries report in many ways."""
    while error is not None:
        is_named = isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM
        if is_named or _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_of_system(error: Exception) -> bool:
    return is_out_of_memory(error) or (isinstance(error, OSError) and error.errno not in (None, errno.ENOENT))


def is_user_error(error: Exception) -> bool:
    """Return whether the user can fix an error: a mistake, a full disk or memory, or a folder without permission.

    >>> is_user_error(OSError(28, "No space left on device")), is_user_error(ValueError("x"))
    (True, False)
    """
    is_of_path = isinstance(error, OSError) and error.errno in (*_NO_SPACE, *_NO_PERMISSION, *_BAD_PATH)
    return isinstance(error, UserError) or is_of_path or is_out_of_memory(error)


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
def needs_extra(subject: str, extra: str, *modules: str, or_else: str = "") -> Iterator[None]:
    """Convert the lack of one of an extra's modules to UserError; a lack of another module has another remedy.

    Raises:
        UserError: names the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in modules:
            raise
        raise UserError(f"{subject} needs the extra '{extra}': pip install 'dcdt[{extra}]'{or_else}.") from error


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the command with a message on stderr and exit code 2 at a mistake of the user or an error of the system."""
    try:
        yield
    except Exception as error:
        if not is_user_error(error) and not isinstance(error, OSError):
            raise
        print(f"error: {format_error(error)}", file=sys.stderr)  # noqa: T201 - the command's own message
        raise SystemExit(2) from None


def _cut(line: str) -> str:
    return line if len(line) <= MAX_LINE_CHARS else f"{line[:MAX_LINE_CHARS]}\u2026"
