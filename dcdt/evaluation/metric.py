"""A torchmetrics Metric that collects per-query values over batches and processes."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from dcdt.evaluation.ranking import DEFAULT_KS, metric_names
from dcdt.utils.transfer import to_device


class RankingMetrics(Metric):
    """Collect the values of every query and average them, each query once.

    The result does not depend on the order of updates. A query row that occurs twice (a distributed sampler repeats
    some to fill the last batch) counts once, with the mean of its values. Every process must be given at least one
    batch, which may be empty.

    Args:
        ks: cut-offs, as given to `ranking_metrics`.
    """

    full_state_update = False
    rows: list[Tensor]
    values: list[Tensor]

    def __init__(self, ks: Sequence[int] = DEFAULT_KS) -> None:
        super().__init__()
        self.names = metric_names(ks)
        self.add_state("rows", default=[], dist_reduce_fx="cat")
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, query_rows: Tensor, metrics: Mapping[str, Tensor]) -> None:
        """Add a batch.

        Args:
            query_rows: (B,) int64.
            metrics: name -> (B,), as `ranking_metrics` returns them.

        Raises:
            ValueError: names or lengths that differ from what is expected.
        """
        if set(metrics) != set(self.names):
            raise ValueError(f"metrics are {sorted(metrics)}, expected {sorted(self.names)}")
        lengths = {name: tuple(value.shape) for name, value in metrics.items() if value.shape != query_rows.shape}
        if query_rows.dim() != 1 or lengths:
            raise ValueError(
                f"query_rows has shape {tuple(query_rows.shape)}, metrics have {lengths}: all must be (B,)"
            )
        self.rows.append(to_device(query_rows.detach(), self.device))
        values = torch.stack([metrics[name].detach() for name in self.names], dim=1)  # (B, M)
        self.values.append(to_device(values.float(), self.device))

    def compute(self) -> dict[str, Tensor]:
        """Compute the mean of each metric over the queries, scalar float32.

        Raises:
            ValueError: no query was added.
        """
        _, values = self._collected()
        means = values.mean(dim=0).to(self.device, torch.float32)  # (M,)
        return dict(zip(self.names, means, strict=True))

    def per_query(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Return query rows (Q,), ascending, and each metric (Q,) float32, of all processes, on the CPU.

        Raises:
            ValueError: no query was added.
        """
        with self.sync_context():
            rows, values = self._collected()
        return rows, dict(zip(self.names, values.float().unbind(dim=1), strict=True))

    def _collected(self) -> tuple[Tensor, Tensor]:
        """Return distinct query rows (Q,), ascending, and values (Q, M) float64 (sums of float32 are then exact)."""
        if sum(len(rows) for rows in _as_list(self.rows)) == 0:
            raise ValueError("no query was scored: at least 1 is needed (has the split any query with a positive?)")
        query_rows = dim_zero_cat(self.rows).cpu()  # (R,)
        values = dim_zero_cat(self.values).cpu().double()  # (R, M)
        rows, inverse, counts = np.unique(
            query_rows.numpy(), return_inverse=True, return_counts=True
        )  # (Q,), (R,), (Q,)
        sums = values.new_zeros((len(rows), len(self.names))).index_add_(0, torch.from_numpy(inverse), values)  # (Q, M)
        return torch.from_numpy(rows), sums / torch.from_numpy(counts)[:, None]


def _as_list(state: list[Tensor] | Tensor) -> list[Tensor]:
    """Return the state as a list: it is one tensor after it has been gathered from all processes."""
    return state if isinstance(state, list) else [state]
