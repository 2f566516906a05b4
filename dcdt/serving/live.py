"""A recommender that follows its run while it serves: a changed index, another build, or another run behind a link.

Following happens beside the answers: they are given from what is in memory until the new state stands whole. What
cannot be read is logged, and the old state goes on answering.
"""

import logging
import threading
from pathlib import Path

from dcdt.serving.layout import read_pointer
from dcdt.serving.load import load
from dcdt.serving.recommender import ServedRecommender
from dcdt.utils.errors import UserError

log = logging.getLogger("dcdt.serve")
EVERY = 0.5  # seconds between looks


class Live:
    """The current recommender of a run.

    Args:
        run: the run's folder, or a link that may be pointed to another one.
        threads: of the embedder.
        engine: `memory` or `lance`.

    Raises:
        UserError: the run cannot be served to begin with.
    """

    def __init__(self, run: Path, threads: int = 0, engine: str = "memory") -> None:
        self.run, self.threads, self.engine = run, threads, engine
        self.target = run.resolve()
        self.served: ServedRecommender = load(self.target, log.info, threads, engine)
        self.warm(self.served)
        self.trouble: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @staticmethod
    def warm(served: ServedRecommender) -> None:
        """Load what is loaded at first use, so that no question waits for it."""
        served.recommend("warm up", 1)

    def start(self) -> None:
        """Begin to follow."""
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def look(self) -> None:
        """Take in what changed since the last look."""
        try:
            target = self.run.resolve()
            state = self.served.store.refresh() if target == self.target else "other"
            if state == "other":
                if read_pointer(target) is None:  # a service that only reads builds nothing
                    raise UserError(f"{target} has no index; make it: python -m dcdt.index {target} build")
                served = load(target, log.info, self.threads, self.engine)
                self.warm(served)
                self.served, self.target = served, target
            if state != "same":
                pointer = self.served.store.pointer
                facts = {"build": pointer.build, "version": pointer.version, "videos": len(self.served)}
                log.info("index changed", extra={"facts": facts})
            self.trouble = None
        except (UserError, OSError) as error:
            said = str(error).splitlines()[0]
            if said != self.trouble:
                log.error("the index cannot be followed: %s", said)
            self.trouble = said

    def _follow(self) -> None:
        while not self._stop.wait(EVERY):
            try:
                self.look()
            except Exception:  # whatever it is, the service goes on answering
                log.exception("following failed")
