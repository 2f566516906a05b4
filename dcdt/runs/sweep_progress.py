"""One line for a whole sweep: jobs done, failed and running, and the time that is left."""

import atexit
import threading
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dcdt.utils.files import read_json

INTERVAL = 1.0  # seconds between two looks
SETTLED = ("finished", "not_applicable", "failed")


class SweepWatch:
    """Looks into the folders of a sweep's jobs once a second, so that no job has to report, wherever it runs.

    Args:
        folder: of the sweep.
        names: folders of its jobs; None where they are not known beforehand (a search).
        total: how many jobs; None where nobody knows.
        console: where the line goes; nothing is shown, and nothing looked at, unless it is a terminal.
    """

    def __init__(self, folder: Path, names: Sequence[str] | None, total: int | None, console: Console) -> None:
        self.folder, self.total = folder, total
        self.pending = set(names) if names is not None else None
        self.counts = dict.fromkeys((*SETTLED, "running"), 0)
        self._before, self._stop = _times(folder), threading.Event()
        self._thread: threading.Thread | None = None
        if console.is_terminal:
            columns = TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
            self._bar = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, refresh_per_second=1
            )
            self.look()
            self._task = self._bar.add_task(self.line(), total=total, completed=self.settled)
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._bar.start()
            self._thread.start()
            atexit.register(self.stop)  # the terminal is left as it was, whatever happens

    @property
    def settled(self) -> int:
        """Jobs that are over, however they ended."""
        return sum(self.counts[name] for name in SETTLED)

    def line(self) -> str:
        """What stands beside the bar."""
        failed, running = self.counts["failed"], self.counts["running"]
        return f"{failed} failed, {running} running" if failed else f"{running} running"

    def look(self) -> None:
        """Count the jobs by status; those that failed or were cut off before this sweep began do not count yet."""
        places = self.pending if self.pending is not None else [path.name for path in self.folder.iterdir()]
        if self.pending is None:
            self.counts = dict.fromkeys(self.counts, 0)
        self.counts["running"] = 0
        for name in list(places):
            path = self.folder / name / "status.json"
            try:
                new = path.stat().st_mtime_ns != self._before.get(name)  # by no clock, which may go backwards
            except OSError:
                continue
            status = str(read_json(path).get("status"))
            if status not in self.counts or not (new or status in SETTLED[:2]):
                continue
            self.counts[status] += 1
            if self.pending is not None and status in SETTLED:
                self.pending.discard(name)

    def stop(self) -> None:
        """Look a last time and leave the line as it is."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self._show()
            self._bar.stop()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._show()

    def _show(self) -> None:
        self.look()
        self._bar.update(self._task, completed=self.settled, description=self.line())


def _times(folder: Path) -> dict[str, int]:
    """When the status of each job that is there was written, by its folder."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/status.json")}
