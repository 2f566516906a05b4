"""A recommender that follows its run while it serves: a changed index, another build, or another run behind a link.

Answers are given from the state in memory until the new one is complete. What cannot be read is logged, and the old
state goes on answering.
"""

import logging
import threading
from pathlib import Path

from dcdt.serving.layout import read_pointer
from dcdt.serving.load import load
from dcdt.utils.errors import UserError
from dcdt.utils.shell import shell_command

log = logging.getLogger("dcdt.serve")
POLL_SECONDS = 0.5


class ReloadingRecommender:
    """The current recommender of a run.

    Args:
        run: the run's folder, or a link that may be pointed to another one.
        threads: of the embedder.
        engine, link: `memory` or `lance`; template of links to a moment.

    Attributes:
        served: the recommender that answers.
        error: why the run cannot be followed at the moment; None while it can.

    Raises:
        UserError: the run cannot be served to begin with.
    """

    def __init__(self, run: Path, threads: int = 0, engine: str = "memory", link: str = "") -> None:
        self.run, self.threads, self.engine, self.link = run, threads, engine, link
        self.error: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._load(run.resolve())

    def start(self) -> None:
        """Begin to follow in a thread."""
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def refresh(self) -> None:
        """Take over what changed since the last time."""
        try:
            target = self.run.resolve()
            state = self.served.catalogue.refresh() if target == self.target else "other"
            if state == "other":
                if read_pointer(target) is None:  # a service that only reads builds nothing
                    raise UserError(f"{target} has no index; make it: {shell_command('index', target, 'build')}")
                self._load(target)
            if state != "same":
                self.served.describe()
                pointer = self.served.catalogue.pointer
                fields = {"build": pointer.build, "version": pointer.version, "videos": len(self.served)}
                log.info("index changed", extra={"fields": fields})
            self.error = None
        except (UserError, OSError) as error:
            reason = str(error).splitlines()[0]
            if reason != self.error:
                log.error("the index cannot be followed: %s", reason)
            self.error = reason

    def _load(self, target: Path) -> None:
        """Load a run and what is loaded at first use, so that no question waits for it."""
        served = load(target, self.engine, say=log.info, threads=self.threads)
        served.link = self.link
        served.recommend("warm up", 1)
        served.describe()
        self.served, self.target = served, target

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self.refresh()
            except Exception:  # whatever it is, the service goes on answering
                log.exception("following failed")
