"""No sampling: every candidate video is a column of every batch."""

import torch
from torch import Tensor

from dcdt.data.tables import Tables
from dcdt.samplers.config import CatalogueSamplerConfig
from dcdt.samplers.pool import TrainingPool
from dcdt.samplers.shared_columns import SharedColumnSampler


class CatalogueSampler(SharedColumnSampler):
    """Score every query against all candidates, with all its positives labelled; an epoch has each query once.

    With `loss=infonce` that is a listwise softmax over the catalogue, without any noise from sampling. A step encodes
    every candidate, so it suits catalogues of thousands; beyond, take `in_batch`.

    Args:
        config: has no settings.
        pool: pairs, candidates and forbidden negatives.
        tables: not used; samplers share one signature.
    """

    def __init__(self, config: CatalogueSamplerConfig, pool: TrainingPool, tables: Tables) -> None:
        super().__init__(pool)
        self._all = torch.arange(len(pool.candidates))
        first = torch.full((len(pool.queries),), len(pool.pairs)).scatter_reduce_(
            0, pool.owner, torch.arange(len(pool.pairs)), "amin"
        )
        self._rows = pool.pairs[first]  # (U, 2) a pair of each query

    @property
    def pairs(self) -> Tensor:
        """One pair of each query, (U, 2): its other positives are labelled too."""
        return self._rows

    def columns(self, rows: Tensor) -> Tensor:
        """Return the positions of all candidates, (C,)."""
        return self._all
