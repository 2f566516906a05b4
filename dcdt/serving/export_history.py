"""What is written of models that read what a learner watched, for `dcdt.serving.histories`."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dcdt.data.histories import Histories
from dcdt.data.types import Collection
from dcdt.models.history import HistoryTowers
from dcdt.models.recommender import QueryBatch
from dcdt.serving.index import vector_column
from dcdt.serving.learners import LEARNERS, save_learners
from dcdt.serving.parts import PARITY, Graph, PartExport, linear_query
from dcdt.training.checkpoint import Restored


class _Question(nn.Module):
    """The question alone."""

    model: Any

    def __init__(self, model: HistoryTowers) -> None:
        super().__init__()
        self.model = model

    def forward(self, vectors: Tensor) -> tuple[Tensor]:
        return (self.model.encode_queries(vectors),)


class _NewVideo(nn.Module):
    """A video nobody watched: what its texts say (D), the same for the learner's tower (d), and 0."""

    model: Any

    def __init__(self, model: HistoryTowers) -> None:
        super().__init__()
        self.model = model

    def forward(self, fields: Tensor) -> tuple[Tensor, Tensor]:
        shown = self.model.encode_videos(fields)  # (B, D)
        taste = normalize(shown @ self.model.basis, dim=-1)  # (B, d)
        vector = torch.cat([shown, taste, torch.zeros_like(taste[:, :1])], dim=-1)
        return vector, torch.stack(list(self.model.field_contributions(fields).values()))


def history_towers(model: HistoryTowers, restored: Restored, at: int) -> PartExport:
    """dcdt_history: one vector a video, whose product with that of question and learner is the score."""
    tables, tower = model.tables, model.tower
    shown = model.video_vectors()
    taste = tower.videos(normalize(shown @ model.basis, dim=-1))  # (N, d)
    vectors = torch.cat([shown, taste, tower.popularity.unsqueeze(1)], dim=-1)
    config = model.config
    scalars = {name: float(getattr(tower, name)) for name in ("prior", "match", "decay")}
    learner = {"history": config.history, "length": config.length, "weight": float(model.weight), **scalars}
    spec = {
        "kind": "history",
        "fields": tables.fields,
        "width": vectors.shape[1],
        "asked": shown.shape[1],
        "adds": list(model.field_contributions(tables.videos[:, :1])),
        "lean": 0.0,
        "reads_history": True,
        "learner": learner,
    }
    graphs: dict[str, Graph] = {
        "query": (_Question(model), tables.queries[:PARITY], "vectors", ["encoded"]),
        "video": (_NewVideo(model), tables.videos[:, :PARITY], "fields", ["encoded", "adds"]),
    }
    asked = model.encode_queries(tables.queries[:400])
    rest = torch.zeros(len(asked), vectors.shape[1] - asked.shape[1])
    rest[:, -1] = model.weight * tower.prior
    spec["linear"], learned = linear_query(model)
    learned |= {
        name: np.ascontiguousarray(value.numpy()) for name, value in (("basis", model.basis), ("map", tower.map))
    }
    columns = {f"vector_{at}": vector_column(vectors.numpy())}
    return PartExport(spec, columns, graphs, learned, torch.cat([asked, rest], dim=1).numpy())


def collaborative(model: Any, restored: Restored, at: int) -> PartExport:  # noqa: ANN401 - baselines are not imported here
    """collaborative: what it ranks by for nobody, and what the library fitted, by which any history is scored."""
    nobody = QueryBatch(restored.tables.queries[:1], [""], [None], [None])
    scores = model.score(nobody)[0].double().numpy()
    learned = {name: np.ascontiguousarray(value.numpy()) for name, value in model.model.state().items()}
    config = asdict(model.model.config)
    spec = {"kind": "popularity", "config": config, "reads_history": True, "unseen": float(scores.min())}
    return PartExport(spec, {f"popularity_{at}": pa.array(scores)}, {}, learned)


def histories_of(model: Any) -> Histories | None:  # noqa: ANN401
    """The histories that a model reads; all parts of a run have the same."""
    found: Histories | None = getattr(model, "watched_by", None) or getattr(model, "histories", None)
    return found


def save_histories(watched: Histories, collection: Collection, folder: Path) -> None:
    """Write what all learners watched, each hashed with a salt of this build."""
    ids = collection.videos.ids
    save_learners(folder / LEARNERS, list(watched.position), watched.starts, watched.items, ids, os.urandom(16))
