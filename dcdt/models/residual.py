"""DCDT whose towers start as the identity: training starts from the frozen vectors."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from dcdt.data.tables import Tables
from dcdt.models.config import DCDTResidualConfig, OptimizerConfig
from dcdt.models.pairs import PairRecommender
from dcdt.models.passages import make_pooling
from dcdt.models.towers import LowRankMap
from dcdt.utils.fused import normalize
from dcdt.utils.precision import at_least_float32


class ResidualTowers(PairRecommender):
    """The paper's three towers, each `x + W_2 ReLU(W_1 x + b_1)` with `W_2 = 0` at the start.

    So the untrained model scores exactly as zero_shot does, at the width of the frozen vectors.

    `attention=none`: the field outputs are added (`fusion=sum`), or added with a low-rank map of their concatenation
    that starts at zero (`fusion=concat`), and the score is the cosine with the query's output.
    `attention=query`: weights over the fields `alpha(q) = softmax_m(q' . k_m)` with keys that start at zero, so even;
    `score = F [alpha_t q'; alpha_d q'] . [t'; d'] / (|q'| |t' + d'|)`: a dot product with a vector that is computed
    once a video, divided by the length of the sum, so that even weights give the cosine with the sum.

    Args:
        config: rank, what is shared, dropout, attention and fusion.
        tables: the frozen vectors.
        loss: a loss that takes distances or similarities (B, C) and labels.
        optimizer: learning rate, weight decay and schedule.
    """

    starts_useful: ClassVar[bool] = True
    supports_half_precision: ClassVar[bool] = True
    matches_own_videos: ClassVar[bool] = True

    def __init__(self, config: DCDTResidualConfig, tables: Tables, loss: nn.Module, optimizer: OptimizerConfig) -> None:
        super().__init__(tables, loss, optimizer)
        n_fields, width = len(tables.fields), tables.width
        maps = {"all": 1, "fields": 2, "none": 1 + n_fields}[config.shared]
        self.towers = nn.ModuleList(LowRankMap(width, width, config.rank) for _ in range(maps))
        self.dropout = nn.Dropout(config.dropout)
        self.keys = nn.Parameter(torch.zeros(n_fields, width)) if config.attention == "query" else None
        fused = config.fusion == "concat"
        self.fusion = LowRankMap(n_fields * width, width, config.rank) if fused else None
        self.pooling = make_pooling(config.passages, tables, learned=True)

    def encode_queries(self, vectors: Tensor) -> Tensor:
        """Encode frozen query vectors (B, D) as unit vectors (B, D); with attention (B, F * D), longer than 1."""
        output = normalize(self._tower(0, vectors))  # (B, D)
        if self.keys is None:
            return output
        weights = len(self.keys) * self.attention_weights(vectors)  # (B, F), each 1 at the start
        return (weights.unsqueeze(-1) * output.unsqueeze(-2)).flatten(-2)  # (B, F * D)

    @property
    def has_attention(self) -> bool:
        """Whether queries weigh the fields of a video."""
        return self.keys is not None

    def attention_weights(self, vectors: Tensor) -> Tensor:
        """Compute the weights over the fields, `softmax_m(q' . k_m)`, of frozen query vectors (B, D): (B, F)."""
        assert self.keys is not None
        return (self._tower(0, vectors) @ self.keys.T).softmax(-1)

    def encode_videos(self, fields: Tensor) -> Tensor:
        """Encode frozen field vectors (F, ..., D) as unit video vectors (..., D); with attention (..., F * D)."""
        outputs = torch.stack([self._tower(1 + i, vectors) for i, vectors in enumerate(fields)])  # (F, ..., D)
        total = outputs.sum(0)  # (..., D)
        if self.keys is not None:
            length = total.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            return torch.cat([output / length for output in outputs], dim=-1)  # (..., F * D)
        if self.fusion is not None:
            total = total + self.fusion(torch.cat(list(outputs), dim=-1))  # (..., F * D) -> (..., D)
        return normalize(total)

    def field_contributions(self, fields: Tensor) -> dict[str, Tensor]:
        """Compute what each field, and the fusion, adds to a video's vector: name to (..., D)."""
        outputs = [self._tower(1 + i, vectors) for i, vectors in enumerate(fields)]  # each (..., D)
        if self.keys is not None:
            zeros = [torch.zeros_like(output) for output in outputs]
            outputs = [torch.cat([*zeros[:i], vectors, *zeros[i + 1 :]], -1) for i, vectors in enumerate(outputs)]
        contributions = dict(zip(self.tables.fields, outputs, strict=True))
        return (
            contributions
            if self.fusion is None
            else contributions | {"together": self.fusion(torch.cat(outputs, dim=-1))}
        )

    def _tower(self, index: int, vectors: Tensor) -> Tensor:
        """Apply the query's tower (0) or a field's (1, 2, ...) to frozen vectors (..., D): (..., D)."""
        start = self.dropout(at_least_float32(self._tower_input(vectors)))  # the sum below is not rounded
        output: Tensor = start + self.towers[min(index, len(self.towers) - 1)](start)
        return output

    def _tower_input(self, vectors: Tensor) -> Tensor:
        """Return the input of the towers, (..., D): the frozen vectors (..., D) as they are."""
        return vectors
