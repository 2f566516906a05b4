"""What is written of the second stage of `two_stage` and `two_stage_joint`, for `dcdt.serving.reranking`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn
from torch.nn.functional import normalize

from dcdt.data.types import Collection
from dcdt.models.evidence import KERNELS
from dcdt.models.rank_head import JointHead
from dcdt.serving.index import vector_column
from dcdt.serving.parts import PARITY, Graph, PartExport
from dcdt.serving.reranking import GRAPHS, HEAD, MAPPED, WHITENED


class _MappedQuery(nn.Module):
    """The query's side of the joint network."""

    def __init__(self, head: JointHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, vectors: Tensor) -> tuple[Tensor]:
        return (self.head.query(self.head.scale * normalize(vectors, dim=-1)),)  # (B, R)


class _MappedVideo(_MappedQuery):
    """The video's side, all fields one after the other."""

    def forward(self, fields: Tensor) -> tuple[Tensor]:
        shown = self.head.scale * normalize(fields, dim=-1)
        return (torch.cat([tower(part) for tower, part in zip(self.head.fields, shown, strict=True)], -1),)  # (B, F R)


class _Pair(_MappedQuery):
    """What is left for a pair, of both sides one after the other (B, (1 + F) R): the correction (B,)."""

    def forward(self, joint: Tensor) -> tuple[Tensor]:
        rank, n_fields = self.head.query.out_features, len(self.head.fields)
        query, fields = joint[:, :rank], joint[:, rank:].reshape(-1, n_fields, rank)  # (B, R), (B, F, R)
        weights = (fields * query.unsqueeze(1)).sum(-1).div(rank**0.5).softmax(1)  # (B, F)
        weighed = n_fields * weights.unsqueeze(-1) * fields
        hidden = self.head.hidden(torch.cat([query, weighed.flatten(1)], dim=-1)).relu()
        return (self.head.output(hidden).squeeze(-1),)


def head_export(model: Any) -> PartExport:  # noqa: ANN401 - one of two models
    """Spec, columns and graphs of the head of two stages; call before the model's tables are let go."""
    tables, evidence = model.tables, model.evidence
    spec: dict[str, Any] = {
        "depth": model.config.depth,
        "fields": tables.fields,
        "names": model.names,
        "weights": (model.weights / model.scale).tolist(),
        "temperatures": list(KERNELS),
        "joint": hasattr(model, "joint"),
    }
    columns = {WHITENED: vector_column(flattened(evidence.whitened_videos()))}
    if not spec["joint"]:
        return PartExport(spec, columns)
    head: JointHead = model.joint
    modules = {"query": _MappedQuery(head).eval(), "video": _MappedVideo(head).eval(), "pair": _Pair(head).eval()}
    columns[MAPPED] = vector_column(modules["video"](tables.videos)[0].numpy())
    n = min(PARITY, len(tables.queries), tables.videos.shape[1])
    sides = [modules["query"](tables.queries[:n])[0], modules["video"](tables.videos[:, :n])[0]]
    examples = {"query": tables.queries[:n], "video": tables.videos[:, :n], "pair": torch.cat(sides, dim=1)}
    graphs: dict[str, Graph] = {
        f"head_{name}": (modules[name], examples[name], given, ["found"]) for name, given in GRAPHS.items()
    }
    return PartExport(spec, columns, graphs)


def save_head(model: Any, collection: Collection, folder: Path) -> None:  # noqa: ANN401
    """Write the whitening and the memory: judged questions as vectors alone, and the ids of what answered them."""
    evidence = model.evidence
    known, place = np.unique(evidence.answer_videos.numpy(), return_inverse=True)
    arrays = {"whitening": evidence.whitening, "asked": evidence.judged_vectors, "owner": evidence.answer_groups}
    plain = {name: np.ascontiguousarray(value.numpy()) for name, value in arrays.items()}
    ids = json.dumps([collection.videos.ids[row] for row in known.tolist()])
    plain["answers"] = place.reshape(-1).astype(np.int64)
    (folder / HEAD).write_bytes(save(plain, {"ids": ids}))  # save_file keeps it from other accounts


def flattened(fields: Tensor) -> np.ndarray:
    """Field vectors (F, N, D) as one row a video, (N, F D)."""
    return fields.transpose(0, 1).flatten(1).contiguous().numpy()
