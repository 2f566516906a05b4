"""No sampling at all: every candidate video stands in the columns of every batch."""

import torch
from torch import Tensor

from dcdt.data.tables import Tables
from dcdt.samplers.columns import ColumnSampler
from dcdt.samplers.config import CatalogueSamplerConfig
from dcdt.samplers.pool import TrainingPool


class CatalogueSampler(ColumnSampler):
    """Every query sees the whole catalogue of training, with all its positives labelled; an epoch has it once.

    With `loss=infonce` that is a listwise softmax over the catalogue, without any noise from sampling. A step encodes
    every candidate, so it suits catalogues of thousands; beyond, take `in_batch`.

    Args:
        config: has no setting.
        pool: pairs, candidates and what is forbidden.
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
        """(U, 2) one pair of each query: its other positives are labelled beside it."""
        return self._rows

    def columns(self, rows: Tensor) -> Tensor:
        """All candidates, (C,)."""
        return self._all
