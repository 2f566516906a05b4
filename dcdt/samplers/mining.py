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
    """Find the `size` most similar candidates of each query that are not forbidden, most similar first.

    Vectors of any precision are multiplied in fp32, a chunk of queries by a block of videos, of which the best are
    kept.

    Args:
        queries: (U, D).
        videos: (N, D).
        candidates: (C,) rows of `videos`, ascending.
        forbidden: (U, F) positions in `candidates`, padded with C.
        size: how many; where fewer are allowed, forbidden ones fill the end.
        chunk: queries at a time.
        block: videos at a time.
        device: of the products; a block and a chunk at a time are moved to it.

    Returns:
        (U, size) positions in `candidates`, on the CPU.
    """
    n_candidates = len(candidates)
    size = min(size, n_candidates)
    cells = min(chunk, len(queries)) * min(block, n_candidates)
    buffer = torch.empty(
        cells, dtype=at_least_float32(queries[:0]).dtype, device=device
    )  # of all scores, one after the other
    best: list[tuple[Tensor, Tensor]] = []  # values and positions (chunk, size) of each chunk of queries
    for start in range(0, n_candidates, block):
        video_block = at_least_float32(_select_rows(videos, candidates[start : start + block]).to(device))  # (b, D)
        chunks = zip(torch.split(queries, chunk), torch.split(forbidden, chunk), strict=True)
        for i, (query_chunk, forbidden_chunk) in enumerate(chunks):
            scores = buffer[: len(query_chunk) * len(video_block)].view(len(query_chunk), len(video_block))
            torch.mm(at_least_float32(query_chunk.to(device)), video_block.T, out=scores)  # (c, b)
            values, positions = hardest_negatives(scores, forbidden_chunk - start, size)
            positions += start
            if start == 0:
                best.append((values, positions))
                continue
            values, order = block_topk(torch.cat([best[i][0], values], dim=1), min(size, start + len(video_block)))
            best[i] = (values, torch.cat([best[i][1], positions], dim=1).gather(1, order))
    return torch.cat([positions for _, positions in best]).cpu()


def hardest_negatives(scores: Tensor, forbidden: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Find the `size` highest scores of each query that are not forbidden, highest first.

    Args:
        scores: (U, C); overwritten where forbidden.
        forbidden: (U, F) columns of `scores`, on the CPU; others than 0 to C - 1 are padding.
        size: how many; where fewer are allowed, forbidden ones fill the end.

    Returns:
        Their scores and their columns, (U, size) each.
    """
    query, index = ((forbidden >= 0) & (forbidden < scores.shape[1])).nonzero(as_tuple=True)
    rows, columns = (to_device(coordinates, scores.device) for coordinates in (query, forbidden[query, index]))
    scores[rows, columns] = float("-inf")
    return block_topk(scores, min(size, scores.shape[1]))


def _select_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Select rows (r,) of a table (N, D); a view where they are consecutive."""
    first, last = int(rows[0]), int(rows[-1])
    return table[first : last + 1] if last - first + 1 == len(rows) else table[rows]
