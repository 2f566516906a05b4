"""two_stage and two_stage_joint: the recall's best videos, ranked by evidence.

Everything the head reads of a video lies in the catalogue's table (`whitened_0`, `mapped_0`), so a video that is added
later is ranked like any other; the judged queries that it remembers are those of the fit, and know no new video.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dcdt.data.types import Collection
from dcdt.evaluation.fusion import SCORE_GAP
from dcdt.serving.arrow import vector_column
from dcdt.serving.catalogue.row_positions import RowPositions
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.catalogue.top_k import top_k
from dcdt.serving.graphs import Floats, Scores, session, softmax, unit
from dcdt.serving.scorers.base import (
    N_EXAMPLES,
    CatalogueScores,
    Columns,
    Count,
    Export,
    Graph,
    Names,
    Number,
    Query,
    Rows,
    Section,
    require,
)
from dcdt.serving.scorers.hybrid import Fusion, candidates, fuse, fused_deviation, standardized, tie_order, z_scores
from dcdt.utils.errors import UserError
from dcdt.utils.files import parse_json
from dcdt.utils.text import one_line

MODELS = ("two_stage", "two_stage_joint")
HEAD, WHITENED, MAPPED = "head.safetensors", "whitened_0", "mapped_0"
INPUTS = {"query": "vectors", "video": "fields", "pair": "joint"}  # of the joint network's graphs


class Head(Section):
    """The second stage.

    Attributes:
        depth: how many of the recall's videos are re-ranked.
        fields: whose whitened cosines are evidence.
        names: of the evidence.
        weights: of each.
        temperatures: of the memory.
        is_joint: whether a network adds to the weighted sum.
    """

    depth: Count
    fields: Names
    names: Names
    weights: list[Number]
    temperatures: list[Annotated[Number, Field(gt=0)]]
    is_joint: bool

    @model_validator(mode="after")
    def _fits(self) -> "Head":
        require(len(self.weights) == len(self.names), "weights of the head")
        return self

    @property
    def reads_lexical(self) -> bool:
        """Whether the last scorer is one whose scores are evidence and no recall."""
        return "lexical" in self.names

    def check_columns(self, snapshot: Snapshot) -> None:
        """Raise ValueError or KeyError where the catalogue lacks a column that the head reads."""
        require(snapshot.built.vectors[WHITENED].shape[1] % len(self.fields) == 0, "fields of the head")
        require(not self.is_joint or MAPPED in snapshot.built.vectors, "network of the head")


@dataclass(frozen=True)
class Ranked:
    """An answer: rows and scores of the best videos, and for each what the head added up to its score."""

    rows: Rows
    scores: Scores
    evidence: list[dict[str, float]]


class RankHead:
    """Re-ranks the first `depth` videos of a recall by weighted evidence.

    Args:
        manifest: what model.json says of it.
        folder: of the build.
        fusion: of the recall, where it is a hybrid.

    Raises:
        UserError: a file of it is missing or corrupt.
    """

    def __init__(self, manifest: Head, folder: Path, fusion: Fusion | None) -> None:
        self.manifest, self.fusion = manifest, fusion
        self.fields, self.weights = manifest.fields, np.array(manifest.weights)  # (E,)
        self.names = [*manifest.names, *(["network"] if manifest.is_joint else [])]
        arrays, ids = read_head(folder / HEAD)
        self.whitening, self.queries = arrays["whitening"], arrays["queries"]  # (D, D), (G, D)
        self.group, self.answers = arrays["group"], arrays["answers"]  # (P,) row in queries, and place in ids
        self.answer_rows = RowPositions(ids)
        self.graphs = {name: session(folder / f"head_{name}.onnx") for name in INPUTS} if manifest.is_joint else {}

    def columns(self, vectors: Mapping[str, Floats]) -> Columns:
        """Compute the columns of n new videos from the frozen vectors (n, D) of each field."""
        fields = np.stack([vectors[name] for name in self.fields])  # (F, n, D)
        whitened = unit(fields @ self.whitening).transpose(1, 0, 2)  # (n, F, D)
        columns = {WHITENED: vector_column(whitened.reshape(len(whitened), -1))}
        if self.graphs:
            columns[MAPPED] = vector_column(self.graphs["video"].run(None, {"fields": fields})[0])
        return columns

    def top(
        self, query: Query, scores: Sequence[CatalogueScores], snapshot: Snapshot, k: int, allowed: NDArray[np.bool_]
    ) -> Ranked:
        """The best k among the allowed rows (N,).

        A filter comes before the head: the first `depth` of the videos that meet it are re-ranked. A video's evidence
        does not depend on it.
        """
        if self.fusion is not None and self.fusion.kind == "rrf":  # ranks need the whole catalogue
            snapshot = replace(snapshot, indexes={})
        parts = scores[:2] if self.fusion is not None else scores[:1]
        rows, z = self._recall(parts, snapshot, max(k, self.manifest.depth), allowed)  # (n,), the best first
        depth = min(self.manifest.depth, len(rows))
        if not depth:
            return Ranked(rows, z, [])
        top, rest = rows[:depth], z[depth:]
        own = (z_scores(component, top) for component in self._own(scores))
        evidence = self._evidence(query, snapshot, top, [z[:depth], *own])
        ranked, lowered = evidence.sum(1), rest  # (K,)
        if len(rest) and rest[0] > ranked.min():
            lowered = rest - (rest[0] - ranked.min()) - SCORE_GAP
        every = np.r_[ranked, lowered]
        first = top_k(every, tie_order(snapshot, rows), k)
        reasons = [
            dict(zip(self.names, map(float, evidence[place]), strict=True))
            if place < depth
            else {"recall": float(z[place]), f"beyond the first {depth}": float(every[place] - z[place])}
            for place in first.tolist()
        ]
        return Ranked(rows[first], every[first], reasons)

    def _own(self, scores: Sequence[CatalogueScores]) -> list[CatalogueScores]:
        """Those whose own z-scores are evidence: the first of a hybrid, and a lexical one."""
        return [
            *(scores[:1] if self.fusion is not None else []),
            *(scores[-1:] if self.manifest.reads_lexical else []),
        ]

    def _evidence(self, query: Query, snapshot: Snapshot, top: Rows, scores: list[Scores]) -> NDArray[np.float64]:
        """Compute what each evidence adds to the scores of K recalled rows, (K, E); the network's part is last."""
        assert query.vector is not None
        question = unit(query.vector @ self.whitening)  # (D,)
        fields = snapshot.vectors_at(top, WHITENED).reshape(len(top), len(self.fields), -1)  # (K, F, D)
        columns = [*scores, *(fields @ question).T, *self._memory(unit(query.vector), snapshot, top)]
        weighted: NDArray[np.float64] = np.stack(columns, axis=1).astype(np.float64) * self.weights
        if not self.graphs:
            return weighted
        mapped_query = self.graphs["query"].run(None, {"vectors": query.vector[None]})[0]  # (1, R)
        mapped = snapshot.vectors_at(top, MAPPED)  # (K, F R)
        joint = np.concatenate([np.repeat(mapped_query, len(top), axis=0), mapped], axis=1)
        network = self.graphs["pair"].run(None, {"joint": joint})[0]  # (K,)
        return np.concatenate([weighted, network[:, None]], axis=1)

    def _memory(self, vector: Floats, snapshot: Snapshot, top: Rows) -> list[Scores]:
        """For each temperature, the share (K,) of similar judged queries that each recalled video answered."""
        place = np.full(len(snapshot.present), -1)
        place[top] = np.arange(len(top))
        rows = self.answer_rows.rows(snapshot)[self.answers]  # (P,), -1: gone
        recalled = np.flatnonzero(rows >= 0)
        recalled = recalled[place[rows[recalled]] >= 0]
        shares = []
        for temperature in self.manifest.temperatures:
            share = np.zeros(len(top))
            if len(self.queries):
                weights = softmax((self.queries @ vector).astype(np.float64) / temperature)  # (G,)
                np.add.at(share, place[rows[recalled]], weights[self.group[recalled]])
            shares.append(share)
        return shares

    def _recall(
        self, parts: Sequence[CatalogueScores], snapshot: Snapshot, wide: int, allowed: NDArray[np.bool_]
    ) -> tuple[Rows, Scores]:
        """Allowed rows and the recall's z-scores over the whole catalogue, the best first.

        All of them over a catalogue that is scored whole, else the candidates of an approximate index.
        """
        rows = candidates(parts, wide, allowed) if snapshot.indexes else np.flatnonzero(snapshot.present)
        scores = parts[0].scores_of(rows) if self.fusion is None else fuse(parts, self.fusion, rows, snapshot)
        if not snapshot.indexes:
            mean, deviation = float(scores.mean()), float(scores.std()) if scores.max() > scores.min() else 0.0
            rows, scores = rows[allowed[rows]], scores[allowed[rows]]
        elif self.fusion is None:
            mean, deviation = parts[0].mean_and_deviation()
        else:
            mean, deviation = 0.0, fused_deviation(parts, self.fusion, rows, snapshot)
        z = standardized(scores, mean, deviation)
        first = top_k(z, tie_order(snapshot, rows), wide)
        return rows[first], z[first]


