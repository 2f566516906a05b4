"""Near duplicates of a catalogue, and how often a model confuses them."""

import torch
from torch import Tensor


def closest_pairs(vectors: Tensor, k: int) -> Tensor:
    """Find the k pairs of rows with the highest cosine, nearest first: (at most k, 2), each pair once.

    Only the nearest row of each row is considered, in chunks, so that memory does not grow with N squared.

    Args:
        vectors: (N, D).
        k: how many pairs.
    """
    unit = torch.nn.functional.normalize(vectors.float(), dim=-1)
    values, rows = [], []
    for start in range(0, len(unit), 1024):
        cosine = unit[start : start + 1024] @ unit.T  # (chunk, N)
        index = torch.arange(len(cosine))
        cosine[index, start + index] = float("-inf")
        best = cosine.max(dim=1)
        values.append(best.values)
        rows.append(torch.stack([start + index.to(best.indices.device), best.indices], dim=1))
    value, pair = torch.cat(values), torch.cat(rows).sort(dim=1).values  # (N,), (N, 2)
    order = value.argsort(descending=True, stable=True).tolist()
    distinct = dict.fromkeys(tuple(pair[index].tolist()) for index in order if value[index] > float("-inf"))
    return torch.tensor(list(distinct)[:k], dtype=torch.int64).reshape(-1, 2)


def confusion(scores: Tensor, positive: Tensor, videos: Tensor) -> tuple[Tensor, Tensor]:
    """Compute how often another video is ranked above a positive.

    Args:
        scores: (Q, N) of Q queries, -inf where a video is no candidate.
        positive: (Q, N) bool, the positives of each query.
        videos: (M,) rows to compare.

    Returns:
        (M, M) fraction of the queries with positive i, but not j, that rank j above i (NaN where there is none),
        and (M, M) the number of those queries.
    """
    video_scores, answers = scores[:, videos], positive[:, videos] & (scores[:, videos] > float("-inf"))
    distinguishing = answers.unsqueeze(2) & ~positive[:, videos].unsqueeze(1)  # (Q, M, M)
    above = distinguishing & (video_scores.unsqueeze(1) > video_scores.unsqueeze(2))
    number = distinguishing.sum(0)
    return torch.where(number > 0, above.sum(0) / number, float("nan")), number
