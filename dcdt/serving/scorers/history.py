"""dcdt_history: the question's direction and a tower over what the learner watched, as one vector."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import model_validator

from dcdt.serving.arrow import vector_column
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.graphs import Floats, Scores, arrays_path, softmax, unit
from dcdt.serving.learners import Rows
from dcdt.serving.scorers.base import (
    N_EXAMPLES,
    N_PROBES,
    Count,
    Export,
    Graph,
    Number,
    Query,
    ScorerManifest,
    Section,
    query_map,
    require,
)
from dcdt.serving.scorers.towers import EARLIER_VIDEOS, TowerScores, TowersManifest, TowersScorer, encode_videos
from dcdt.utils.errors import UserError


class LearnerTower(Section):
    """Parameters by which watched videos become a learner's vector (`dcdt.models.history_tower`)."""

    history: Literal["none", "mean", "attention"]
    length: Count
    weight: Number
    prior: Number
    match: Number
    decay: Number
    unit_mass: Number = 0.0
    unit_match: Number = 0.0
    unit_decay: Number = 0.0
    unit_count: Number = 0.0


class HistoryManifest(TowersManifest):
    """Two towers and a learner's."""

    learner: LearnerTower

    @model_validator(mode="after")
    def _leaves_room(self) -> "HistoryManifest":
        require(self.query_width < self.width, "query_width is not below width")
        return self


class HistoryScorer(TowersScorer):
    """A video's vector is `[v; t; p]`, of its texts, for the learner's tower, and its popularity.

    The query's is `[question; weight * learner; weight * a]` (`dcdt.models.history`).
    """

    kind: ClassVar[str] = "history"
    manifest_type: ClassVar[type[ScorerManifest]] = HistoryManifest
    models: ClassVar[tuple[str, ...]] = ("dcdt_history", "dcdt_hierarchical")
    note: ClassVar[str] = (
        "{}: without a learner's history videos come by the question and by how often they are watched."
    )
    manifest: HistoryManifest

    def __init__(self, manifest: HistoryManifest, number: int, folder: Path) -> None:
        super().__init__(manifest, number, folder)
        self.arrays = self.towers.arrays
        if not {"basis", "map"} <= set(self.arrays):
            raise UserError(
                f"{arrays_path(folder, number)} is corrupt: it holds no basis and map of the learner's tower."
            )

    @staticmethod
    def export(model: Any, name: str, restored: Any, number: int) -> Export:  # noqa: ANN401
        """One vector a video, whose product with that of question and learner is the score."""
        import torch
        from torch.nn.functional import normalize

        tables, tower, config = model.tables, model.tower, model.config
        texts = model.video_vectors()  # (N, D)
        taste = tower.videos(normalize(texts @ model.basis, dim=-1))  # (N, d)
        vectors = torch.cat([texts, taste, tower.popularity.unsqueeze(1)], dim=-1)
        arrays = query_map(model)
        scalars = {name: float(value) for name, value in tower.named_parameters() if not value.ndim}
        values = {name: value for name, value in scalars.items() if name in LearnerTower.model_fields}
        manifest = HistoryManifest(
            kind=HistoryScorer.kind,
            name=name,
            reads_history=True,
            fields=tables.fields,
            width=vectors.shape[1],
            query_width=texts.shape[1],
            contributions=list(model.field_contributions(tables.videos[:, :1])),
            has_transcript=tables.passages is not None,
            is_linear=bool(arrays),
            learner=LearnerTower(history=config.history, length=config.length, weight=float(model.weight), **values),
        )
        arrays |= {"basis": np.ascontiguousarray(model.basis.numpy()), "map": np.ascontiguousarray(tower.map.numpy())}
        graphs = {
            "query": Graph(
                model, lambda model, rows: (model.encode_queries(rows),), tables.queries[:N_EXAMPLES], "vectors",
                ("encoded",),
            ),
            "video": Graph(model, _encode_unwatched, tables.videos[:, :N_EXAMPLES], "fields", ("encoded", "adds")),
        }  # fmt: skip
        queries = model.encode_queries(tables.queries[:N_PROBES])
        rest = torch.zeros(len(queries), vectors.shape[1] - queries.shape[1])
        rest[:, -1] = model.weight * tower.prior
        columns = {f"vector_{number}": vector_column(vectors.numpy())}
        return Export(manifest, columns, graphs, arrays, torch.cat([queries, rest], dim=1).numpy())

    def score(self, query: Query, snapshot: Snapshot) -> TowerScores:
        """Encode question and learner."""
        assert query.vector is not None
        question, learner = self.towers.query(query.vector[None])[0][0], self.manifest.learner
        basis, matrix = self.arrays["basis"], self.arrays["map"]  # (D, d), (d, d)
        taste = np.zeros(len(matrix), dtype=np.float32)
        if query.watched is not None:
            watched = query.watched.vectors(self.column, learner.length)[:, len(question) : -1]  # (L, d)
            units = query.watched.last_units(self.column, learner.length)
            taste = learner_vector(learner, matrix, watched, unit(question @ basis), units)
        pieces = np.zeros((2, len(question) + len(matrix) + 1), dtype=np.float32)
        pieces[0, len(question) : -1] = learner.weight * taste
        pieces[1, -1] = learner.weight * learner.prior
        vector = np.r_[question, np.zeros(len(matrix) + 1, dtype=np.float32)] + pieces.sum(0)
        return TowerScores(snapshot, self, vector, None, {EARLIER_VIDEOS: pieces[0], "popularity": pieces[1]})