def read_head(path: Path) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Arrays of the head, and the ids of the videos that answered.

    Raises:
        UserError: the file is missing or corrupt.
    """
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in ("whitening", "queries", "group", "answers")}
            ids = list(parse_json(file.metadata()["ids"]))
        _check_head_arrays(arrays, ids)
        return arrays, ids
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is missing or corrupt ({one_line(error, 120)}).") from error


def _check_head_arrays(arrays: dict[str, NDArray[Any]], ids: list[Any]) -> None:
    whitening, queries, group, answers = arrays.values()
    if whitening.ndim != 2 or queries.ndim != 2 or not len(whitening) == whitening.shape[1] == queries.shape[1]:
        raise ValueError(f"whitening {whitening.shape} and queries {queries.shape} do not fit")
    if not np.isfinite(whitening).all() or not np.isfinite(queries).all() or not all(isinstance(i, str) for i in ids):
        raise ValueError("values that are no numbers, or ids that are no texts")
    for name, rows, n in (("group", group, len(queries)), ("answers", answers, len(ids))):
        is_inside = not len(rows) or 0 <= rows.min() <= rows.max() < n
        if rows.shape != group.shape or rows.dtype != np.int64 or not is_inside:
            raise ValueError(f"{name} points beyond what is there")


def export_head(model: Any) -> Export:  # noqa: ANN401 - torch is not imported
    """Export the head; call before the model's tables are freed."""
    import torch

    from dcdt.models.evidence import KERNELS

    tables = model.tables
    manifest = Head(
        depth=model.config.depth,
        fields=tables.fields,
        names=model.names,
        weights=(model.weights / model.scale).tolist(),
        temperatures=list(KERNELS),
        is_joint=model.has_network,
    )
    whitened = model.evidence.whitened_videos().transpose(0, 1).flatten(1)  # (F, N, D) -> (N, F D)
    columns = {WHITENED: vector_column(whitened.contiguous().numpy())}
    if not model.has_network:
        return Export(manifest, columns, {})
    head, functions = model.joint.eval(), {"query": _map_query, "video": _map_video, "pair": _score_pair}
    columns[MAPPED] = vector_column(_map_video(head, tables.videos)[0].numpy())
    n = min(N_EXAMPLES, len(tables.queries), tables.videos.shape[1])
    mapped = [_map_query(head, tables.queries[:n])[0], _map_video(head, tables.videos[:, :n])[0]]
    examples = {"query": tables.queries[:n], "video": tables.videos[:, :n], "pair": torch.cat(mapped, dim=1)}
    graphs = {
        f"head_{name}": Graph(head, functions[name], examples[name], input, ("scores",))
        for name, input in INPUTS.items()
    }
    return Export(manifest, columns, graphs)


