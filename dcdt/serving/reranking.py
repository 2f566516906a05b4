"""The second stage of `two_stage` and `two_stage_joint` without torch: the recall's best videos, ranked by evidence.

Everything the head reads of a video lies in the catalogue's table (`whitened_0`, `mapped_0`), so a video that is added
later is ranked like any other; the judged queries that it remembers are those of the fit, and know no new video.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from dcdt.serving.index import best, vector_column
from dcdt.serving.memory import View
from dcdt.serving.places import Places
from dcdt.serving.scoring import CANDIDATES, Asked, Question, Rows, fuse, tie_order, z_scores
from dcdt.serving.towers import Floats, Scores, session, softmax, unit
from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

HEAD, WHITENED, MAPPED = "head.safetensors", "whitened_0", "mapped_0"
GRAPHS = {"query": "vectors", "video": "fields", "pair": "joint"}  # of the joint network, and their inputs
BELOW = 1e-3  # as in training: how far the best video beyond the depth stays beneath the worst within it
SAMPLE = 2048  # videos by which the spread of a fusion over a large catalogue is told


@dataclass(frozen=True)
class Ranked:
    """An answer: rows and scores of the best videos, and for each what the head added up to its score."""

    rows: Rows
    scores: Scores
    evidence: list[dict[str, float]]


class RankHead:
    """Re-ranks the first `depth` videos of a recall by weighted evidence.

    Args:
        spec: what model.json says of it.
        folder: of the build.
        fusion: of the recall, where it is a hybrid.

    Raises:
        UserError: a file of it is missing or corrupt.
    """

    def __init__(self, spec: dict[str, Any], folder: Path, fusion: dict[str, Any] | None) -> None:
        self.spec, self.fusion = spec, fusion
        self.fields: list[str] = spec["fields"]
        self.names: list[str] = spec["names"]
        self.weights = np.array(spec["weights"])  # (E,)
        arrays, ids = read_head(folder / HEAD)
        self.whitening, self.asked = arrays["whitening"], arrays["asked"]  # (D, D), (G, D)
        self.owner, self.answers = arrays["owner"], arrays["answers"]  # (P,) group, and place in ids
        self.places = Places(ids)
        self.graphs: dict[str, Any] = {}
        if spec["joint"]:
            self.graphs = {name: session(folder / f"head_{name}.onnx") for name in GRAPHS}

    def columns(self, vectors: dict[str, Floats]) -> dict[str, pa.Array]:
        """What the table holds of new videos, of the frozen vectors (n, D) of each field."""
        fields = np.stack([vectors[name] for name in self.fields])  # (F, n, D)
        whitened = unit(fields @ self.whitening).transpose(1, 0, 2)  # (n, F, D)
        found = {WHITENED: vector_column(whitened.reshape(len(whitened), -1))}
        if self.graphs:
            found[MAPPED] = vector_column(self.graphs["video"].run(None, {"fields": fields})[0])
        return found

    def top(self, question: Question, asked: Sequence[Asked], view: View, k: int, allowed: NDArray[np.bool_]) -> Ranked:
        """The best k among the allowed rows (N,).

        A filter comes before the head: the first `depth` of the videos that meet it are re-ranked. A video's evidence
        does not depend on it.
        """
        if self.fusion is not None and self.fusion["kind"] == "rrf":  # ranks are known of a whole catalogue alone
            view = replace(view, anns={})
        parts = asked[:2] if self.fusion is not None else asked[:1]
        rows, z = self._recall(parts, view, max(k, self.spec["depth"]), allowed)  # (n,), the best first
        depth = min(self.spec["depth"], len(rows))
        if not depth:
            return Ranked(rows, z, [])
        top, rest = rows[:depth], z[depth:]
        scores = [z[:depth], *(z_scores(part, top) for part in self._beside(asked))]
        added = self._added(question, view, top, scores)  # (K, E)
        found, lowered = added.sum(1), rest
        if len(rest) and rest[0] > found.min():
            lowered = rest - (rest[0] - found.min()) - BELOW
        every = np.r_[found, lowered]
        at = best(every, tie_order(view, rows), k)
        reasons = [
            dict(zip(self._said, map(float, added[place]), strict=True))
            if place < depth
            else {"recall": float(z[place]), f"beyond the first {depth}": float(every[place] - z[place])}
            for place in at.tolist()
        ]
        return Ranked(rows[at], every[at], reasons)

    @property
    def _said(self) -> list[str]:
        return [*self.names, *(["network"] if self.graphs else [])]

    def _beside(self, asked: Sequence[Asked]) -> list[Asked]:
        """The parts whose own z-scores are evidence: the first of a hybrid, and a lexical one."""
        return [*(asked[:1] if self.fusion is not None else []), *(asked[-1:] if "lexical" in self.names else [])]

    def _added(self, question: Question, view: View, top: Rows, scores: list[Scores]) -> NDArray[np.float64]:
        """What each kind of evidence adds to the scores of K recalled rows, (K, E); the network's part is last."""
        assert question.vector is not None
        asked = unit(question.vector @ self.whitening)  # (D,)
        one_line = view.vectors_at(top, WHITENED).reshape(len(top), len(self.fields), -1)  # (K, F, D)
        columns = [*scores, *(one_line @ asked).T, *self._remembered(unit(question.vector), view, top)]
        added: NDArray[np.float64] = np.stack(columns, axis=1).astype(np.float64) * self.weights
        if not self.graphs:
            return added
        query = self.graphs["query"].run(None, {"vectors": question.vector[None]})[0]  # (1, R)
        mapped = view.vectors_at(top, MAPPED)  # (K, F R)
        joint = np.concatenate([np.repeat(query, len(top), axis=0), mapped], axis=1)
        network = self.graphs["pair"].run(None, {"joint": joint})[0]  # (K,)
        return np.concatenate([added, network[:, None]], axis=1)

    def _remembered(self, vector: Floats, view: View, top: Rows) -> list[Scores]:
        """For each temperature, the share (K,) of similar judged queries that each recalled video answered."""
        found = []
        place = np.full(len(view.alive), -1)
        place[top] = np.arange(len(top))
        rows = self.places.rows(view)[self.answers]  # (P,), -1: gone
        here = np.flatnonzero(rows >= 0)
        here = here[place[rows[here]] >= 0]
        for temperature in self.spec["temperatures"]:
            share = np.zeros(len(top))
            if len(self.asked):
                weights = softmax((self.asked @ vector).astype(np.float64) / temperature)  # (G,)
                np.add.at(share, place[rows[here]], weights[self.owner[here]])
            found.append(share)
        return found

    def _recall(self, parts: Sequence[Asked], view: View, wide: int, allowed: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """Allowed rows and the recall's z-scores over the whole catalogue, the best first.

        All of them over a catalogue that is scored whole, else the candidates of an approximate index.
        """
        if view.anns:
            rows = np.unique(np.concatenate([part.top(max(CANDIDATES, 4 * wide), allowed)[0] for part in parts]))
            scores = parts[0].at(rows) if self.fusion is None else fuse(list(parts), self.fusion, rows, view)
            mean, deviation = (
                parts[0].spread() if self.fusion is None else _fused_spread(parts, self.fusion, rows, view)
            )
        else:
            rows = np.flatnonzero(view.alive)
            scores = parts[0].at(rows) if self.fusion is None else fuse(list(parts), self.fusion, rows, view)
            mean, deviation = float(scores.mean()), float(scores.std()) if scores.max() > scores.min() else 0.0
            keep = allowed[rows]
            rows, scores = rows[keep], scores[keep]
        z = (scores - mean) / deviation if deviation > 0 else np.zeros(len(rows))
        at = best(z, tie_order(view, rows), wide)
        return rows[at], z[at]


def _fused_spread(parts: Sequence[Asked], fusion: dict[str, Any], rows: Rows, view: View) -> tuple[float, float]:
    """Mean and deviation over a large catalogue of a weighted sum of z-scores.

    The deviation needs their correlation: exact for the candidates, where the large scores are, and measured on a
    sample of the others.
    """
    n, weight = len(view), float(fusion["weight"])
    sample = np.random.default_rng(0).integers(0, len(view.alive), SAMPLE)
    sample = np.setdiff1d(sample[view.alive[sample]], rows)
    products = [z_scores(parts[0], part) * z_scores(parts[1], part) for part in (rows, sample)]
    rest = float(products[1].mean()) if len(sample) else 0.0
    alike = min(1.0, max(-1.0, (float(products[0].sum()) + (n - len(rows)) * rest) / n))
    flat = [float(part.spread()[1] > 0) for part in parts]  # a part that tells nothing has z-scores of 0
    square = (weight * flat[0]) ** 2 + ((1 - weight) * flat[1]) ** 2 + 2 * weight * (1 - weight) * alike
    return 0.0, max(square, 0.0) ** 0.5


def read_head(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Arrays of the head, and the ids of the videos that answered.

    Raises:
        UserError: the file is missing or corrupt.
    """
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in ("whitening", "asked", "owner", "answers")}
            ids = list(json.loads(file.metadata()["ids"]))
        _check_head_arrays(arrays, ids)
        return arrays, ids
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is missing or corrupt ({one_line(error, 120)}).") from error


def _check_head_arrays(arrays: dict[str, NDArray[Any]], ids: list[Any]) -> None:
    whitening, asked, owner, answers = arrays.values()
    if whitening.ndim != 2 or asked.ndim != 2 or not len(whitening) == whitening.shape[1] == asked.shape[1]:
        raise ValueError(f"whitening {whitening.shape} and questions {asked.shape} do not fit")
    if not np.isfinite(whitening).all() or not np.isfinite(asked).all() or not all(isinstance(i, str) for i in ids):
        raise ValueError("values that are no numbers, or ids that are no texts")
    for name, places, n in (("owner", owner, len(asked)), ("answers", answers, len(ids))):
        if (
            places.shape != owner.shape
            or places.dtype != np.int64
            or (len(places) and not 0 <= places.min() <= places.max() < n)
        ):
            raise ValueError(f"{name} points beyond what is there")
