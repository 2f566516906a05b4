"""Rank every judged video among all candidates and score each query.

All candidates are ranked, never a sample, and ties are broken by a seeded hash of the video id, so that a constant
scorer scores like chance whatever the order of the catalogue. Sources: trec_eval and ranx for the metrics (nDCG with
linear gain, Järvelin and Kekäläinen 2002).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from dcdt.evaluation.block_topk import block_topk
from dcdt.evaluation.ties import tie_positions
from dcdt.utils.transfer import to_device

DEFAULT_KS = (1, 5, 10)

_CHUNK_CELLS = 2**21  # scores ranked at once: 8 MB stay in the CPU's cache while they are counted
_LAST_KEY = torch.iinfo(torch.int64).min  # sort key of a video that is no candidate: after -inf


class NaNScores(ValueError):
    """Scores that cannot be ranked, since some are NaN."""


def tie_order(video_ids: Sequence[str], seed: int = 0) -> Tensor:
    """Compute the position of each video in a seeded-hash order, by which equal scores are ranked.

    Args:
        video_ids: ids of the catalogue, in row order; each once.
        seed: another seed gives another order.

    Returns:
        (N,) int64, a permutation of 0 to N-1. It depends on the set of ids, not on their order in the catalogue.

    Raises:
        ValueError: an id occurs twice.

    >>> tie_order(["a", "b", "c"]).tolist()
    [0, 2, 1]
    >>> tie_order(["c", "b", "a"]).tolist()
    [1, 2, 0]
    """
    return torch.from_numpy(tie_positions(video_ids, seed))


def judged_ranks(scores: Tensor, judged: Tensor, tie_order: Tensor, candidates: Tensor | None = None) -> Tensor:
    """Rank each judged video among all candidates: 1 + the number of candidates that come before it.

    Args:
        scores: (B, N) float32, higher is better; infinities are allowed, NaN is not.
        judged: (B, J) int64 rows of the catalogue, padded with -1; on the CPU, so that checking it does not wait.
        tie_order: (N,) int64 from `tie_order`, on the device of the scores; ties go to the lower position.
        candidates: (N,) bool, on the device of the scores, true where a video may be recommended; None: all.

    Returns:
        (B, J) int64 ranks from 1, on the CPU; 0 at padding.

    Raises:
        ValueError: scores that are not float32 or hold NaN, a judged video that is no candidate, shapes that disagree.
    """
    return ranks_and_ties(scores, judged, tie_order, candidates)[0]


def ranks_and_ties(
    scores: Tensor, judged: Tensor, tie_order: Tensor, candidates: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the ranks of `judged_ranks`, and whether another candidate has exactly the score of a judged video.

    Higher and equal scores are counted; the order of ties is only computed where there are any. The CPU waits once for
    scores on another device, where all counting is done.

    Returns:
        Ranks (B, J) int64, 0 at padding; ties (B, J) bool, false at padding; both on the CPU.

    Raises:
        ValueError: as in `judged_ranks`.
    """
    _check_shapes(scores, tie_order, candidates)
    _check_rows(scores, judged)
    rows = to_device(judged, scores.device)  # (B, J)
    ranks, equal_counts = _count_ranks(scores, rows, tie_order, _restricting_mask(candidates))
    outside = torch.zeros_like(rows, dtype=torch.bool)
    if candidates is not None:
        outside = (rows >= 0) & ~candidates[rows.clamp(min=0)]
    wrong = scores.amax(dim=1).isnan().any() | ~_is_permutation(tie_order, scores.shape[1]) | outside.any()
    numbers = torch.cat([wrong.long().unsqueeze(0), ranks.flatten(), equal_counts.flatten()]).cpu()  # the one wait
    if numbers[0]:
        _check_values(scores, tie_order)
        _check_candidates(rows, outside)
    host_ranks, host_counts = numbers[1:].view(2, *judged.shape)  # (B, J) each
    padding = judged.cpu() < 0
    return host_ranks.masked_fill(padding, 0), (host_counts > 1) & ~padding


