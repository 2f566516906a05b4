"""Locks between processes, on a file or a folder; nothing of them is left behind."""

import os
from collections.abc import Callable
from pathlib import Path


def lock_path(path: Path, on_wait: Callable[[], None] | None) -> int | None:
    """Lock an existing file or folder until its descriptor is closed or this process ends.

    Args:
        path: of the file or folder.
        on_wait: called before waiting for another process that holds the lock; None: do not wait.

    Returns:
        The file descriptor to close; None where the system has no locks or the path cannot be opened.

    Raises:
        BlockingIOError: another process holds the lock, and `on_wait` is None.
    """
    try:
        import fcntl
    except ImportError:  # not POSIX
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError:  # whoever writes there next reports it
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if on_wait is None:
            os.close(descriptor)
            raise
        on_wait()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    return descriptor
