"""Two heads that re-rank the recalled videos: a weighted sum of evidence, and the joint network over [q; t; d]."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn

from dcdt.utils.transfer import to_device

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, float("inf"))  # inf: no correction
MIN_RECALL_WEIGHT = 0.05  # the head may overrule the recall, not reverse it


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
        """Select the lists of some queries, (n,) bool or positions."""
        return CandidateLists(**{name: value[keep] for name, value in vars(self).items()})

    def to(self, device: torch.device) -> "CandidateLists":
        """Move the lists from the CPU to a device."""
        return CandidateLists(**{name: to_device(value, device) for name, value in vars(self).items()})

    def reranked(self, scores: Tensor) -> Tensor:
        """Rank the judged videos (n, J) with the recalled ones ordered by scores (n, K), ties by the recall's order.

        A video beyond the K recalled keeps its rank.
        """
        new_rank = (
            scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1
        )  # (n, K) rank of each recalled
        same = self.judged.unsqueeze(2) == self.top.unsqueeze(1)  # (n, J, K)
        moved_rank = (same * new_rank.unsqueeze(1)).sum(2)
        return torch.where(same.any(2), moved_rank, self.ranks)


def concatenate_lists(all_lists: Sequence[CandidateLists]) -> CandidateLists:
    """Concatenate lists; J is that of the widest."""
    width = max(lists.judged.shape[1] for lists in all_lists)
    fill = {"judged": -1, "grades": 0, "ranks": 0}
    columns = {}
    for name in vars(all_lists[0]):
        values = [getattr(lists, name) for lists in all_lists]
        if name in fill:
            values = [nn.functional.pad(value, (0, width - value.shape[1]), value=fill[name]) for value in values]
        columns[name] = torch.cat(values)
    return CandidateLists(**columns)


def fit_weights(lists: CandidateLists, scale: Tensor, signs: Tensor, penalty: float) -> Tensor:
    """Fit weights (E,) of the evidence in units of its deviation, that of the recall being 1.

    They minimise the listwise softmax loss (all recalled positives are equally likely, Cao et al. 2007 with
    one-hot truths) plus `penalty |w|^2` over all but the recall's own weight: a convex problem, so there is neither
    a seed nor a stopping time. Queries without a recalled positive are skipped.

    Args:
        lists: judged queries.
        scale: (E,) standard deviation of each column.
        signs: (E,) true where a weight must not be negative.
        penalty: inf keeps the recall's order.
    """
    recall_only = torch.zeros(len(scale))
    recall_only[0] = 1
    lists = lists.select(lists.label.any(1))
    if penalty == float("inf") or not len(lists.rows):
        return recall_only
    x = (lists.evidence / scale).double().numpy()  # (n, K, E)
    shares = (lists.label / lists.label.sum(1, keepdim=True)).double().numpy()  # (n, K)
    hidden = np.where(lists.weight.numpy() > 0, 0.0, -np.inf)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = x @ weights + hidden
        logits -= logits.max(1, keepdims=True)
        p = np.exp(logits)
        total = p.sum(1, keepdims=True)
        p /= total
        log_likelihood = shares * (np.where(shares > 0, logits, 0.0) - np.log(total))
        regularised = np.r_[0.0, weights[1:]]
        slope = np.einsum("nk,nke->e", p - shares, x) / len(x) + 2 * penalty * regularised
        return float(-log_likelihood.sum(1).mean() + penalty * regularised @ regularised), slope

    bounds = [(MIN_RECALL_WEIGHT, None), *((0.0, None) if sign else (None, None) for sign in signs[1:].tolist())]
    start = np.r_[1.0, np.zeros(len(scale) - 1)]
    solution = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return torch.from_numpy(solution / solution[0]).float()


def evidence_scale(lists: CandidateLists) -> Tensor:
    """Compute the standard deviation of each column over all lists, (E,); 1 for the recall's and where it is 0."""
    deviation = lists.evidence.flatten(0, 1).std(0, correction=0)
    deviation[0] = 1
    return torch.where(deviation > 0, deviation, 1.0)


def weighted_sum(evidence: Tensor, weights: Tensor) -> Tensor:
    """Score evidence (B, K, E) by weights (E,), or (B, E) for each query: (B, K)."""
    return (evidence @ weights) if weights.ndim == 1 else torch.einsum("bke,be->bk", evidence, weights)


def cross_fit(lists: CandidateLists, fold: Tensor, fit: Callable[[CandidateLists], Tensor]) -> Tensor:
    """Fit weights (n, E) for each query on the queries of the other folds.

    Args:
        lists: judged queries.
        fold: (n,) of each query.
        fit: function from lists to weights (E,).
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

    def forward(self, vectors: Tensor, videos: Tensor, position: Tensor) -> Tensor:
        """Compute corrections of the scores, (B, K).

        Args:
            vectors: (B, D) frozen query vectors.
            videos: (F, U, D) frozen field vectors of U distinct videos.
            position: (B, K) index into the U videos.
        """
        query, fields, attention = self.attend(vectors, videos, position)
        weighed = len(fields) * attention.unsqueeze(-1) * fields  # (F, B, K, R)
        joint = torch.cat([query.unsqueeze(1).expand_as(fields[0]), *weighed], dim=-1)  # (B, K, (1 + F) R)
        correction: Tensor = self.output(self.dropout(self.hidden(joint).relu())).squeeze(-1).float()
        return correction

    def attend(self, vectors: Tensor, videos: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute mapped queries (B, R), mapped fields (F, B, K, R) and eq. 3's weights of the fields (F, B, K)."""
        query = self.query(self.scale * nn.functional.normalize(vectors, dim=-1))  # (B, R)
        video_vectors = self.scale * nn.functional.normalize(videos, dim=-1)
        fields = torch.stack([tower(field)[position] for tower, field in zip(self.fields, video_vectors, strict=True)])
        weights = torch.einsum("br,fbkr->fbk", query, fields).div(query.shape[-1] ** 0.5).softmax(0)
        return query, fields, weights
