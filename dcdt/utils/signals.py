"""Ctrl-C and SIGTERM as an exception that ends a command with the exit code of its signal."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(SystemExit):
    """Ctrl-C (exit code 130) or SIGTERM (143); `advice` says what is kept and how to go on."""

    advice = ""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise Interrupted at Ctrl-C and SIGTERM inside the block, unless the process ignores or handles them itself."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    defaults = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    is_main = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    replaced = {
        number: handler for number, handler in defaults.items() if is_main and signal.getsignal(number) == handler
    }
    for number in replaced:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
