"""Claims on texts that a process is embedding, so that no other process pays for them meanwhile.

A claim is a lock on one byte of a file, which ends with its process, however that ends. Where the system has no such
locks every claim is granted: two processes may embed a text twice, and nothing worse.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dcdt.embeddings.shards import text_keys
from dcdt.utils.text import one_line

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

OWNER_BYTES = 100  # of the line that says who began to fill a cache last


class Claims:
    """The claims of this process on texts of one cache folder, of which it wants `n_texts`."""

    def __init__(self, folder: Path, n_texts: int) -> None:
        self._file = os.open(folder / ".filling", os.O_RDWR | os.O_CREAT, 0o666)
        self._before = os.pread(self._file, OWNER_BYTES, 0)
        self._own = f"process {os.getpid()} embeds {n_texts:,} texts since {time.ctime()}".ljust(OWNER_BYTES).encode()
        os.pwrite(self._file, self._own, 0)

    def close(self) -> None:
        """Give up all claims."""
        os.close(self._file)

    @contextlib.contextmanager
    def take(self, texts: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
        """Claim the texts that no other process claims; yield these, and the others."""
        split: tuple[list[str], list[str]] = ([], [])
        for text in texts:
            split[not self._lock(text)].append(text)
        try:
            yield split
        finally:
            self._unlock()

    def wait(self, text: str) -> None:
        """Wait until no other process claims a text."""
        self._lock(text, wait=True)
        self._unlock()

    def owner(self) -> str:
        """Describe who else began to fill the folder last, if it still runs: process, texts and since when."""
        line = os.pread(self._file, OWNER_BYTES, 0)
        text = one_line((self._before if line == self._own else line).decode(errors="replace"), OWNER_BYTES)
        number = re.match(r"process (\d{1,9}) ", text)
        return text if number and _is_alive(int(number[1])) else "another process"

    def _lock(self, text: str, wait: bool = False) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, _offset(text))
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks
            pass
        return True

    def _unlock(self) -> None:
        if fcntl is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _offset(text: str) -> int:
    return int(text_keys([text])[0, 0]) >> 1  # a signed number of 64 bits
