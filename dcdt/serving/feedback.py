"""Record answers and clicks (`dcdt.serve --feedback FOLDER`), and interleave two models."""

import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import random
from typing import Any, Literal

from dcdt.data.feedback import SALT, SALT_BYTES, Mark, Shown, keyed_hash, read_salt
from dcdt.data.types import normalise_text
from dcdt.serving.recommender import Recommendation

MAX_FILE_BYTES = 1 << 26  # after which a new file begins


class FeedbackLog:
    """A folder of events, lines of JSON in files that are only appended to; no address of a learner is known here.

    Every process, and every 64 MB, begins a file of its own, so that a line that a kill cut stays the last of its file.
    Ids of users are hashed with the salt of the folder; so are questions, of which with `hash_questions` no word stays.
    """

    def __init__(self, folder: Path, hash_questions: bool = False) -> None:
        self.folder, self.kind = folder, "hashes" if hash_questions else "questions"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / SALT).exists():
            with open(os.open(folder / SALT, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(SALT_BYTES))
        self.salt = read_salt(folder)
        self._lock, self._file, self._size = threading.Lock(), -1, 0
        self._open()

    def try_answer(self, question: str, user: str | None, **shown: Any) -> str | None:  # noqa: ANN401
        """Record an answer: its models, videos and teams (`dcdt.data.feedback.Shown`).

        Returns:
            Its id, which clicks name and nobody can make up; None where the disk takes no more, which is logged.
        """
        nonce, text, hashed = secrets.token_hex(16), " ".join(question.split()), self.kind == "hashes"
        text = keyed_hash(self.salt, normalise_text(text)) if hashed else text
        asker = None if user is None else keyed_hash(self.salt, user)
        answer = nonce + keyed_hash(self.salt, nonce)
        try:
            self._append(Shown(answer=answer, time=time.time(), question=text, hashed=hashed, user=asker, **shown))
        except OSError:
            logging.getLogger("dcdt.serve").exception("feedback cannot be recorded")
            return None
        return answer

    def add_mark(self, answer: str, video: str, event: Literal["click", "up", "down"]) -> bool:
        """Record a click or a thumb; False, and nothing is recorded, for an answer that was never given."""
        if not secrets.compare_digest(answer[32:], keyed_hash(self.salt, answer[:32])):
            return False
        self._append(Mark(answer=answer, time=time.time(), video=video, event=event))
        return True

    def _append(self, event: Shown | Mark) -> None:
        line = event.model_dump_json().encode() + b"\n"
        with self._lock:
            if self._size and self._size + len(line) > MAX_FILE_BYTES:
                self._open()
            try:
                if os.write(self._file, line) < len(line):
                    raise OSError(f"{self.folder} takes no more")
            except OSError:  # a full disk: no half of a line stays
                os.ftruncate(self._file, self._size)
                raise
            self._size += len(line)

    def _open(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        path = self.folder / f"events-{time.time_ns()}-{os.getpid()}.jsonl"
        self._file, self._size = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600), 0


def team_draft(
    first: Sequence[Recommendation], second: Sequence[Recommendation], k: int
) -> tuple[list[Recommendation], list[int]]:
    """Interleave two rankings by team draft (Radlinski, Kurup and Joachims 2008): k videos, and the model of each.

    The model (0 or 1) with fewer picks, or a coin, picks its best video that is not yet there.
    """
    picks, teams, picked = list[Recommendation](), list[int](), set[str]()
    while len(picks) < k:
        best = [next((video for video in one if video.id not in picked), None) for one in (first, second)]
        coins = [random() for _ in best]  # nosec B311 # no secret
        able = [(teams.count(team), coins[team], team, video) for team, video in enumerate(best) if video is not None]
        if not able:
            break
        _, _, team, video = min(able)
        picks.append(replace(video, rank=len(picks) + 1))
        teams.append(team)
        picked.add(video.id)
    return picks, teams
