"""DCDT with hierarchical attention over the learner's history: within sessions or topics, then across them."""

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from dcdt.data.datamodule import RankingDataModule
from dcdt.data.interactions import Interactions
from dcdt.data.types import Collection, Rows, raw_texts
from dcdt.models.config import HierarchicalConfig
from dcdt.models.history import HistoryTowers
from dcdt.models.history_tower import HistoryTower, NextVideos

SECOND_LEVEL = ("unit_mass", "unit_match", "unit_decay", "unit_count")


class HierarchicalTower(HistoryTower):
    """Attention within each unit of a history (a session, or a topic), then across its units.

    Within unit u video j weighs `exp(l_j) / S_u`, with the logits l of `HistoryTower` and S_u their sum of exp, which
    makes the unit's vector s_u. A unit weighs the softmax of `log S_u + c_u`, so that a video weighs that of `l_j +
    c_u`, where `c_u = m log S_u + b (q . s_u / |s_u|) - d log(1 + age_u) + n log(videos in u)`: age_u is the position
    from the newest unit on, q the question, or the newest video without one. At the start m, b, d and n are 0: the
    second level is even, and attention is flat.
    """

    def __init__(self, config: HierarchicalConfig, n_videos: int, width: int) -> None:
        super().__init__(config, n_videos, width)
        self.unit_mass, self.unit_match, self.unit_decay, self.unit_count = (
            nn.Parameter(torch.tensor(0.0)) for _ in SECOND_LEVEL
        )

    def logits(self, query: Tensor, vectors: Tensor, units: Tensor | None) -> Tensor:
        """Compute the attention logits (B, L) of videos (B, L, d) of units (B, L) by queries (B, d)."""
        logits = super().logits(query, vectors, None)
        assert units is not None
        same = units.unsqueeze(2) == units.unsqueeze(1)  # (B, L, L); padding is a unit of its own
        within = logits.unsqueeze(1).masked_fill(~same, torch.finfo(logits.dtype).min)  # (B, L, L)
        unit_vectors = nn.functional.normalize(within.softmax(2) @ vectors, dim=-1)  # (B, L, d) of each video's unit
        first = same.int().argmax(2)  # (B, L) position of the newest video of the unit
        is_first = first == torch.arange(first.shape[1], device=first.device)
        age = (is_first.cumsum(1) - 1).gather(1, first).to(logits.dtype)
        similarity = torch.einsum("bd,bld->bl", query, unit_vectors)
        correction = self.unit_mass * within.logsumexp(2) + self.unit_match * similarity
        return logits + correction - self.unit_decay * age.log1p() + self.unit_count * same.sum(2).log()


class HierarchicalTowers(HistoryTowers):
    """`dcdt_history` with `HierarchicalTower`: first fitted as that model is, then the second level alone.

    The second level stays even, so that the model is `dcdt_history` to the digit, unless the validation queries gain by
    it. Units are sessions, which end where a learner watches nothing for `gap_hours`, or topics: the values of
    `topic_key` in the videos' metadata, or `n_topics` clusters of their vectors.
    """

    config: HierarchicalConfig
    tower_type = HierarchicalTower

    def find_units(self, collection: Collection, watches: Interactions) -> Rows:
        """Number the unit of every watch, (I,)."""
        if self.config.units == "sessions":
            gap = np.diff(watches.time, prepend=-np.inf) > 3600 * self.config.gap_hours
            return np.cumsum(gap | (np.diff(watches.user, prepend=-1) != 0))
        if self.config.topic_key:
            collection.check_fields([self.config.topic_key])
            names = raw_texts(collection.videos, self.config.topic_key)
            topic = np.unique(np.array(names), return_inverse=True)[1].reshape(-1)
        else:
            base = self._base().cpu().double().numpy()  # (N, d)
            topic = kmeans2(base, min(self.config.n_topics, len(base)), minit="++", seed=0)[1]
        return np.asarray(topic[watches.item], dtype=np.int64)

    def fit(self, examples: NextVideos, data: RankingDataModule) -> None:
        """Fit the tower as `dcdt_history`, then its second level, which validation may refuse."""
        parameters = dict(self.tower.named_parameters())
        for name, parameter in parameters.items():
            parameter.requires_grad_(name not in SECOND_LEVEL)
        super().fit(examples, data)
        flat = self._validation_mrr(data)
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in SECOND_LEVEL)
        super().fit(examples, data)
        if self._validation_mrr(data) <= flat:
            for name in SECOND_LEVEL:
                parameters[name].data.zero_()

    def _validation_mrr(self, data: RankingDataModule) -> float:
        with torch.no_grad():
            value_of = self._validate_weights(data)
        return max(value_of.values()) if data.collection.has_questions else value_of[1.0]
