"""The paper's ablation: one network over each (query, field) pair, so that nothing can be computed ahead."""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from dcdt.data.tables import Tables
from dcdt.losses.measures import wide
from dcdt.models.config import OptimizerConfig
from dcdt.models.pairs import PairRecommender
from dcdt.models.recommender import QueryBatch
from dcdt.models.towers import Tower

from .config import SingleTowerConfig

CHUNK_CELLS = 2**20  # hidden outputs held at a time in full ranking: 4 MB of fp32, which stays in the cache of a CPU


class SingleTower(PairRecommender):
    """Fuses the query with the title and with the description separately and scores the pair jointly.

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

    def __init__(self, config: SingleTowerConfig, tables: Tables, loss: nn.Module, optimizer: OptimizerConfig) -> None:
        super().__init__(tables, loss, optimizer)
        n_fields = len(tables.fields)
        towers = [Tower(2 * tables.width, config.width, config.dropout) for _ in range(n_fields)]
        self.towers = nn.ModuleList(towers)  # their dropout is the one below, on both at once
        self.dropout = nn.Dropout(config.dropout)
        self.output = nn.Linear(n_fields * config.width, 1)

    def sides(self, queries: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """`W_q q + b` and `W_f f` of every field's tower, side by side.

        Args:
            queries: (B, D).
            fields: (F, U, D).

        Returns:
            (B, F * W) and (U, F * W).
        """
        asked, shown = [], []
        for tower, part in zip(self.towers, fields, strict=True):
            linear = cast(Tower, tower).linear
            of_query, of_video = linear.weight.chunk(2, dim=1)  # (W, 2D) -> twice (W, D), one gradient for both
            asked.append(nn.functional.linear(queries, of_query, linear.bias))
            shown.append(nn.functional.linear(part, of_video))
        return torch.cat(asked, dim=-1), torch.cat(shown, dim=-1)

    def join(self, queries: Tensor, videos: Tensor) -> Tensor:
        """Scores in (0, 1) of both sides (..., F * W), broadcast against each other: (...)."""
        logit = self.output(self.dropout((queries + videos).relu())).squeeze(-1)
        return wide(logit).sigmoid()

    def match(self, queries: Tensor, videos: Tensor, place: Tensor | None) -> Tensor:
        """1 - s (or s, where the loss takes similarities) of B queries and their videos, (B, C)."""
        asked, shown = self.sides(queries, videos)  # (B, FW), (U, FW)
        score = self.join(asked.unsqueeze(1), shown.unsqueeze(0) if place is None else shown[place])  # (B, C)
        return 1 - score if self.loss.measure == "distance" else score

    def score(self, queries: QueryBatch) -> Tensor:
        """Scores (B, N), by blocks of pairs whose hidden outputs hold at most CHUNK_CELLS numbers."""
        asked, shown = self.sides(queries.vectors, self.tables.videos)  # (B, FW), (N, FW)
        rows, columns = chunk_shape(len(shown), shown.shape[-1])
        scores = asked.new_empty(len(asked), len(shown))
        for top in range(0, len(asked), rows):
            for left in range(0, len(shown), columns):
                block = slice(top, top + rows), slice(left, left + columns)
                scores[block] = self.join(asked[block[0], None], shown[None, block[1]])
        return scores


def chunk_shape(n_videos: int, width: int) -> tuple[int, int]:
    """Queries and videos of a block of pairs, so that queries x videos x width is at most CHUNK_CELLS.

    >>> chunk_shape(n_videos=1500, width=512)
    (1, 1500)
    >>> chunk_shape(n_videos=46, width=512)
    (44, 46)
    """
    columns = min(n_videos, max(1, CHUNK_CELLS // width))
    return max(1, CHUNK_CELLS // (columns * width)), columns
