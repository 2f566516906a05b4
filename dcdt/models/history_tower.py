"""A query tower over the videos a learner watched before, fitted to predict the next one."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dcdt.data.histories import pool_history
from dcdt.models.config import HistoryConfig
from dcdt.utils.transfer import to_device

BATCH_SIZE, SCALAR_LR_FACTOR = 1024, 10.0  # examples a step; learning rate of the scalars over that of the maps


class HistoryTower(nn.Module):
    """Pool a learner's videos, map the result and compare it with every video.

    `p = normalise(x + x M)` with x the direction of the weighted mean of the videos watched and M from zero, so that it
    starts as the mean. The score of a video v is `p . v + a log(1 + times watched)`, which is a dot product with a
    vector of the video alone. `history=attention`: video j weighs `exp(b (q . v_j) - c log(1 + age_j))` with age_j its
    position from the newest (0) on, and q the question, or the newest video without one; `mean`: all weigh the same;
    `none`: only the second term of the score remains. `videos=learned` adds a fitted vector, from zero, to each video's
    own, so that the order of watches is learned beside the texts.

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
        """Encode the frozen vectors of all videos (N, d) as unit vectors (N, d)."""
        return base if self.added is None else nn.functional.normalize(base + self.added, dim=-1)

    def learners(
        self,
        videos: Tensor,
        watched: Tensor,
        questions: Tensor | None,
        keep: Tensor | None = None,
        units: Tensor | None = None,
    ) -> Tensor:
        """Encode learners as unit vectors, 0 without a history.

        Args:
            videos: (N, d) from `videos`.
            watched: (B, L) rows of videos, newest first, padded with -1, on the CPU.
            questions: (B, d) vectors, zero where there is none; None: no questions at all.
            keep: (B, d) factor of each number of the pooled history: dropout in fitting.
            units: (B, L) unit of each video, on the CPU, of towers that tell units apart.

        Returns:
            (B, d).
        """
        if self.history == "none" or not watched.shape[1]:
            return videos.new_zeros(len(watched), videos.shape[1])
        logits = self._logits(videos, watched, questions, units) if self.history == "attention" else None
        pooled_vectors = pool_history(videos, watched, logits)  # (B, d)
        pooled_vectors = pooled_vectors if keep is None else pooled_vectors * keep
        return nn.functional.normalize(pooled_vectors + pooled_vectors @ self.map, dim=-1)

    def _logits(self, videos: Tensor, watched: Tensor, questions: Tensor | None, units: Tensor | None) -> Tensor:
        """Compute the attention logits of the videos watched, (B, L)."""
        video_vectors, watched = videos.detach(), to_device(watched, videos.device)  # no gradient through the attention
        query = video_vectors[watched[:, 0].clamp(min=0)]  # (B, d)
        if questions is not None:
            query = torch.where(questions.any(1, keepdim=True), questions, query)
        units = None if units is None else to_device(units, videos.device)
        return self.logits(query, video_vectors[watched.clamp(min=0)], units)

    def logits(self, query: Tensor, vectors: Tensor, units: Tensor | None) -> Tensor:
        """Compute the attention logits (B, L) of videos (B, L, d), the newest first, by queries (B, d)."""
        age = torch.arange(vectors.shape[1], device=vectors.device, dtype=vectors.dtype)  # (L,)
        return self.match * torch.einsum("bd,bld->bl", query, vectors) - self.decay * age.log1p()

    def score(self, learners: Tensor, videos: Tensor, popularity: Tensor) -> Tensor:
        """Score learners (B, d) with videos (C, d) of a popularity (C,): (B, C)."""
        return learners @ videos.T + self.prior * popularity


@dataclass(frozen=True)
class NextVideos:
    """Training examples: every watch that has an earlier one of the same learner.

    Attributes:
        items: (I,) rows of all videos watched, by learner, then time.
        first: (E,) position of the learner's first watch in `items`.
        end: (E,) position after the last watch strictly before the example's.
        target: (E,) row of the video that came next.
        units: the same with units (`HierarchicalTowers`) in place of videos; None: not told apart.
    """

    items: Tensor
    first: Tensor
    end: Tensor
    target: Tensor
    units: "NextVideos | None" = None

    def histories(self, rows: Tensor, length: int) -> Tensor:
        """Return the rows of the last videos before examples (B,), newest first, (B, L), padded with -1."""
        end = self.end[rows].unsqueeze(1)
        width = min(length, int((self.end[rows] - self.first[rows]).max()))
        position = end - 1 - torch.arange(width)  # (B, L)
        return torch.where(position >= self.first[rows].unsqueeze(1), self.items[position.clamp(min=0)], -1)


