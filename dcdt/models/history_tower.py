"""A query tower over what a learner watched before, and how it is fitted: which video came next?"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcdt.data.histories import pooled
from dcdt.models.config import HistoryConfig
from dcdt.utils.transfer import to_device

BATCH, FASTER = 1024, 10.0  # examples a step; the few scalars learn so much faster than the maps


class HistoryTower(nn.Module):
    """Pools a learner's videos, maps the result and compares it with every video.

    `p = normalise(x + x M)` with x the direction of the weighted mean of the videos watched and M from zero, so that it
    starts as the mean. The score of a video v is `p . v + a log(1 + times watched)`, which is a dot product with a
    vector of the video alone. `history=attention`: video j weighs `exp(b (q . v_j) - c log(1 + age_j))` with age_j its
    place from the newest (0) on, and q the question, or the newest video where nobody asks; `mean`: all weigh the same;
    `none`: only the second term of the score stays. `videos=learned` adds a fitted vector, from zero, to each video's
    own, so that what the order of watches says is kept beside the texts.

    Args:
        config: history, videos, dropout.
        n_videos: N.
        width: d, width of the vectors.
    """

    popularity: Tensor

    def __init__(self, config: HistoryConfig, n_videos: int, width: int) -> None:
        super().__init__()
        self.history = config.history
        self.dropout = config.dropout
        self.map = nn.Parameter(torch.zeros(width, width))
        self.added = nn.Parameter(torch.zeros(n_videos, width)) if config.videos == "learned" else None
        self.prior = nn.Parameter(torch.tensor(0.05))  # a
        self.match = nn.Parameter(torch.tensor(0.0))  # b
        self.decay = nn.Parameter(torch.tensor(1.0))  # c
        self.log_temperature = nn.Parameter(torch.tensor(0.05).log())  # of fitting alone
        self.register_buffer("popularity", torch.zeros(n_videos))  # log(1 + times watched)

    def videos(self, base: Tensor) -> Tensor:
        """Unit vectors of all videos, of their frozen ones, (N, d) both."""
        return base if self.added is None else nn.functional.normalize(base + self.added, dim=-1)

    def learners(self, videos: Tensor, watched: Tensor, asked: Tensor | None, keep: Tensor | None = None) -> Tensor:
        """Unit vectors of learners, 0 without a history.

        Args:
            videos: (N, d) from `videos`.
            watched: (B, L) rows of videos, newest first, padded with -1, on the CPU.
            asked: (B, d) questions, zero where there is none; None: nobody asks.
            keep: (B, d) scale of each number of the pooled history, which drops some in fitting.

        Returns:
            (B, d).
        """
        if self.history == "none" or not watched.shape[1]:
            return videos.new_zeros(len(watched), videos.shape[1])
        logits = self._logits(videos, watched, asked) if self.history == "attention" else None
        pool = pooled(videos, watched, logits)  # (B, d)
        pool = pool if keep is None else pool * keep
        return nn.functional.normalize(pool + pool @ self.map, dim=-1)

    def _logits(self, videos: Tensor, watched: Tensor, asked: Tensor | None) -> Tensor:
        """What the weights of the videos watched are the softmax of, (B, L)."""
        age = torch.arange(watched.shape[1], device=videos.device, dtype=videos.dtype)  # (L,)
        own, watched = videos.detach(), to_device(watched, videos.device)  # a video is no other for being looked at
        query = own[watched[:, 0].clamp(min=0)]  # (B, d)
        if asked is not None:
            query = torch.where(asked.any(1, keepdim=True), asked, query)
        found = torch.einsum("bd,bld->bl", query, own[watched.clamp(min=0)])  # (B, L)
        return self.match * found - self.decay * age.log1p()

    def score(self, learners: Tensor, videos: Tensor, popularity: Tensor) -> Tensor:
        """Scores (B, C) of learners (B, d) for videos (C, d) of this popularity (C,)."""
        return learners @ videos.T + self.prior * popularity


@dataclass(frozen=True)
class NextVideos:
    """Every watch that has an earlier one of the same learner: what to fit on.

    Attributes:
        items: (I,) rows of all videos watched, by learner, then time.
        first: (E,) place of the learner's first watch in `items`.
        end: (E,) place after the last watch strictly before the example's.
        target: (E,) row of the video that came next.
    """

    items: Tensor
    first: Tensor
    end: Tensor
    target: Tensor

    def histories(self, rows: Tensor, length: int) -> Tensor:
        """Rows of the last videos before these examples (B,), newest first, (B, L), padded with -1."""
        end = self.end[rows].unsqueeze(1)
        width = min(length, int((self.end[rows] - self.first[rows]).max()))
        place = end - 1 - torch.arange(width)  # (B, L)
        return torch.where(place >= self.first[rows].unsqueeze(1), self.items[place.clamp(min=0)], -1)


def next_video_examples(user: Tensor, item: Tensor, time: Tensor) -> NextVideos:
    """Examples of watches (I,) that are sorted by learner, then time; those at the same time do not see each other."""
    new = torch.ones(len(user), dtype=torch.bool)  # (I,) another learner than the one before
    new[1:] = user[1:] != user[:-1]
    later = new.clone()  # another learner or another time
    later[1:] |= time[1:] != time[:-1]
    place = torch.arange(len(user))
    first = torch.where(new, place, 0).cummax(0).values if len(user) else place
    end = torch.where(later, place, 0).cummax(0).values if len(user) else place
    known = end > first
    return NextVideos(item, first[known], end[known], item[known])


def fit_tower(
    tower: HistoryTower, base: Tensor, examples: NextVideos, config: HistoryConfig, seed: int, again: bool
) -> list[float]:
    """Fit on which video came next, by a softmax over the videos that came next in the batch.

    A video stands in a batch the oftener the more it is watched; a negative that does with probability pi weighs 1 / pi
    (logQ: Yi et al. 2019), so that the sum stands for one over the whole catalogue. AdamW without decay, linear
    schedule to 0. Repeatable: what is drawn depends on the seed alone.

    Args:
        tower: changed in place.
        base: (N, d) unit vectors of the videos, where the tower is.
        examples: at least one, on the CPU, as everything that is drawn or looked up.
        config: epochs, rate, dropout, length.
        seed: of order and dropout.
        again: whether a learner may be sent back, so that earlier videos are negatives too.

    Returns:
        Mean loss of each epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    scalars = [tower.prior, tower.match, tower.decay, tower.log_temperature]
    maps = [tower.map, *([tower.added] if tower.added is not None else [])]
    groups: list[dict[str, Any]] = [{"params": maps}, {"params": scalars, "lr": FASTER * config.lr}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=0.0, fused=True)
    n, losses = len(examples.target), []
    steps = config.epochs * -(-n // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(1, steps))
    device = base.device
    share = torch.bincount(examples.target, minlength=len(base)).double() / n  # (N,)
    for _ in range(config.epochs):
        total = torch.zeros((), device=device)
        for rows in torch.split(torch.randperm(n, generator=generator), BATCH):
            watched, target = examples.histories(rows, config.length), examples.target[rows]
            keep = torch.bernoulli(torch.full((len(rows), base.shape[1]), 1 - tower.dropout), generator=generator)
            videos = tower.videos(base)
            learners = tower.learners(videos, watched, None, to_device(keep / (1 - tower.dropout), device))
            distinct, label = torch.unique(target, return_inverse=True)  # (C,), (B,)
            columns = to_device(distinct, device)
            logits = tower.score(learners, videos[columns], tower.popularity[columns]) / tower.log_temperature.exp()
            logits = logits + to_device(_correction(share[distinct], label, len(rows)), device)
            if not again:
                logits = logits.masked_fill(to_device(_taken(watched, distinct, label), device), float("-inf"))
            loss = nn.functional.cross_entropy(logits, to_device(label, device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(rows)
        losses.append(float(total) / n)
    return losses


def _correction(share: Tensor, label: Tensor, size: int) -> Tensor:
    """What is added to the logits of B examples and C distinct videos, (B, C): -log pi, 0 at an example's own.

    Args:
        share: (C,) share of the examples whose next video it is.
        label: (B,) column of each example's own.
        size: B.
    """
    chance = -torch.expm1((size - 1) * torch.log1p(-share))  # (C,) that one of the other B - 1 examples has it
    added = -chance.clamp(min=1e-12).log().float().repeat(len(label), 1)
    return added.scatter_(1, label.unsqueeze(1), 0.0)


def _taken(watched: Tensor, columns: Tensor, label: Tensor) -> Tensor:
    """Which of C distinct videos, rows (C,) ascending, each learner (B, L) has already, (B, C); never the own one."""
    place = torch.searchsorted(columns, watched.clamp(min=0)).clamp(max=len(columns) - 1)  # (B, L)
    there = (columns[place] == watched) & (watched >= 0)
    learner, _ = there.nonzero(as_tuple=True)
    taken = torch.zeros(len(watched), len(columns), dtype=torch.bool)
    taken[learner, place[there]] = True
    return taken.scatter_(1, label.unsqueeze(1), False)
