"""Mine the most similar videos that may be a negative, in memory that does not grow with the catalogue."""

import torch
from torch import Tensor

from dcdt.evaluation.block_topk import block_topk
from dcdt.samplers.pool import CPU
from dcdt.utils.precision import at_least_float32
from dcdt.utils.transfer import to_device

QUERY_CHUNK = 1024  # queries scored at a time
VIDEO_BLOCK = 65_536  # videos they are scored against at a time: 256 MB of scores, 400 MB of 1536-d vectors


def mine_hard_negatives(
    queries: Tensor,
    videos: Tensor,
    candidates: Tensor,
    forbidden: Tensor,
    size: int,
    chunk: int = QUERY_CHUNK,
    block: int = VIDEO_BLOCK,
    device: torch.device = CPU,
) -> Tensor:
    """For each query the `size` most similar candidates that are not forbidden, most similar first.

    Vectors of any precision are multiplied in fp32, a chunk of queries by a block of videos; what is kept of each
    block is its best.

    Args:
        queries: (U, D).
        videos: (N, D).
        candidates: (C,) rows of `videos`, ascending.
        forbidden: (U, F) positions in `candidates`, padded with C.
        size: how many; where fewer are free, forbidden ones stand at the end.
        chunk: queries at a time.
        block: videos at a time.
        device: where they are multiplied; a block and a chunk at a time are sent there.

    Returns:
        (U, size) positions in `candidates`, on the CPU.
    """
    n_candidates = len(candidates)
    size = min(size, n_candidates)
    cells = min(chunk, len(queries)) * min(block, n_candidates)
    room = torch.empty(
        cells, dtype=at_least_float32(queries[:0]).dtype, device=device
    )  # of all scores, one after the other
    best: list[tuple[Tensor, Tensor]] = []  # values and positions (chunk, size) of each chunk of queries
    for start in range(0, n_candidates, block):
        shown = at_least_float32(_select_rows(videos, candidates[start : start + block]).to(device))  # (b, D)
        parts = zip(torch.split(queries, chunk), torch.split(forbidden, chunk), strict=True)
        for at, (asked, taken) in enumerate(parts):
            scores = room[: len(asked) * len(shown)].view(len(asked), len(shown))
            torch.mm(at_least_float32(asked.to(device)), shown.T, out=scores)  # (c, b)
            values, places = hardest_negatives(scores, taken - start, size)
            places += start
            if start == 0:
                best.append((values, places))
                continue
            values, order = block_topk(torch.cat([best[at][0], values], dim=1), min(size, start + len(shown)))
            best[at] = (values, torch.cat([best[at][1], places], dim=1).gather(1, order))
    return torch.cat([places for _, places in best]).cpu()


def hardest_negatives(scores: Tensor, forbidden: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """For each query the `size` scores that are highest and not forbidden, highest first.

    Args:
        scores: (U, C); overwritten where forbidden.
        forbidden: (U, F) columns of `scores`, on the CPU; others than 0 to C - 1 are padding.
        size: how many; where fewer are free, forbidden ones stand at the end.

    Returns:
        Their scores and their columns, (U, size) each.
    """
    query, at = ((forbidden >= 0) & (forbidden < scores.shape[1])).nonzero(as_tuple=True)
    rows, columns = (to_device(part, scores.device) for part in (query, forbidden[query, at]))
    scores[rows, columns] = float("-inf")
    return block_topk(scores, min(size, scores.shape[1]))


def _select_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Rows (r,) of a table (N, D); a slice of it where they follow one another."""
    first, last = int(rows[0]), int(rows[-1])
    return table[first : last + 1] if last - first + 1 == len(rows) else table[rows]
