"""Negatives from a window of the frozen ranking, with a guard against positives that nobody judged."""

import torch
from torch import Tensor

from dcdt.data.gather import single
from dcdt.data.tables import Tables
from dcdt.samplers.base import Sampler
from dcdt.samplers.config import WindowSamplerConfig
from dcdt.samplers.pool import TrainingPool, draw_distinct

CELLS = 2**22  # (query, candidate) scores sorted at a time


class WindowSampler(Sampler):
    """Draws, for every training pair, distinct videos from ranks `start` to `start + size` of its query's ranking.

    The ranking is of the unrelated videos by frozen cosine. Its top holds positives that nobody judged, so the first
    `start` ranks are left out, and so is, pair by pair, every candidate whose cosine is above `guard` times that of
    the positive (a relative margin, Moreira et al. 2024; with a negative cosine, the limit lies as far below it). The
    window begins where both rules are met. Where that is nowhere, the least similar video stands in it alone.

    Args:
        config: number of negatives, start and size of the window, guard.
        pool: pairs, candidates and what is forbidden.
        tables: the frozen vectors.

    Attributes:
        windows: (P, size) video rows of each pair's window, most similar first; the first `sizes` of a row count.
        sizes: (P,).
        rejected: how many candidates each rule took out, all pairs together, each counted by the first rule that did:
            `related`, `guard` and `rank`; and `unguarded`, the pairs for which the guard left nothing.
    """

    def __init__(self, config: WindowSamplerConfig, pool: TrainingPool, tables: Tables) -> None:
        super().__init__(pool)
        self.negatives = config.negatives
        self.windows = torch.zeros(len(pool.pairs), min(config.size, len(pool.candidates)), dtype=torch.int64)
        self.sizes = torch.zeros(len(pool.pairs), dtype=torch.int64)
        self.rejected = dict.fromkeys(("related", "guard", "rank", "unguarded"), 0)
        query, video = pool.pairs.unbind(1)
        asked, shown = single(tables.queries[query]), single(tables.frozen[video])
        cosine = (torch.nn.functional.normalize(asked, dim=-1) * shown).sum(-1)  # (P,)
        limit = cosine - (1 - config.guard) * cosine.abs()
        chunk = max(1, CELLS // len(pool.candidates))
        for first in range(0, len(pool.queries), chunk):
            here = ((pool.owner >= first) & (pool.owner < first + chunk)).nonzero().squeeze(1)
            self._mine(config, tables, here, limit[here])

    def _mine(self, config: WindowSamplerConfig, tables: Tables, here: Tensor, limit: Tensor) -> None:
        """Fill the windows of these pairs (p,), whose negatives may have a cosine of at most `limit` (p,)."""
        pool, owners = self.pool, self.pool.owner[here]
        owner, back = torch.unique(owners, return_inverse=True)  # (u,), (p,)
        asked = torch.nn.functional.normalize(single(tables.queries[pool.queries[owner]]), dim=-1)
        scores = torch.nn.functional.pad(asked @ single(tables.frozen[pool.candidates]).T, (0, 1))
        scores.scatter_(1, pool.forbidden[owner], float("-inf"))
        values, order = scores[:, :-1].sort(dim=1, descending=True)  # (u, C), forbidden ones last
        free = pool.free[owners]  # (p,)
        guarded = (values[back] > limit.unsqueeze(1)).sum(1)  # a prefix of the ranking
        begin = guarded.clamp(min=config.start).minimum(free - 1)
        ranks = begin.unsqueeze(1) + torch.arange(self.windows.shape[1])  # (p, size)
        self.windows[here] = pool.candidates[order[back].gather(1, ranks.clamp(max=order.shape[1] - 1))]
        self.sizes[here] = (free - begin).clamp(max=config.size)
        self.rejected["related"] += int((len(pool.candidates) - free).sum())
        self.rejected["guard"] += int(guarded.sum())
        self.rejected["rank"] += int((begin - guarded).clamp(min=0).sum())
        self.rejected["unguarded"] += int((guarded == free).sum())

    def draw(self, generator: torch.Generator) -> Tensor:
        """Video rows of the negatives of every pair, (P, K)."""
        return self.windows.gather(1, draw_distinct(self.sizes, self.negatives, generator))

    def facts(self) -> dict[str, float]:
        """Candidates that each rule rejected."""
        return {f"window/{rule}": number for rule, number in self.rejected.items()}