def next_video_examples(user: Tensor, item: Tensor, time: Tensor, units: Tensor | None = None) -> NextVideos:
    """Make examples of watches (I,) sorted by learner, then time; simultaneous watches are not each other's history."""
    new = torch.ones(len(user), dtype=torch.bool)  # (I,) another learner than the one before
    new[1:] = user[1:] != user[:-1]
    later = new.clone()  # another learner or another time
    later[1:] |= time[1:] != time[:-1]
    position = torch.arange(len(user))
    first = torch.where(new, position, 0).cummax(0).values if len(user) else position
    end = torch.where(later, position, 0).cummax(0).values if len(user) else position
    has_history = end > first
    examples = NextVideos(item, first[has_history], end[has_history], item[has_history])
    return examples if units is None else replace(examples, units=replace(examples, items=units))


def fit_tower(
    tower: HistoryTower, base: Tensor, examples: NextVideos, config: HistoryConfig, seed: int, again: bool
) -> list[float]:
    """Fit a tower to predict the next video, by a softmax over the next videos of the batch.

    A video is in a batch the more often the more it is watched; a negative that is with probability pi weighs 1 / pi
    (logQ: Yi et al. 2019), so that the sum estimates one over the whole catalogue. AdamW without decay, linear
    schedule to 0. Repeatable: all random numbers depend on the seed alone.

    Args:
        tower: changed in place.
        base: (N, d) unit vectors of the videos, on the device of the tower.
        examples: at least one, on the CPU, as everything that is drawn or looked up.
        config: epochs, rate, dropout, length.
        seed: of order and dropout.
        again: whether a video may be recommended again, so that earlier videos are negatives too.

    Returns:
        Mean loss of each epoch.
    """
    generator = torch.Generator().manual_seed(seed)
    fitted = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    maps, scalars = ([one for one in fitted if bool(one.ndim) == has_dimensions] for has_dimensions in (True, False))
    groups: list[dict[str, Any]] = [{"params": maps}, {"params": scalars, "lr": SCALAR_LR_FACTOR * config.lr}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=0.0, fused=True)
    n, losses = len(examples.target), []
    steps = config.epochs * -(-n // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=max(1, steps))
    device = base.device
    share = torch.bincount(examples.target, minlength=len(base)).double() / n  # (N,)
    for _ in range(config.epochs):
        total = torch.zeros((), device=device)
        for rows in torch.split(torch.randperm(n, generator=generator), BATCH_SIZE):
            watched, target = examples.histories(rows, config.length), examples.target[rows]
            keep = torch.bernoulli(torch.full((len(rows), base.shape[1]), 1 - tower.dropout), generator=generator)
            videos = tower.videos(base)
            units = None if examples.units is None else examples.units.histories(rows, config.length)
            learners = tower.learners(videos, watched, None, to_device(keep / (1 - tower.dropout), device), units)
            distinct, label = torch.unique(target, return_inverse=True)  # (C,), (B,)
            columns = to_device(distinct, device)
            logits = tower.score(learners, videos[columns], tower.popularity[columns]) / tower.log_temperature.exp()
            logits = logits + to_device(_logq_correction(share[distinct], label, len(rows)), device)
            if not again:
                logits = logits.masked_fill(to_device(_watched_mask(watched, distinct, label), device), float("-inf"))
            loss = nn.functional.cross_entropy(logits, to_device(label, device))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(rows)
        losses.append(float(total) / n)
    return losses


def _logq_correction(share: Tensor, label: Tensor, size: int) -> Tensor:
    """Compute the logQ correction of the logits of B examples and C distinct videos, (B, C): -log pi, 0 at the target.

    Args:
        share: (C,) fraction of the examples whose target it is.
        label: (B,) column of each example's target.
        size: B.
    """
    chance = -torch.expm1((size - 1) * torch.log1p(-share))  # (C,) that one of the other B - 1 examples has it
    added = -chance.clamp(min=1e-12).log().float().repeat(len(label), 1)
    return added.scatter_(1, label.unsqueeze(1), 0.0)


def _watched_mask(watched: Tensor, columns: Tensor, label: Tensor) -> Tensor:
    """Mark which of the distinct videos, ascending rows (C,), each learner (B, L) watched, (B, C); never the target."""
    index = torch.searchsorted(columns, watched.clamp(min=0)).clamp(max=len(columns) - 1)  # (B, L)
    is_present = (columns[index] == watched) & (watched >= 0)
    learner, _ = is_present.nonzero(as_tuple=True)
    mask = torch.zeros(len(watched), len(columns), dtype=torch.bool)
    mask[learner, index[is_present]] = True
    return mask.scatter_(1, label.unsqueeze(1), False)
