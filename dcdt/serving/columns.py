"""What the parts of a model add to the table of videos, for videos that come after the export."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from dcdt.data.tokens import tokenizer
from dcdt.data.types import join_fields
from dcdt.serving.index import vector_column
from dcdt.serving.lexical import EMPTY
from dcdt.serving.memory import View
from dcdt.serving.towers import Floats, Towers

Columns = dict[str, pa.Array]
Texts = dict[str, list[str]]
Near = Callable[[Floats, int, str], View]  # a view that holds the nearest videos of a vector, in a column
Made = Callable[[Towers, Near, int, dict[str, Any], Texts, dict[str, Floats]], Columns]


def _tower_columns(
    towers: Towers, near: Near, at: int, spec: dict[str, Any], texts: Texts, vectors: dict[str, Floats]
) -> Columns:
    own, _ = towers.videos(np.stack([vectors[name] for name in spec["fields"]]))  # (n, W)
    if not spec["lean"]:
        return {f"vector_{at}": vector_column(own)}
    name = f"raw_{at}"
    leaning = [lean(vector, near(vector, int(spec["neighbours"]), name), name, spec) for vector in own]
    return {f"vector_{at}": vector_column(np.stack(leaning)), name: vector_column(own)}


def lean(vector: Floats, view: View, column: str, spec: dict[str, Any]) -> Floats:
    """A new video's unit vector (W,) leaning on its nearest ones in the catalogue, which do not lean back.

    The videos that are there stay as they are until the next build.
    """
    alike = np.where(view.alive, view.scores(vector, column), -np.inf)
    k = min(int(spec["neighbours"]), len(view))
    rows = np.argpartition(-alike, k - 1)[:k]
    mean = view.vectors_at(rows, column).mean(0)
    mean /= max(float(np.linalg.norm(mean)), 1e-12)
    total = vector + spec["lean"] * mean
    return np.asarray(total / max(float(np.linalg.norm(total)), 1e-12), dtype=np.float32)


def _history_columns(
    towers: Towers, near: Near, at: int, spec: dict[str, Any], texts: Texts, vectors: dict[str, Floats]
) -> Columns:
    return {f"vector_{at}": vector_column(towers.videos(np.stack([vectors[name] for name in spec["fields"]]))[0])}


def _joint_columns(
    towers: Towers, near: Near, at: int, spec: dict[str, Any], texts: Texts, vectors: dict[str, Floats]
) -> Columns:
    shown, _ = towers.videos(np.stack([vectors[name] for name in spec["fields"]]))
    return {f"joint_{at}": vector_column(shown)}


def _lexical_columns(
    towers: Towers, near: Near, at: int, spec: dict[str, Any], texts: Texts, vectors: dict[str, Floats]
) -> Columns:
    config = spec["config"]
    split = tokenizer(config["stem"], config["stop_words"])
    joined = join_fields([texts[name] for name in config["fields"]])
    return {f"words_{at}": pa.array([split(text) or [EMPTY] for text in joined], pa.list_(pa.string()))}


def _popularity_columns(
    towers: Towers, near: Near, at: int, spec: dict[str, Any], texts: Texts, vectors: dict[str, Floats]
) -> Columns:
    n = len(next(iter(texts.values())))
    return {f"popularity_{at}": pa.array(np.full(n, float(spec["unseen"])))}


ADDED: dict[str, Made] = {
    "towers": _tower_columns,
    "history": _history_columns,
    "joint": _joint_columns,
    "lexical": _lexical_columns,
    "popularity": _popularity_columns,
}