def learner_vector(
    learner: LearnerTower, matrix: Floats, watched: Floats, question: Floats, units: Rows | None = None
) -> Floats:
    """The learner's unit vector (d,) of `dcdt.models.history_tower`.

    Args:
        learner: history, match and decay of the tower.
        matrix: (d, d) the tower's map.
        watched: (L, d) unit vectors of the last videos, the newest first.
        question: (d,) its direction.
        units: (L,) of the videos, of models that tell units apart.
    """
    if learner.history == "none" or not len(watched):
        return np.zeros(len(matrix), dtype=np.float32)
    weights = np.full(len(watched), 1 / len(watched))
    if learner.history == "attention":
        query = question if question.any() else watched[0]
        logits = learner.match * (watched @ query) - learner.decay * np.log1p(np.arange(len(watched)))
        weights = softmax(logits if units is None else logits + _corrections(learner, logits, watched, query, units))
    pool = unit(weights.astype(np.float32) @ watched)
    return unit(pool + pool @ matrix)


def _corrections(learner: LearnerTower, logits: Scores, watched: Floats, query: Floats, units: Rows) -> Scores:
    """What the second level of `dcdt.models.hierarchical` adds to the logits, (L,)."""
    same = units[:, None] == units  # (L, L)
    shares = np.where(same, np.exp(logits - logits.max()), 0)  # (L, L)
    first, mass = same.argmax(1), np.log(shares.sum(1)) + logits.max()
    age = (np.cumsum(first == np.arange(len(first))) - 1)[first]
    match, count = unit((shares @ watched).astype(np.float32)) @ query, same.sum(1)
    added = learner.unit_mass * mass + learner.unit_match * match
    return np.asarray(added - learner.unit_decay * np.log1p(age) + learner.unit_count * np.log(count))


def _encode_unwatched(model: Any, fields: Any) -> tuple[Any, Any]:  # noqa: ANN401 - tensors, and torch is not imported
    """A video nobody watched: what its texts say (D), the same for the learner's tower (d), and 0."""
    import torch
    from torch.nn.functional import normalize

    texts, contributions = encode_videos(model, fields)  # (B, D)
    taste = normalize(texts @ model.basis, dim=-1)  # (B, d)
    return torch.cat([texts, taste, torch.zeros_like(taste[:, :1])], dim=-1), contributions
