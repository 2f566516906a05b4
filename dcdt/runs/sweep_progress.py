"""A progress bar over the jobs of a sweep: done, failed and running, and the time that is left."""

import atexit
import threading
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dcdt.runs.folder import RunFolder, run_folders

UPDATE_SECONDS = 1.0  # between two readings of the folders
ENDED = ("finished", "not_applicable", "failed")


class SweepProgress:
    """Reads the folders of a sweep's jobs once a second, so that no job has to report, wherever it runs.

    Args:
        folder: of the sweep.
        names: folders of its jobs; None where a search chooses them as it goes.
        total: number of jobs; None where it is unknown.
        console: for the bar; unless it is a terminal nothing is read and printed.
    """

    def __init__(self, folder: Path, names: Sequence[str] | None, total: int | None, console: Console) -> None:
        self.folder, self.total = folder, total
        self.pending = set(names) if names is not None else None
        self.counts = dict.fromkeys((*ENDED, "running"), 0)
        self._earlier, self._stop = _times(folder), threading.Event()
        self._thread: threading.Thread | None = None
        if console.is_terminal:
            columns = TextColumn("sweep"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}")
            self._bar = Progress(
                *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console, refresh_per_second=1
            )
            self.update()
            self._task = self._bar.add_task(self.line(), total=total, completed=self.n_ended)
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._bar.start()
            self._thread.start()
            atexit.register(self.stop)  # restores the terminal

    @property
    def n_ended(self) -> int:
        """The number of jobs that have ended."""
        return sum(self.counts[name] for name in ENDED)

    def line(self) -> str:
        """The text beside the bar."""
        failed, running = self.counts["failed"], self.counts["running"]
        return f"{failed} failed, {running} running" if failed else f"{running} running"

    def update(self) -> None:
        """Count the jobs by status; those that failed or were interrupted before this sweep began do not count yet."""
        names = self.pending if self.pending is not None else [path.name for path in self.folder.iterdir()]
        if self.pending is None:
            self.counts = dict.fromkeys(self.counts, 0)
        self.counts["running"] = 0
        for name in list(names):
            run = RunFolder(self.folder / name)
            try:
                is_new = run.files.status.stat().st_mtime_ns != self._earlier.get(name)  # clocks may go backwards
            except OSError:
                continue
            status = str(run.read_status().get("status"))
            if status not in self.counts or not (is_new or status in ENDED[:2]):
                continue
            self.counts[status] += 1
            if self.pending is not None and status in ENDED:
                self.pending.discard(name)

    def stop(self) -> None:
        """Update a last time and leave the bar as it is."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            self._show()
            self._bar.stop()

    def _run(self) -> None:
        while not self._stop.wait(UPDATE_SECONDS):
            self._show()

    def _show(self) -> None:
        self.update()
        self._bar.update(self._task, completed=self.n_ended, description=self.line())


def _times(folder: Path) -> dict[str, int]:
    """When the status of each existing job was written, by its folder."""
    return {run.path.name: run.files.status.stat().st_mtime_ns for run in run_folders(folder)}