def save_head(model: Any, collection: Collection, folder: Path) -> None:  # noqa: ANN401
    """Write the whitening and the memory: judged questions as vectors alone, and the ids of what answered them."""
    evidence = model.evidence
    rows, place = np.unique(evidence.answer_videos.numpy(), return_inverse=True)
    tensors = {"whitening": evidence.whitening, "queries": evidence.judged_vectors, "group": evidence.answer_groups}
    arrays = {name: np.ascontiguousarray(value.numpy()) for name, value in tensors.items()}
    arrays["answers"] = place.reshape(-1).astype(np.int64)
    ids = json.dumps([collection.videos.ids[row] for row in rows.tolist()])
    (folder / HEAD).write_bytes(save(arrays, {"ids": ids}))  # save_file keeps it from other accounts


def _map_query(head: Any, vectors: Any) -> tuple[Any]:  # noqa: ANN401 - tensors, and torch is not imported
    """Map queries for the joint network, (B, R)."""
    from torch.nn.functional import normalize

    return (head.query(head.scale * normalize(vectors, dim=-1)),)


def _map_video(head: Any, fields: Any) -> tuple[Any]:  # noqa: ANN401
    """Map videos for the joint network, the fields concatenated, (B, F R)."""
    import torch
    from torch.nn.functional import normalize

    scaled = head.scale * normalize(fields, dim=-1)
    return (torch.cat([tower(part) for tower, part in zip(head.fields, scaled, strict=True)], -1),)


def _score_pair(head: Any, joint: Any) -> tuple[Any]:  # noqa: ANN401
    """Compute the correction (B,) of pairs whose mapped query and fields are concatenated, (B, (1 + F) R)."""
    import torch

    rank, n_fields = head.query.out_features, len(head.fields)
    query, fields = joint[:, :rank], joint[:, rank:].reshape(-1, n_fields, rank)  # (B, R), (B, F, R)
    weights = (fields * query.unsqueeze(1)).sum(-1).div(rank**0.5).softmax(1)  # (B, F)
    weighed = n_fields * weights.unsqueeze(-1) * fields
    hidden = head.hidden(torch.cat([query, weighed.flatten(1)], dim=-1)).relu()
    return (head.output(hidden).squeeze(-1),)
