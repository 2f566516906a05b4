"""Limit numpy's matrix products to one thread while questions are answered."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import threadpoolctl


class OneThread:
    """Holds products to one thread while a block lasts: several would spin against the threads of the embedder.

    The number of threads is the process's, so blocks of several threads count as one: the first sets it, and the last
    one to end puts it back. From 3.8 on threadpoolctl heeds only the first thread that ever set it, until that is
    cleared; any thread may be the first or the last here, so it is cleared each time, under the lock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._limit: Any = None
        self._controller: Any = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """The block."""
        with self._lock:
            if self._inside == 0:
                if self._controller is None:
                    self._controller = threadpoolctl.ThreadpoolController()
                _clear_controlling_thread()
                self._limit = self._controller.limit(limits=1, user_api="blas")
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    _clear_controlling_thread()
                    self._limit.restore_original_limits()
                    _clear_controlling_thread()


def _clear_controlling_thread() -> None:
    clear = getattr(threadpoolctl.OpenBLASController, "clear_controlling_thread", None)
    if clear is not None:
        clear(force=True)


one_thread = OneThread()
