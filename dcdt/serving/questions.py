"""Questions embedded with 8-bit weights: the graph is made when a run is built, and measured on its validation."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcdt.data.types import lent_texts
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers.batching import rounded
from dcdt.embeddings.providers.eight_bit import WAYS, quantise
from dcdt.embeddings.providers.onnx import QUESTIONS, OnnxEmbedder
from dcdt.evaluation.ranking import tie_order, top_k
from dcdt.evaluation.statistics import bootstrap_interval
from dcdt.models.recommender import rank_side
from dcdt.serving.validation import Validation
from dcdt.training.restore import Restored
from dcdt.utils.errors import UserError

LIMIT = 0.002  # of nDCG@10: what may be lost for certain
TIMED, ROUNDS = 20, 5
FASTER = 1.25  # what the less exact way must gain over the more exact one to be taken


def check_eight_bit(restored: Restored, reads_vectors: bool) -> None:
    """Raise UserError where no question is embedded, or not by a model that runs here."""
    settings = restored.settings
    if not reads_vectors:
        raise UserError(f"model={settings.model.name} embeds no question. Leave --eight-bit out.")
    if settings.embedder.name != "local":
        raise UserError(f"--eight-bit needs embedder=local; this run's is {settings.embedder.name}. Leave it out.")


def eight_bit_questions(validation: Validation, folder: Path) -> tuple[dict[str, Any], Tensor]:
    """Write the 8-bit graph beside the exported model in `folder`, and measure what it changes.

    Returns:
        `queries`, `ndcg@10` with 8 bits, `float32`, the ends `low` and `high` of their difference's interval (None for
        one query), `same` (of the first ten videos, the share found by both), the kind of `weights` and how many
        `times_as_fast` as float32 they are here; and the vectors (n, D) of the validation questions.

    Raises:
        UserError: the loss is above LIMIT and its interval below 0.
    """
    way, embedder, faster = _chosen(validation, folder)
    vectors = torch.from_numpy(rounded(embedder.embed(validation.texts)))
    facts = compared(validation, vectors)
    found, low, high = facts["ndcg@10"] - facts["float32"], facts["low"], facts["high"]
    if found < -LIMIT and (high is None or high < 0):
        interval = f" [{low:+.4f}, {high:+.4f}]" if high is not None else ""
        raise UserError(
            f"8-bit questions change nDCG@10 on {facts['queries']} validation questions by {found:+.4f}{interval}; "
            f"the limit is a certain loss of {LIMIT}. Leave --eight-bit out."
        )
    return facts | {"weights": way, "times_as_fast": faster}, vectors


def _chosen(validation: Validation, folder: Path) -> tuple[str, OnnxEmbedder, float]:
    """Leave the better 8-bit graph in the folder: the more exact one, unless the other is much faster here."""
    config = validation.restored.settings.embedder
    assert isinstance(config, LocalEmbedderConfig)
    titles = lent_texts(validation.restored.collection.videos, "title")
    made = {"float32": OnnxEmbedder(folder, config)}
    for way in WAYS:
        quantise(folder, folder / f"{way}.onnx", made["float32"], titles, way)
        made[way] = OnnxEmbedder(folder, config, graph=f"{way}.onnx")
    seconds = one_by_one(made, validation.texts[:TIMED])
    way, other = ("columns", "blocks") if seconds["blocks"] > FASTER * seconds["columns"] else ("blocks", "columns")
    (folder / f"{way}.onnx").replace(folder / QUESTIONS)
    (folder / f"{other}.onnx").unlink()
    return way, made[way], seconds["float32"] / seconds[way]


def compared(validation: Validation, vectors: Tensor) -> dict[str, Any]:
    """nDCG@10 of the validation questions with these vectors (n, D) and with the run's own, and how alike they are."""
    side, collection = validation.side, validation.restored.collection
    ties, depth = tie_order(collection.videos.ids), min(10, int(side.candidates.sum()))
    gains, tops = [], []
    for asked in (None, vectors):
        values, rows = [], []
        for at, scores in enumerate(validation.scores(asked)):
            positions = torch.tensor([at])
            ranked, metrics, _ = rank_side(side, positions, scores[None], ties, collection.positive_grade, (depth,))
            values.append(float(metrics[f"ndcg@{depth}"]))
            rows.append(set(top_k(ranked, depth, ties, side.candidates)[1][0].tolist()))
        gains.append(np.array(values))
        tops.append(rows)
    low, high = bootstrap_interval(gains[1] - gains[0])
    return {
        "queries": len(vectors),
        "ndcg@10": float(gains[1].mean()),
        "float32": float(gains[0].mean()),
        "low": low if np.isfinite(low) else None,
        "high": high if np.isfinite(high) else None,
        "same": statistics.mean(len(one & other) / depth for one, other in zip(*tops, strict=True)),
    }


def one_by_one(embedders: dict[str, OnnxEmbedder], texts: Sequence[str]) -> dict[str, float]:
    """Seconds in which each embeds the texts, one after the other, in turns: the median of the rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in embedders}
    for _ in range(ROUNDS + 1):
        for name, embedder in embedders.items():
            started = time.perf_counter()
            for text in texts:
                embedder.embed([text])
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first round warms all
