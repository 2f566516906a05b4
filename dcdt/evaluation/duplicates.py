"""Which videos a model confuses with their near duplicates: tensors in, numbers out."""

import torch
from torch import Tensor


def closest_pairs(vectors: Tensor, k: int) -> Tensor:
    """The k pairs of different rows with the highest cosine, nearest first: (at most k, 2), each pair once.

    Only the nearest row of each row is considered, in chunks, so that a large catalogue is never squared in memory.

    Args:
        vectors: (N, D).
        k: how many pairs.
    """
    unit = torch.nn.functional.normalize(vectors.float(), dim=-1)
    values, rows = [], []
    for start in range(0, len(unit), 1024):
        cosine = unit[start : start + 1024] @ unit.T  # (chunk, N)
        at = torch.arange(len(cosine))
        cosine[at, start + at] = float("-inf")
        best = cosine.max(dim=1)
        values.append(best.values)
        rows.append(torch.stack([start + at.to(best.indices.device), best.indices], dim=1))
    value, pair = torch.cat(values), torch.cat(rows).sort(dim=1).values  # (N,), (N, 2)
    order = value.argsort(descending=True, stable=True).tolist()
    distinct = dict.fromkeys(tuple(pair[at].tolist()) for at in order if value[at] > float("-inf"))
    return torch.tensor(list(distinct)[:k], dtype=torch.int64).reshape(-1, 2)


def confusion(scores: Tensor, positive: Tensor, videos: Tensor) -> tuple[Tensor, Tensor]:
    """How often another video stands above the one that answers.

    Args:
        scores: (Q, N) of Q queries, -inf where a video is no candidate.
        positive: (Q, N) bool, the videos that answer a query.
        videos: (M,) rows to look at.

    Returns:
        (M, M) share of the queries answered by video i, but not by j, that rank j above i (NaN where there is none),
        and (M, M) the number of those queries.
    """
    shown, answers = scores[:, videos], positive[:, videos] & (scores[:, videos] > float("-inf"))
    asked = answers.unsqueeze(2) & ~positive[:, videos].unsqueeze(1)  # (Q, M, M)
    above = asked & (shown.unsqueeze(1) > shown.unsqueeze(2))
    number = asked.sum(0)
    return torch.where(number > 0, above.sum(0) / number, float("nan")), number
