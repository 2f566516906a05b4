"""Two heads that correct the recall's order: a weighted sum of evidence, and the joint network over [q; t; d]."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from dcdt.utils.transfer import to_device

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, float("inf"))  # inf: no correction, training is refused
MIN_RECALL_WEIGHT = 0.05  # of the recall's own weight: the head may overrule it, not turn it round


@dataclass(frozen=True)
class CandidateLists:
    """The recalled videos of judged queries.

    Attributes:
        rows: (n,) query rows.
        group: (n,) queries with equal text share one.
        top: (n, K) videos in the recall's order.
        evidence: (n, K, E), the recall's z-score first.
        label: (n, K) 1 for a positive.
        weight: (n, K) 0 for a known related video that is no positive, or that has the text of one; else 1.
        judged: (n, J) judged videos, padded with -1.
        grades: (n, J), 0 at padding.
        ranks: (n, J) the recall's rank of each, 0 at padding.
    """

    rows: Tensor
    group: Tensor
    top: Tensor
    evidence: Tensor
    label: Tensor
    weight: Tensor
    judged: Tensor
    grades: Tensor
    ranks: Tensor

    def select(self, keep: Tensor) -> "CandidateLists":
        """Those of some queries, (n,) bool or positions."""
        return CandidateLists(**{name: value[keep] for name, value in vars(self).items()})

    def to(self, device: torch.device) -> "CandidateLists":
        """The same, of the CPU, on a device."""
        return CandidateLists(**{name: to_device(value, device) for name, value in vars(self).items()})

    def reranked(self, scores: Tensor) -> Tensor:
        """Ranks (n, J) of the judged videos when the recalled ones are ordered by scores (n, K); of equals the first.

        A video beyond the K recalled keeps its rank.
        """
        place = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1  # (n, K) rank of each recalled
        same = self.judged.unsqueeze(2) == self.top.unsqueeze(1)  # (n, J, K)
        moved = (same * place.unsqueeze(1)).sum(2)
        return torch.where(same.any(2), moved, self.ranks)


def concatenate_lists(parts: Sequence[CandidateLists]) -> CandidateLists:
    """Several lists as one; J is that of the widest."""
    n = max(part.judged.shape[1] for part in parts)
    fill = {"judged": -1, "grades": 0, "ranks": 0}
    found = {}
    for name in vars(parts[0]):
        values = [getattr(part, name) for part in parts]
        if name in fill:
            values = [nn.functional.pad(value, (0, n - value.shape[1]), value=fill[name]) for value in values]
        found[name] = torch.cat(values)
    return CandidateLists(**found)


def fit_weights(lists: CandidateLists, scale: Tensor, signs: Tensor, penalty: float) -> Tensor:
    """Weights (E,) of the evidence in units of its spread, the recall's own being 1.

    They minimise the listwise softmax loss (each positive among the recalled ones has its share, Cao et al. 2007 with
    one-hot truths) plus `penalty |w|^2` over all but the recall's own weight: a convex problem, so there is neither
    a seed nor a stopping time. Queries of which nothing was recalled teach nothing.

    Args:
        lists: judged queries.
        scale: (E,) spread of each column.
        signs: (E,) true where a weight may not be negative.
        penalty: inf gives the recall's order.
    """
    none = torch.zeros(len(scale))
    none[0] = 1
    lists = lists.select(lists.label.any(1))
    if penalty == float("inf") or not len(lists.rows):
        return none
    x = (lists.evidence / scale).double().numpy()  # (n, K, E)
    shares = (lists.label / lists.label.sum(1, keepdim=True)).double().numpy()  # (n, K)
    hidden = np.where(lists.weight.numpy() > 0, 0.0, -np.inf)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = x @ weights + hidden
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        total = p.sum(1, keepdims=True)
        p /= total
        taken = shares * (np.where(shares > 0, logits, 0.0) - np.log(total))
        small = np.r_[0.0, weights[1:]]
        slope = np.einsum("nk,nke->e", p - shares, x) / len(x) + 2 * penalty * small
        return float(-taken.sum(1).mean() + penalty * small @ small), slope

    bounds = [(MIN_RECALL_WEIGHT, None), *((0.0, None) if sign else (None, None) for sign in signs[1:].tolist())]
    start = np.r_[1.0, np.zeros(len(scale) - 1)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return torch.from_numpy(found / found[0]).float()


def evidence_scale(lists: CandidateLists) -> Tensor:
    """Standard deviation of each column of the evidence over all lists, (E,); 1 where it is 0 and for the recall's."""
    found = lists.evidence.flatten(0, 1).std(0, correction=0)
    found[0] = 1
    return torch.where(found > 0, found, 1.0)