def _count_ranks(scores: Tensor, judged: Tensor, tie_order: Tensor, candidates: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the ranks of the judged videos, and how many candidates have the score of each, with itself, (B, J)."""
    ranks, equal_counts = torch.zeros_like(judged), torch.zeros_like(judged)  # (B, J)
    for chunk in _row_chunks(scores):
        candidate_scores = (
            scores[chunk] if candidates is None else scores[chunk].masked_fill(~candidates, -torch.inf)
        )  # (b, N)
        judged_scores = candidate_scores.gather(1, judged[chunk].clamp(min=0))  # (b, J)
        for column in range(judged.shape[1]):  # never (b, J, N)
            ranks[chunk, column] = 1 + count_true(candidate_scores > judged_scores[:, column, None])
            equal_counts[chunk, column] = count_true(candidate_scores == judged_scores[:, column, None])
    if scores.device.type == "cpu":
        rows = ((equal_counts > 1) & (judged >= 0)).any(dim=1).nonzero().flatten()
        chunks = list(torch.split(rows, max(1, _CHUNK_CELLS // scores.shape[1])))
    else:  # finding the rows with ties would wait for the device
        chunks = [torch.arange(len(scores), device=scores.device)]
    for tied_rows in chunks:
        before, equal_counts[tied_rows] = _count_ties(scores[tied_rows], judged[tied_rows], tie_order, candidates)
        ranks[tied_rows] += before
    return ranks, equal_counts


def top_k(scores: Tensor, k: int, tie_order: Tensor, candidates: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the k best candidates of each query, in exactly the order of `judged_ranks`.

    Args:
        scores: (B, N) float32.
        k: how many; at most the number of candidates.
        tie_order: (N,) int64 from `tie_order`, on the device of the scores.
        candidates: (N,) bool or None for all.

    Returns:
        Their scores (B, k) float32 and their rows (B, k) int64, best first, on the device of the scores.

    Raises:
        ValueError: k below 1 or above the number of candidates, or scores as in `judged_ranks`. Values that are not on
            a CPU are not checked: the CPU would have to wait for them.
    """
    _check_shapes(scores, tie_order, candidates)
    on_cpu = scores.device.type == "cpu"
    available = int(candidates.sum()) if on_cpu and candidates is not None else scores.shape[1]
    if not 1 <= k <= available:
        raise ValueError(f"k is {k}, it must lie between 1 and the number of candidates, {available}")
    if not on_cpu:  # checking whether ties are cut off would wait for the device
        rows = _order_keys(scores, tie_order, candidates).topk(k, dim=1).indices  # (B, k)
        return scores.gather(1, rows), rows
    _check_values(scores, tie_order)
    restricting = None if available == scores.shape[1] else candidates
    rows = torch.empty((len(scores), k), dtype=torch.int64)  # (B, k)
    for chunk in _row_chunks(scores):
        rows[chunk] = _top_k(scores[chunk], k, tie_order, restricting)
    return scores.gather(1, rows), rows


def tie_rate(scores: Tensor, judged: Tensor, candidates: Tensor | None = None) -> Tensor:
    """Return whether a positive of a query has exactly the score of another candidate; the mean is the tie rate.

    Args:
        scores: (B, N) float32.
        judged: (B, J) int64 rows of the positives, -1 elsewhere (anywhere in the row).
        candidates: (N,) bool or None for all.

    Returns:
        (B,) float32 of zeros and ones.

    Raises:
        ValueError: as in `judged_ranks`.
    """
    any_order = torch.arange(scores.shape[-1], device=scores.device)
    return ranks_and_ties(scores, judged, any_order, candidates)[1].any(dim=1).float()


def metric_names(ks: Sequence[int] = DEFAULT_KS) -> list[str]:
    """Return the keys of `ranking_metrics`, in order.

    >>> metric_names([5])
    ['mrr', 'map', 'recall@5', 'precision@5', 'hit@5', 'ndcg@5']
    """
    return ["mrr", "map"] + [f"{name}@{k}" for k in ks for name in ("recall", "precision", "hit", "ndcg")]


def ranking_metrics(
    ranks: Tensor, grades: Tensor, positive_grade: float, ks: Sequence[int] = DEFAULT_KS
) -> dict[str, Tensor]:
    """Compute per-query metrics from the ranks of the judged videos.

    `mrr` is the reciprocal rank of the first positive, `map` the average precision; `recall@k`, `precision@k` and
    `hit@k` count positives (grade >= positive_grade) among the first k; `ndcg@k` uses every grade above 0 with linear
    gain, its ideal being over all graded videos of the query, as trec_eval and ranx `ndcg`. The sums are computed in
    float64 on the CPU: (B, J) is small, and MPS has no float64.

    Args:
        ranks: (B, J) int64 from `judged_ranks`: all judged videos of the query, 0 at padding.
        grades: (B, J) float, 0 at padding; a grade below 0 gains nothing.
        positive_grade: the lowest grade of a positive, above 0.
        ks: cut-offs; the caller makes sure that each is at most the number of candidates.

    Returns:
        `metric_names(ks)` -> (B,) float32 on the device of `ranks`.

    Raises:
        ValueError: a query without a positive (leave it out and count it), or inputs that contradict each other.

    >>> values = ranking_metrics(torch.tensor([[2, 5]]), torch.ones(1, 2), positive_grade=1, ks=[5])
    >>> {name: round(value.item(), 3) for name, value in values.items()}
    {'mrr': 0.5, 'map': 0.45, 'recall@5': 1.0, 'precision@5': 0.4, 'hit@5': 1.0, 'ndcg@5': 0.624}
    """
    host_ranks, host_grades = ranks.cpu(), grades.cpu().double()
    _check_judgments(host_ranks, host_grades, positive_grade, ks)
    positive = (host_grades >= positive_grade) & (host_ranks > 0)  # (B, J)
    n_positives = positive.sum(dim=1).double()  # (B,)
    if (n_positives == 0).any():
        raise ValueError(
            f"no video of grade {positive_grade:g} or more for {_format_rows((n_positives == 0).nonzero().flatten())}; "
            "leave queries without a positive out and count them"
        )
    ordered = _positive_ranks(host_ranks, positive)  # (B, J)
    positions = torch.arange(1, ordered.shape[1] + 1)  # (J,)
    values = {"mrr": 1 / ordered[:, 0], "map": (positions / ordered).sum(dim=1) / n_positives}
    for k in ks:
        hits = (ordered <= k).sum(dim=1).double()  # (B,)
        values[f"recall@{k}"] = hits / n_positives
        values[f"precision@{k}"] = hits / k
        values[f"hit@{k}"] = (hits > 0).double()
        values[f"ndcg@{k}"] = _ndcg(host_ranks, host_grades, k)
    return {name: value.to(ranks.device, torch.float32) for name, value in values.items()}


def _positive_ranks(ranks: Tensor, positive: Tensor) -> Tensor:
    """Sort the ranks of the positives, (B, J) float64, padded with infinity."""
    return ranks.double().masked_fill(~positive, torch.inf).sort(dim=1).values


def _ndcg(ranks: Tensor, grades: Tensor, k: int) -> Tensor:
    """Compute nDCG at k with linear gain from ranks (B, J), 0 at padding, and grades (B, J) float64: (B,) float64."""
    gains = grades.clamp(min=0)  # (B, J)
    in_top_k = (ranks > 0) & (ranks <= k)
    gained = torch.where(in_top_k, gains / torch.log2(ranks + 1.0).clamp(min=1), 0).sum(dim=1)  # (B, J) -> (B,)
    best = gains.sort(dim=1, descending=True).values[:, :k]  # (B, min(J, k))
    ideal = (best / torch.log2(torch.arange(best.shape[1]) + 2.0).double()).sum(dim=1)  # (B,)
    return gained / ideal


def count_true(mask: Tensor) -> Tensor:
    """Count the true values in each row of (B, N) bool: (B,) int64.

    As 64-bit words, up to 255 rows of eight bytes add up without a carry from one byte to the next; `sum` reads byte by
    byte, which takes ten times as long as the comparison that made the mask.
    """
    n_aligned = mask.shape[1] // 8 * 8
    total = mask[:, n_aligned:].sum(dim=1)
    aligned = mask[:, :n_aligned].clone(memory_format=torch.contiguous_format)  # at an address that eight divides
    packed = aligned.flatten().view(torch.int64).view(len(mask), n_aligned // 8)  # each byte 0 or 1
    even = packed.shape[1] // 255 * 255
    for block in (packed[:, :even].reshape(len(mask), even // 255, 255), packed[:, even:].unsqueeze(1)):
        total = total + block.sum(dim=2).view(torch.uint8).sum(dim=1)
    return total


def _count_ties(scores: Tensor, judged: Tensor, tie_order: Tensor, candidates: Tensor | None) -> tuple[Tensor, Tensor]:
    """Count candidates that precede a judged video of the same score, and all with that score, (b, J) each."""
    before, equal_counts = torch.zeros_like(judged), torch.zeros_like(judged)  # (b, J)
    for column, video in enumerate(judged.clamp(min=0).T):
        equal = scores == scores.gather(1, video[:, None])  # (b, N)
        if candidates is not None:
            equal &= candidates
        equal_counts[:, column] = count_true(equal)
        before[:, column] = count_true(equal & (tie_order < tie_order[video][:, None]))
    return before, equal_counts


def _top_k(scores: Tensor, k: int, tie_order: Tensor, candidates: Tensor | None) -> Tensor:
    """Find the rows (b, k) of the best candidates; the k + 1st shows whether ties are cut off."""
    candidate_scores = scores if candidates is None else scores.masked_fill(~candidates, -torch.inf)  # (b, N)
    values, rows = block_topk(candidate_scores, min(k + 1, candidate_scores.shape[1]))
    cut = values[:, -1] == values[:, -2] if values.shape[1] > k else torch.zeros_like(values[:, 0], dtype=torch.bool)
    by_ties = tie_order[rows[:, :k]].argsort(dim=1)  # (b, k)
    values, rows = values.gather(1, by_ties), rows.gather(1, by_ties)
    rows = rows.gather(1, values.sort(dim=1, descending=True, stable=True).indices)
    if cut.any():
        rows[cut] = _order_keys(scores[cut], tie_order, candidates).topk(k, dim=1).indices
    return rows


def _order_keys(scores: Tensor, tie_order: Tensor, candidates: Tensor | None) -> Tensor:
    """Compute integers that order videos by (score, tie order): (b, N) float32 -> (b, N) int64, all distinct.

    As integers, the bits of non-negative floats have the order of the floats; flipping all but the sign bit orders the
    negative ones too. The tie order fills the lower 32 bits.
    """
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)  # adding 0 turns -0.0 into 0.0, which it equals
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) * 2**32 - tie_order
    return keys if candidates is None else keys.masked_fill(~candidates, _LAST_KEY)


def _row_chunks(scores: Tensor) -> list[slice]:
    """Divide rows into chunks that stay in the cache of a CPU; one chunk on another device."""
    step = max(1, _CHUNK_CELLS // scores.shape[1]) if scores.device.type == "cpu" else len(scores)
    return [slice(start, start + step) for start in range(0, len(scores), step)]


def _restricting_mask(candidates: Tensor | None) -> Tensor | None:
    """Return the candidates; None if they are all videos, which is only checked on a CPU."""
    unrestricted = candidates is None or (candidates.device.type == "cpu" and bool(candidates.all()))
    return None if unrestricted else candidates


def _is_permutation(tie_order: Tensor, n: int) -> Tensor:
    """Return whether positions (n,) hold each of 0 to n - 1, as a scalar tensor."""
    is_present = torch.zeros(n + 1, dtype=torch.bool, device=tie_order.device)  # the last for out-of-range numbers
    inside = (tie_order >= 0) & (tie_order < n)
    return is_present.scatter(0, torch.where(inside, tie_order, n), True)[:n].all()


def _check_shapes(scores: Tensor, tie_order: Tensor, candidates: Tensor | None) -> None:
    if scores.dim() != 2 or scores.shape[1] == 0:
        raise ValueError(f"scores of shape {tuple(scores.shape)}: (B, N) with at least one video is needed")
    if scores.dtype != torch.float32:
        raise ValueError(f"scores are {scores.dtype}: rank in torch.float32, lower precision makes ties")
    n_videos = scores.shape[1]
    if tie_order.shape != (n_videos,):
        raise ValueError(f"tie_order {tuple(tie_order.shape)} is not a permutation of 0 to {n_videos - 1}")
    if candidates is not None and (candidates.shape != (n_videos,) or candidates.dtype != torch.bool):
        raise ValueError(f"candidates are {candidates.dtype} {tuple(candidates.shape)}, not torch.bool ({n_videos},)")


def _check_values(scores: Tensor, tie_order: Tensor) -> None:
    if scores.amax(dim=1).isnan().any():  # the maximum of a row is NaN where any score is
        raise NaNScores(f"{int(scores.isnan().sum())} of {scores.numel()} scores are NaN")
    if not _is_permutation(tie_order, scores.shape[1]):
        raise ValueError(f"tie_order {tuple(tie_order.shape)} is not a permutation of 0 to {scores.shape[1] - 1}")


def _check_rows(scores: Tensor, judged: Tensor) -> None:
    n_queries, n_videos = scores.shape
    if judged.dim() != 2 or len(judged) != n_queries or judged.dtype != torch.int64:
        raise ValueError(f"judged is {judged.dtype} {tuple(judged.shape)}, not torch.int64 ({n_queries}, J)")
    wrong = (judged < -1) | (judged >= n_videos)
    if wrong.any():
        raise ValueError(f"judged video {int(judged[wrong][0])} is no row of {n_videos} videos, nor the padding -1")


def _check_candidates(judged: Tensor, outside: Tensor) -> None:
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} judged videos are no candidates, first video row {int(judged[outside][0])} "
            f"({_format_rows(outside.any(dim=1).nonzero().flatten())}); leave their judgments out"
        )


def _check_judgments(ranks: Tensor, grades: Tensor, positive_grade: float, ks: Sequence[int]) -> None:
    if ranks.dim() != 2 or ranks.shape != grades.shape or ranks.shape[1] == 0:
        raise ValueError(
            f"ranks {tuple(ranks.shape)} and grades {tuple(grades.shape)} must both be (B, J), J at least 1"
        )
    if not positive_grade > 0:
        raise ValueError(f"positive_grade is {positive_grade}, it must be above 0, the grade of unjudged videos")
    if not ks or min(ks) < 1:
        raise ValueError(f"ks are {list(ks)}: cut-offs of at least 1 are needed")
    if not grades.isfinite().all() or (grades[ranks == 0] != 0).any() or (ranks < 0).any():
        raise ValueError("grades must be finite, ranks at least 0, and the grade 0 where the rank is 0 (padding)")
    ordered = ranks.sort(dim=1).values  # (B, J)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] > 0)  # (B, J - 1)
    if twice.any():
        raise ValueError(f"two judged videos share a rank for {_format_rows(twice.any(dim=1).nonzero().flatten())}")


def _format_rows(rows: Tensor) -> str:
    first_rows = ", ".join(str(row) for row in rows[:10].tolist())
    return f"{len(rows)} queries, rows {first_rows}" + (", ..." if len(rows) > 10 else "")


def quality(metrics: dict[str, Tensor], ks: Sequence[int]) -> Tensor:
    """Compute the criterion of model selection: the mean of reciprocal rank and nDCG at the largest k, (n,)."""
    return (metrics["mrr"].double() + metrics[f"ndcg@{max(ks)}"].double()) / 2
