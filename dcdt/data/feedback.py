"""What learners clicked (`dcdt.serve --feedback`), and the weighted judgments that are made of it."""

import hashlib
import hmac
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, TypeAdapter, ValidationError

from dcdt.data.table_reader import read_json_lines, read_rows
from dcdt.data.types import CLICKS, MAX_WEIGHT, Collection, Rows, normalise_text
from dcdt.utils.errors import UserError
from dcdt.utils.files import atomic_write
from dcdt.utils.text import parse_number, pluralize

EVENT_FILES, SALT, SALT_BYTES = "events-*.jsonl", "salt", 32
MIN_PROPENSITY, EM_STEPS = 0.02, 1000  # so that no click weighs more than 50 of the first rank
Floats = NDArray[np.float64]


class Shown(BaseModel):
    """An answer: videos by rank; models by name, build and version, and of two interleaved ones that of each video."""

    answer: str
    time: float
    question: str  # a `keyed_hash` where `hashed`
    hashed: bool
    user: str | None  # a `keyed_hash`
    models: list[tuple[str, str, int]]
    videos: list[str]
    teams: list[int] = []


class Mark(BaseModel):
    """A click on a video of an answer, or a thumb."""

    answer: str
    time: float
    video: str
    event: Literal["click", "up", "down"]


class Feedback(NamedTuple):
    """Answers by id, values of their videos (1 clicked or thumb up, -1 thumb down), and counts of what was dropped."""

    answers: dict[str, Shown]
    values: dict[str, dict[str, int]]
    dropped: Counter[str]


def keyed_hash(salt: bytes, text: str) -> str:
    """Hash a text with the salt of an installation (HMAC-SHA256)."""
    return hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()[:32]


def read_salt(folder: Path) -> bytes:
    """Read the salt of a folder of feedback, or raise UserError where it is missing or corrupt."""
    path = folder / SALT
    salt = path.read_bytes() if path.is_file() else b""
    if len(salt) != SALT_BYTES:
        raise UserError(f"{path} is not the salt of this feedback ({SALT_BYTES} bytes). Restore it from a copy.")
    return salt


def read_feedback(folder: Path) -> Feedback:
    """Read all events of a folder, without lines that a kill or a full disk cut.

    Raises:
        UserError: there are no answers.
    """
    feedback, marks = Feedback({}, defaultdict(dict), Counter()), list[Mark]()
    adapter: TypeAdapter[Shown | Mark] = TypeAdapter(Shown | Mark)
    for path in sorted(folder.glob(EVENT_FILES)):
        for line in path.open("rb"):
            try:
                event = adapter.validate_json(line)
            except ValidationError:
                feedback.dropped["unreadable lines"] += 1
                continue
            if isinstance(event, Mark):
                marks.append(event)
            else:
                feedback.answers[event.answer] = event
    if not feedback.answers:
        raise UserError(f"{folder} holds no answers ({EVENT_FILES}). Record some: python -m dcdt.serve RUN --feedback")
    for mark in sorted(marks, key=lambda mark: (mark.event != "click", mark.time)):  # the last thumb counts
        answer = feedback.answers.get(mark.answer)
        if answer is None or mark.video not in answer.videos:
            feedback.dropped["clicks on what was not shown"] += 1
        elif mark.event == "click" and mark.video in feedback.values[mark.answer]:
            feedback.dropped["repeated clicks"] += 1
        else:
            feedback.values[mark.answer][mark.video] = -1 if mark.event == "down" else 1
    return feedback


def read_propensities(path: Path) -> Floats:
    """Read a table of how likely ranks are looked at: `rank`, from 1 without a gap, and `propensity`, in (0, 1].

    Raises:
        UserError: a row is invalid, with its location.
    """
    values: list[float] = []
    for location, row in read_rows(path):
        rank, value = (parse_number(str(row.get(name, ""))) for name in ("rank", "propensity"))
        if rank != len(values) + 1 or not 0 < value <= 1:
            raise UserError(f"{location}: give rank {len(values) + 1} and its propensity, above 0 and at most 1.")
        values.append(value)
    return np.array(values or [1.0])


def estimate_propensities(pair: Rows, rank: Rows, clicked: NDArray[np.bool_]) -> Floats:
    """Estimate how likely each rank is looked at, relative to the first, by expectation-maximisation: (K,).

    The position-based model (Wang et al. 2018): a video is clicked if its rank is looked at and it is relevant to the
    question, independently. Only a pair of question and video that was shown at several ranks tells the two apart;
    a rank without any has 1 / rank. The number of the pair, the rank from 0 and the click are (S,) each.

    Raises:
        UserError: no clicked video was shown at several ranks.
    """
    looked = 1 / np.arange(1.0, rank.max(initial=0) + 2)  # (K,)
    keys, inverse = np.unique(pair * len(looked) + rank, return_inverse=True)
    n_shown, n_clicked = np.bincount(inverse), np.bincount(inverse, clicked)
    pair, rank = np.divmod(keys, len(looked))
    moved = np.bincount(pair)[pair] > 1
    pair, rank, n_shown, n_clicked = (values[moved] for values in (pair, rank, n_shown, n_clicked))
    if not n_clicked.any():
        raise UserError(
            "no clicked video was shown at several ranks for a question, so the bias of ranks cannot be estimated.\n"
            "Give a table: --propensities FILE (rank,propensity); or serve two models with --interleave."
        )
    relevance, seen = np.full(pair.max() + 1, 0.5), np.unique(rank)
    for _ in range(EM_STEPS):
        missed = (n_shown - n_clicked) / (1 - looked[rank] * relevance[pair])
        is_looked = n_clicked + missed * looked[rank] * (1 - relevance[pair])
        is_relevant = n_clicked + missed * (1 - looked[rank]) * relevance[pair]
        looked[seen] = (np.bincount(rank, is_looked)[seen] / np.bincount(rank, n_shown)[seen]).clip(1e-6, 1 - 1e-6)
        relevance = (np.bincount(pair, is_relevant) / np.bincount(pair, n_shown).clip(1)).clip(1e-6, 1 - 1e-6)
    return np.asarray(looked / looked[0])


