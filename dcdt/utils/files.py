"""Read and write files; writes are atomic."""

import glob
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dcdt.utils.errors import UserError
from dcdt.utils.lock import lock_path
from dcdt.utils.redaction import redact
from dcdt.utils.text import printable

MAX_JSON_BYTES = 1 << 26  # the largest are tokenizers, of some 20 MB
MAX_TEMPORARY_SECONDS = 24 * 3600.0  # after which a temporary file is abandoned, on a file system without locks
FORMULA_STARTS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")  # with the full-width forms of East Asia


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which takes its place when the block ends without an error.

    The rename is atomic on POSIX, so a reader (or a kill) sees the old file or the new one, never half of one.

    Raises:
        OSError: the disk is full or the folder cannot be written; the error names `path`, and the old file stays.
    """
    temporary: Path | None = None
    lock: int | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, path.name)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        lock = _hold(temporary)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:  # a write that fails names no file, and a temporary name says nothing to the user
        if error.errno is not None:
            error.filename = str(path)
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, to be renamed to it; deleted at the end if it is still there.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent))
    lock = _hold(temporary)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _hold(temporary: Path) -> int | None:
    """Lock a new temporary file or folder, which tells `remove_abandoned` that its writer lives."""
    return lock_path(temporary, on_wait=lambda: None)  # it may be looking at this one, for an instant


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Remove temporary files and folders of processes that have ended; living ones hold a lock on theirs.

    Args:
        folder: whose own entries are looked at.
        name: of the file or folder they were to become; empty: any, in a folder that only dcdt writes.
    """
    for path in folder.glob(f".{glob.escape(name[:100])}.*.tmp" if name else ".*.tmp"):
        with suppress(OSError):  # also BlockingIOError: its writer lives
            lock = lock_path(path, None)
            try:
                is_empty = not (any(path.iterdir()) if path.is_dir() else path.stat().st_size)
                seconds = MAX_TEMPORARY_SECONDS if lock is None else 60.0 if is_empty else 0.0  # a new one has no lock
                if time.time() - path.stat().st_mtime >= seconds:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                if lock is not None:
                    os.close(lock)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` atomically, without the secrets of the environment."""
    with atomic_write(path) as temporary:
        temporary.write_text(redact(text), encoding="utf-8")


def redact_file(path: Path) -> None:
    """Take the secrets out of a text file, if it is there and holds any."""
    if path.is_file() and redact(text := path.read_text(encoding="utf-8")) != text:
        write_text(path, text)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - whatever JSON can say
    """Write `value` as indented JSON to `path` atomically; NaN becomes null."""
    write_text(path, json.dumps(_without_nan(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def escape_cell(text: str) -> str:
    r"""Escape a text for a CSV cell: one line that no spreadsheet takes for a formula.

    >>> escape_cell("=HYPERLINK(1)"), escape_cell("\t@SUM(A1)"), escape_cell("dcdt")
    ("'=HYPERLINK(1)", "'@SUM(A1)", 'dcdt')
    """
    line = printable(" ".join(text.split()))
    return f"'{line}" if line.startswith(FORMULA_STARTS) else line


def read_limited(path: Path, max_bytes: int = MAX_JSON_BYTES) -> str:
    """Read a text file, which may be a link of a stranger's to something endless.

    Raises:
        UserError: it has more bytes.
    """
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise UserError(f"{path} has more than {max_bytes:,} bytes, at which reading stops.")
    return content.decode("utf-8")


def refuse_outside_links(folder: Path, root: Path, deep: bool = True) -> None:
    """Refuse to write into a folder of `root` that is, or if `deep` holds, a link which leads out of `root`.

    Raises:
        UserError: names the link.
    """
    for path in (folder, *(folder.rglob("*") if deep else ())):
        if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
            raise UserError(
                f"{path} is a link that leads out of {root}, and nothing is written there. Remove the link."
            )


def checksum(path: Path) -> int:
    """Compute the CRC-32 of a file, which finds flipped bits at a gigabyte a second."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in `path`; {} if there is none.

    Raises:
        UserError: the file is too large, or is there and cannot be read.
    """
    try:
        value = parse_json(read_limited(path))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    return value if isinstance(value, dict) else {}


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary of the keys and values of a JSON object.

    Raises:
        ValueError: a key occurs twice.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key '{next(name for name in names if names.count(name) > 1)}' occurs twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=unique_keys)


def parse_json(text: str | bytes, decoder: json.JSONDecoder = _DECODER) -> Any:  # noqa: ANN401 - whatever JSON can say
    """Parse JSON.

    Raises:
        ValueError: it is no JSON, nested too deeply, or an object has a key twice.
    """
    try:
        return decoder.decode(text if isinstance(text, str) else text.decode("utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _without_nan(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
