"""Ctrl-C, SIGTERM and a closed terminal as an exception that ends a command with the exit code of its signal."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

DEFAULTS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    **({signal.SIGHUP: signal.SIG_DFL} if hasattr(signal, "SIGHUP") else {}),  # a closed terminal; not on Windows
}
REPEATED_SECONDS = 2.0  # within which a further signal is the same one: a key held down, a group and its parent


class Interrupted(SystemExit):
    """Ctrl-C (exit code 130), SIGTERM (143) or SIGHUP (129); `advice` says what is kept and how to go on."""

    advice = ""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    @property
    def first_advice(self) -> str:
        """The advice of this interruption, or of an earlier one that it has interrupted in turn."""
        error: BaseException | None = self
        while error is not None and not getattr(error, "advice", ""):
            error = error.__context__
        return getattr(error, "advice", "")

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


def end_in_one_line() -> None:
    """End this process in one line at a signal until `interruptible` begins: while a command is imported."""
    for number in DEFAULTS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
    os._exit(128 + number)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted at a signal of DEFAULTS inside the block, unless the process ignores or handles them itself.

    Signals that follow within REPEATED_SECONDS are ignored, so that what the first one ends can say so.
    """
    last = -REPEATED_SECONDS

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        if time.monotonic() - last >= REPEATED_SECONDS:
            last = time.monotonic()
            raise Interrupted(number)

    is_main = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    present = {number: signal.getsignal(number) for number in DEFAULTS if is_main}
    replaced = {number: handler for number, handler in present.items() if handler in (DEFAULTS[number], _end)}
    for number in replaced:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