def click_weights(
    feedback: Feedback, collection: Collection, salt: bytes, propensities: Floats | None = None
) -> tuple[dict[str, dict[str, float]], Floats]:
    """Weigh clicked videos by inverse propensity (Joachims, Swaminathan and Schnabel 2017).

    A click at rank k counts 1 / propensity of k, a thumb down as much against the video; the sum is divided by how
    often the video was shown for the question, and all weights together so that their mean is 1. The propensities (K,)
    are estimated unless given, the last one for all ranks after it. A hashed question is told by those of the
    collection. What is not used is added to `feedback.dropped`.

    Returns:
        Weights by the text of a question and the id of a video, and the propensities.
    """
    dropped, texts, rows = feedback.dropped, dict[str, str](), list[tuple[tuple[str, str], int, int]]()
    by_hash = {keyed_hash(salt, normalise_text(text)): text for text in collection.queries.texts}
    for name, answer in feedback.answers.items():
        text = by_hash.get(answer.question, "") if answer.hashed else answer.question.strip()
        key, values = normalise_text(text), feedback.values.get(name, {})
        texts.setdefault(key, text)
        known = [(rank, video) for rank, video in enumerate(answer.videos) if video in collection.videos.row_of]
        dropped["answers to questions without a known text"] += not text
        dropped["videos shown that the collection lacks"] += len(answer.videos) - len(known)
        rows += [((key, video), rank, values.get(video, 0)) for rank, video in known if text]
    position = {pair: number for number, pair in enumerate(dict.fromkeys(pair for pair, _, _ in rows))}
    numbers = np.array([[position[pair], rank, value] for pair, rank, value in rows], dtype=np.int64).reshape(-1, 3)
    pair, rank, value = numbers.T  # (S,) each
    if propensities is None:
        propensities = estimate_propensities(pair, rank, value > 0)
    looked = propensities[rank.clip(max=len(propensities) - 1)].clip(MIN_PROPENSITY, 1)
    sums = np.bincount(pair, value / looked) / np.bincount(pair)
    dropped["videos with more thumbs down than clicks"] += int((sums < 0).sum())
    if not (sums > 0).any():
        raise UserError("no click is left, so there is nothing to add.")
    sums = (sums / sums[sums > 0].mean()).clip(max=MAX_WEIGHT)
    weights: dict[str, dict[str, float]] = defaultdict(dict)
    for (key, video), weight in zip(position, sums.tolist(), strict=True):
        if weight > 0:
            weights[texts[key]][video] = float(f"{weight:.4g}")
    return weights, propensities


def add_clicks(folder: Path, collection: Collection, table: Path | None) -> list[str]:
    """Add the clicks of a folder of feedback to a collection, in place of those added before, as weak queries.

    The propensities are those of a table, or estimated. What was added and dropped is returned, a sentence each.
    """
    if not collection.has_questions:
        raise UserError(f"{collection.path} has no queries.jsonl; clicks are added to judged questions.")
    feedback = read_feedback(folder)
    salt = read_salt(folder) if any(answer.hashed for answer in feedback.answers.values()) else b""
    weights, propensities = click_weights(feedback, collection, salt, read_propensities(table) if table else None)
    queries, qrels = collection.path / "queries.jsonl", collection.path / "qrels" / f"{CLICKS}.tsv"
    records = [record for _, record in read_json_lines(queries)]
    records = [record for record in records if (record.get("metadata") or {}).get("weak") != CLICKS]
    lines = ["query-id\tcorpus-id\tscore"]
    for text, weights_of in sorted(weights.items()):
        name = f"weak-{CLICKS}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        records.append({"_id": name, "text": text, "metadata": {"weak": CLICKS, "weights": weights_of}})
        lines += [f"{name}\t{video}\t{collection.positive_grade:.15g}" for video in weights_of]
    qrels.unlink(missing_ok=True)  # first: after a kill there are queries without judgments, which is allowed
    for path, content in ((queries, [json.dumps(record, ensure_ascii=False) for record in records]), (qrels, lines)):
        with atomic_write(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in content), encoding="utf-8")
    source = "of the table" if table else "estimated"
    return [
        f"{pluralize(len(feedback.answers), 'answer was', 'answers were')} read; "
        f"{pluralize(len(lines) - 1, 'judgment', 'judgments')} of {pluralize(len(weights), 'question', 'questions')} "
        f"were added. Propensity by rank, {source}: {' '.join(f'{value:.2f}' for value in propensities[:20])}",
        *(f"dropped: {count:,} {what}." for what, count in sorted(feedback.dropped.items()) if count),
    ]