def weighted_sum(evidence: Tensor, weights: Tensor) -> Tensor:
    """Scores (B, K) of evidence (B, K, E) by weights (E,), or (B, E) of each query's own."""
    return (evidence @ weights) if weights.ndim == 1 else torch.einsum("bke,be->bk", evidence, weights)


def cross_fit(lists: CandidateLists, fold: Tensor, fit: Callable[[CandidateLists], Tensor]) -> Tensor:
    """Weights (n, E) for each query, fitted on the queries of the other folds.

    Args:
        lists: judged queries.
        fold: (n,) of each query.
        fit: weights (E,) of some lists.
    """
    weights = torch.zeros(len(fold), lists.evidence.shape[2])
    for number in sorted(set(fold.tolist())):
        weights[fold == number] = fit(lists.select(fold != number))
    return weights


class JointHead(nn.Module):
    """The paper's joint network over the concatenation `[q; t; d]`, with attention weights that depend on the pair.

    Each input has a linear map to `rank` dimensions. Eq. 3 weighs the F fields of one video for one query, scaled as
    dot products of R dimensions are: `alpha = softmax_m(W_q q . W_m m / sqrt(R))`. Then
    `[W_q q; F alpha_t W_t t; F alpha_d W_d d]` goes through one ReLU layer with dropout to one number, which starts
    at 0.

    Args:
        inputs: D, width of the frozen vectors.
        fields: F.
        rank: width of the maps.
        width: of the ReLU layer.
        dropout: of its outputs.
    """

    def __init__(self, inputs: int, fields: int, rank: int, width: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Linear(inputs, rank, bias=False)
        self.fields = nn.ModuleList(nn.Linear(inputs, rank, bias=False) for _ in range(fields))
        self.hidden = nn.Linear((1 + fields) * rank, width)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.output.weight)
        self.scale = inputs**0.5  # unit vectors have components of 1 / sqrt(D), which a layer expects at 1

    def forward(self, vectors: Tensor, videos: Tensor, place: Tensor) -> Tensor:
        """Corrections (B, K).

        Args:
            vectors: (B, D) frozen query vectors.
            videos: (F, U, D) frozen field vectors of U distinct videos.
            place: (B, K) which of them each query is joined with.
        """
        query, fields, attention = self.attend(vectors, videos, place)
        weighed = len(fields) * attention.unsqueeze(-1) * fields  # (F, B, K, R)
        joint = torch.cat([query.unsqueeze(1).expand_as(fields[0]), *weighed], dim=-1)  # (B, K, (1 + F) R)
        correction: Tensor = self.output(self.dropout(self.hidden(joint).relu())).squeeze(-1).float()
        return correction

    def attend(self, vectors: Tensor, videos: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mapped queries (B, R), mapped fields (F, B, K, R) and eq. 3's weights of the fields (F, B, K)."""
        query = self.query(self.scale * nn.functional.normalize(vectors, dim=-1))  # (B, R)
        shown = self.scale * nn.functional.normalize(videos, dim=-1)
        fields = torch.stack([tower(part)[place] for tower, part in zip(self.fields, shown, strict=True)])
        weights = torch.einsum("br,fbkr->fbk", query, fields).div(query.shape[-1] ** 0.5).softmax(0)
        return query, fields, weights
