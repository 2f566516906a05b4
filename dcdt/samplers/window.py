"""Negatives from a window of the frozen ranking, with a guard against unjudged positives."""

import torch
from torch import Tensor

from dcdt.data.tables import Tables
from dcdt.samplers.base import Sampler
from dcdt.samplers.config import WindowSamplerConfig
from dcdt.samplers.pool import TrainingPool, draw_distinct
from dcdt.utils.precision import at_least_float32

MAX_CHUNK_SCORES = 2**22  # (query, candidate) scores sorted at a time


class WindowSampler(Sampler):
    """Draw distinct negatives for every training pair from ranks `start` to `start + size` of its query's ranking.

    The ranking is of the unrelated videos by frozen cosine. Its top holds unjudged positives, so the first
    `start` ranks are excluded, and so is, pair by pair, every candidate whose cosine is above `guard` times that of
    the positive (a relative margin, Moreira et al. 2024; with a negative cosine, the limit lies as far below it). The
    window begins where both rules are met. Where no candidate meets them, it holds the least similar video alone.

    Args:
        config: number of negatives, start and size of the window, guard.
        pool: pairs, candidates and forbidden negatives.
        tables: the frozen vectors.

    Attributes:
        windows: (P, size) video rows of each pair's window, most similar first; the first `sizes` of a row count.
        sizes: (P,).
        rejected: number of candidates that each rule excluded, over all pairs, each counted by the first rule:
            `related`, `guard` and `rank`; and `unguarded`, the pairs for which the guard excluded all.
    """

    def __init__(self, config: WindowSamplerConfig, pool: TrainingPool, tables: Tables) -> None:
        super().__init__(pool)
        self.negatives = config.negatives
        self.windows = torch.zeros(len(pool.pairs), min(config.size, len(pool.candidates)), dtype=torch.int64)
        self.sizes = torch.zeros(len(pool.pairs), dtype=torch.int64)
        self.rejected = dict.fromkeys(("related", "guard", "rank", "unguarded"), 0)
        query, video = pool.pairs.unbind(1)
        query_vectors, video_vectors = at_least_float32(tables.queries[query]), at_least_float32(tables.frozen[video])
        cosine = (torch.nn.functional.normalize(query_vectors, dim=-1) * video_vectors).sum(-1)  # (P,)
        limit = cosine - (1 - config.guard) * cosine.abs()
        chunk = max(1, MAX_CHUNK_SCORES // len(pool.candidates))
        for first in range(0, len(pool.queries), chunk):
            pair_rows = ((pool.owner >= first) & (pool.owner < first + chunk)).nonzero().squeeze(1)
            self._mine(config, tables, pair_rows, limit[pair_rows])

    def _mine(self, config: WindowSamplerConfig, tables: Tables, pair_rows: Tensor, limit: Tensor) -> None:
        """Fill the windows of these pairs (p,), whose negatives have a cosine of at most `limit` (p,)."""
        pool, owners = self.pool, self.pool.owner[pair_rows]
        owner, back = torch.unique(owners, return_inverse=True)  # (u,), (p,)
        query_vectors = torch.nn.functional.normalize(at_least_float32(tables.queries[pool.queries[owner]]), dim=-1)
        scores = torch.nn.functional.pad(query_vectors @ at_least_float32(tables.frozen[pool.candidates]).T, (0, 1))
        scores.scatter_(1, pool.forbidden[owner], float("-inf"))
        values, order = scores[:, :-1].sort(dim=1, descending=True)  # (u, C), forbidden ones last
        free = pool.free[owners]  # (p,)
        guarded = (values[back] > limit.unsqueeze(1)).sum(1)  # a prefix of the ranking
        begin = guarded.clamp(min=config.start).minimum(free - 1)
        ranks = begin.unsqueeze(1) + torch.arange(self.windows.shape[1])  # (p, size)
        self.windows[pair_rows] = pool.candidates[order[back].gather(1, ranks.clamp(max=order.shape[1] - 1))]
        self.sizes[pair_rows] = (free - begin).clamp(max=config.size)
        self.rejected["related"] += int((len(pool.candidates) - free).sum())
        self.rejected["guard"] += int(guarded.sum())
        self.rejected["rank"] += int((begin - guarded).clamp(min=0).sum())
        self.rejected["unguarded"] += int((guarded == free).sum())

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw the video rows of the negatives of every pair, (P, K)."""
        return self.windows.gather(1, draw_distinct(self.sizes, self.negatives, generator))

    def statistics(self) -> dict[str, float]:
        """Return the number of candidates that each rule rejected."""
        return {f"window/{rule}": number for rule, number in self.rejected.items()}
