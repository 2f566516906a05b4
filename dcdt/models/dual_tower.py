"""DCDT: query, title and description towers, decoupled so that video vectors are computed once."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dcdt.data.tables import Tables
from dcdt.losses.distances import chord, euclidean
from dcdt.losses.similarities import dot, pairwise_dot
from dcdt.models.config import DCDTConfig, OptimizerConfig
from dcdt.models.pairs import PairRecommender
from dcdt.models.passages import make_pooling
from dcdt.models.towers import Tower
from dcdt.utils.fused import cast_stacked, normalize, select_rows
from dcdt.utils.precision import at_least_float32, autocast_off, autocasts


class DualTower(PairRecommender):
    """The paper's deep collaborative dual tower.

    One tower for the query and one for each text field (eq. 4 to 6). `attention=none`: the field outputs are
    concatenated and mapped to W (`fusion=sum`: added), and the score is the cosine with the query's output.
    `attention=query`: weights over the fields that depend on the query alone, `alpha(q) = softmax_m(W_q q . k_m)`,
    and `score = [alpha_t q'; alpha_d q'] . [t'; d']` with both sides normalised: still a dot product with a vector
    that is computed once a video. `attention=candidates`: eq. 3 as printed, `softmax_v(W_q q . (W_t t + W_d d))` over
    the candidates of a query, neither normalised nor with ReLU or bias. The score is the dot product, since the softmax
    changes no ranking; in training the loss takes the softmax over a query's columns.

    Args:
        config: width, dropout, attention and fusion.
        tables: the frozen vectors.
        loss: a loss that takes distances or similarities (B, 1 + K) and labels.
        optimizer: learning rate, weight decay and schedule.
    """

    supports_half_precision: ClassVar[bool] = True
    matches_own_videos: ClassVar[bool] = True

    def __init__(self, config: DCDTConfig, tables: Tables, loss: nn.Module, optimizer: OptimizerConfig) -> None:
        super().__init__(tables, loss, optimizer)
        n_fields = len(tables.fields)
        self.attends_candidates = config.attention == "candidates"
        sizes = (tables.width, config.width, config.dropout, self.attends_candidates)
        towers = [Tower(*sizes) for _ in range(1 + n_fields)]
        self.query_tower, self.field_towers = towers[0], nn.ModuleList(towers[1:])
        self.keys = nn.Parameter(torch.zeros(n_fields, config.width)) if config.attention == "query" else None
        self.summed = config.fusion == "sum"
        fused = config.attention == "none" and not self.summed
        self.fusion = nn.Linear(n_fields * config.width, config.width) if fused else None
        self.pooling = make_pooling(config.passages, tables, learned=True)

    def encode_queries(self, vectors: Tensor) -> Tensor:
        """Encode frozen query vectors (B, D) as unit vectors (B, W), with attention=query (B, F * W)."""
        output = self.query_tower(vectors)  # (B, W)
        if self.keys is not None:
            weights = self.attention_weights(vectors)  # (B, F)
            output = (weights.unsqueeze(-1) * output.unsqueeze(-2)).flatten(-2)  # (B, F * W)
        return self._scale(output)

    @property
    def has_attention(self) -> bool:
        """Whether queries weigh the fields of a video."""
        return self.keys is not None

    def attention_weights(self, vectors: Tensor) -> Tensor:
        """Compute the weights over the fields, `softmax_m(W_q q . k_m)`, of frozen query vectors (B, D): (B, F)."""
        assert self.keys is not None
        linear = self.query_tower.linear
        return (nn.functional.linear(vectors, linear.weight) @ self.keys.T).softmax(-1)

    def encode_videos(self, fields: Tensor) -> Tensor:
        """Encode frozen field vectors (F, ..., D) as unit vectors (..., W), with attention=query (..., F * W)."""
        outputs = [tower(vectors) for tower, vectors in zip(self.field_towers, fields, strict=True)]  # each (..., W)
        output = torch.stack(outputs).sum(0) if self.summed else torch.cat(outputs, dim=-1)  # (..., W or F * W)
        if self.fusion is not None:
            output = self.fusion(output)  # (..., F * W) -> (..., W)
        return self._scale(output)

    def _scale(self, output: Tensor) -> Tensor:
        """Normalise vectors (..., W), in fp32 at least; eq. 3 takes them as they are."""
        return at_least_float32(output) if self.attends_candidates else normalize(output)

    def field_contributions(self, fields: Tensor) -> dict[str, Tensor]:
        """Compute what each field, and the bias of the fusion, adds to a video's vector: name to (..., W or F * W)."""
        outputs = [tower(vectors) for tower, vectors in zip(self.field_towers, fields, strict=True)]  # each (..., W)
        if self.summed:
            return dict(zip(self.tables.fields, outputs, strict=True))
        zeros = [torch.zeros_like(output) for output in outputs]
        columns = [torch.cat([*zeros[:i], output, *zeros[i + 1 :]], -1) for i, output in enumerate(outputs)]
        if self.fusion is None:
            return dict(zip(self.tables.fields, columns, strict=True))
        contributions = {
            name: vectors @ self.fusion.weight.T for name, vectors in zip(self.tables.fields, columns, strict=True)
        }
        return contributions | {"constant": self.fusion.bias.expand_as(contributions[self.tables.fields[0]])}

    def match(self, queries: Tensor, videos: Tensor, position: Tensor | None) -> Tensor:
        """Compute distances, or dot products (`measures_distance`), of B queries to their videos, (B, C)."""
        query_vectors, video_vectors = self._encode_batch(queries, videos)  # (B, W), (U, W) or (B, C, W)
        if position is None and videos.ndim == 3:
            similarity = pairwise_dot(query_vectors, video_vectors)  # (B, U)
            return chord(similarity) if self.measures_distance else similarity
        if position is not None:
            video_vectors = select_rows(video_vectors, position)  # (U, W) -> (B, C, W)
        measure = euclidean if self.measures_distance else dot
        return measure(query_vectors.unsqueeze(1), video_vectors)  # (B, 1, W), (B, C, W) -> (B, C)

    def _encode_batch(self, queries: Tensor, videos: Tensor) -> tuple[Tensor, Tensor]:
        """Encode query vectors (B, D) and field vectors (F, ..., D) of a batch.

        Where autocast is on, on a GPU, all weights are cast in one operation, and the fields are one product.
        """
        if self.fusion is None or not autocasts(queries.device) or torch.compiler.is_compiling():
            return self.encode_queries(queries), self.encode_videos(videos)
        dtype, query, fields = torch.get_autocast_dtype(queries.device.type), self.query_tower, self.field_towers
        modules: list[list[Any]] = [[query.linear], [tower.linear for tower in fields], [self.fusion]]
        groups = [[getattr(one, name) for one in group] for group in modules for name in ("weight", "bias")]
        weight, bias, weights, biases, fusion_weight, fusion_bias = cast_stacked(groups, dtype)
        with autocast_off(queries):
            output = nn.functional.linear(queries.to(dtype), weight.squeeze(0), bias.squeeze(0))  # (B, W)
            inputs = videos.to(dtype).flatten(1, -2)  # (F, U, D)
            outputs = torch.baddbmm(biases.unsqueeze(1), inputs, weights.transpose(1, 2))  # (F, U, W)
            joined = query.dropout(outputs.relu()).transpose(0, 1).flatten(1)  # (U, F * W)
            fused = nn.functional.linear(joined, fusion_weight.squeeze(0), fusion_bias.squeeze(0))  # (U, W)
        return self._scale(query.dropout(output.relu())), self._scale(fused).view(*videos.shape[1:-1], -1)

    def silent_towers(self) -> list[str]:
        """Return the names of towers that output only zeros on the first 256 queries or videos."""
        inputs = [at_least_float32(vectors[:256]) for vectors in (self.tables.queries, *self.tables.videos)]
        towers = [self.query_tower, *self.field_towers]
        active = torch.stack([tower(vectors).any() for tower, vectors in zip(towers, inputs, strict=True)]).tolist()
        names = ["query", *self.tables.fields]
        return [name for name, is_active in zip(names, active, strict=True) if not is_active]
