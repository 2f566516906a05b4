"""The paper's ablation: one network over each (query, field) pair, so that nothing can be precomputed."""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from dcdt.data.tables import Tables
from dcdt.models.config import OptimizerConfig
from dcdt.models.pairs import PairRecommender
from dcdt.models.query_batch import QueryBatch
from dcdt.models.towers import Tower
from dcdt.utils.fused import select_rows
from dcdt.utils.precision import at_least_float32

from .config import SingleTowerConfig

MAX_BLOCK_NUMBERS = 2**20  # hidden outputs at a time in full ranking: 4 MB of fp32 stay in the cache of a CPU


class SingleTower(PairRecommender):
    """Fuse the query with the title and with the description separately and score the pair jointly.

    One tower a field reads `[q; f]`, the outputs are concatenated and mapped to one logit:
    `s = sigmoid(w . [ReLU(W_t [q; t] + b_t); ReLU(W_d [q; d] + b_d)] + b)` in (0, 1). Eq. 7 takes `d := 1 - s`.

    `W [q; f] = W_q q + W_f f`, so both products are computed once a query and once a video; what is left for each of
    the B x N pairs is an addition, the ReLU and the output.

    Args:
        config: fields, width and dropout.
        tables: the frozen vectors.
        loss: takes distances (given 1 - s) or similarities (given s), (B, 1 + K), and labels.
        optimizer: learning rate, weight decay and schedule.
    """

    decoupled: ClassVar[bool] = False
    matches_own_videos: ClassVar[bool] = True

    def __init__(self, config: SingleTowerConfig, tables: Tables, loss: nn.Module, optimizer: OptimizerConfig) -> None:
        super().__init__(tables, loss, optimizer)
        n_fields = len(tables.fields)
        towers = [Tower(2 * tables.width, config.width, config.dropout) for _ in range(n_fields)]
        self.towers = nn.ModuleList(towers)  # their dropout is the one below, on both at once
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(n_fields * config.width, 1)

    def linear_outputs(self, queries: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """Compute `W_q q + b` and `W_f f` of every field's tower, concatenated.

        Args:
            queries: (B, D).
            fields: (F, U, D).

        Returns:
            (B, F * W) and (U, F * W).
        """
        query_outputs, video_outputs = [], []
        for tower, vectors in zip(self.towers, fields, strict=True):
            linear = cast(Tower, tower).linear
            of_query, of_video = linear.weight.chunk(2, dim=1)  # (W, 2D) -> twice (W, D), one gradient for both
            query_outputs.append(nn.functional.linear(queries, of_query, linear.bias))
            video_outputs.append(nn.functional.linear(vectors, of_video))
        return torch.cat(query_outputs, dim=-1), torch.cat(video_outputs, dim=-1)

    def join(self, queries: Tensor, videos: Tensor) -> Tensor:
        """Score query outputs with video outputs (..., F * W), broadcast against each other: (...) in (0, 1)."""
        logit = self.output(self.dropout((queries + videos).relu())).squeeze(-1)
        return at_least_float32(logit).sigmoid()

    def match(self, queries: Tensor, videos: Tensor, position: Tensor | None) -> Tensor:
        """Compute 1 - s, or s if the loss takes similarities, of B queries and their videos, (B, C)."""
        query_outputs, video_outputs = self.linear_outputs(queries, videos)  # (B, FW), (U, FW)
        own = video_outputs if position is None else select_rows(video_outputs, position)  # (U, FW) or (B, C, FW)
        score = self.join(query_outputs.unsqueeze(1), own)  # (B, C)
        return 1 - score if self.loss.measure == "distance" else score

    def score(self, queries: QueryBatch) -> Tensor:
        """Score B queries, (B, N), by blocks of pairs with at most MAX_BLOCK_NUMBERS hidden outputs."""
        query_outputs, video_outputs = self.linear_outputs(queries.vectors, self.tables.videos)  # (B, FW), (N, FW)
        rows, columns = block_shape(len(video_outputs), video_outputs.shape[-1])
        scores = query_outputs.new_empty(len(query_outputs), len(video_outputs))
        for top in range(0, len(query_outputs), rows):
            for left in range(0, len(video_outputs), columns):
                block = slice(top, top + rows), slice(left, left + columns)
                scores[block] = self.join(query_outputs[block[0], None], video_outputs[None, block[1]])
        return scores


def block_shape(n_videos: int, width: int) -> tuple[int, int]:
    """Compute the queries and videos of a block, so that queries x videos x width is at most MAX_BLOCK_NUMBERS.

    >>> block_shape(n_videos=1500, width=512)
    (1, 1500)
    >>> block_shape(n_videos=46, width=512)
    (44, 46)
    """
    columns = min(n_videos, max(1, MAX_BLOCK_NUMBERS // width))
    return max(1, MAX_BLOCK_NUMBERS // (columns * width)), columns
