"""A faster `torch.topk` for many columns: only the blocks with the highest maxima are searched."""

import torch
from torch import Tensor

MIN_BLOCKS_PER_K = 8  # with fewer blocks torch.topk itself is as fast


def block_topk(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k highest scores of each row, highest first; which of equal ones comes last is undefined.

    On a CPU the columns are divided into blocks. The k highest are in the k blocks with the highest maxima, so these
    alone are searched. One pass over the scores finds the maxima; `torch.topk` takes many times as long.

    Args:
        scores: (B, N) without NaN.
        k: how many, at most N.

    Returns:
        Values and columns, (B, k) each.
    """
    n_columns = scores.shape[1]
    size = round((n_columns / max(k, 1)) ** 0.5)  # columns of a block: as many maxima as columns of the chosen blocks
    n_blocks = n_columns // max(size, 1)
    if scores.device.type != "cpu" or n_blocks < MIN_BLOCKS_PER_K * k:
        values, columns = scores.topk(k, dim=1)
        return values, columns
    head = scores[:, : size * n_blocks].view(len(scores), size, n_blocks)  # block b: columns b, b + n_blocks, ...
    best_blocks = head.amax(1).topk(k, dim=1, sorted=False).indices  # (B, k)
    positions = (best_blocks.unsqueeze(1) + n_blocks * torch.arange(size).unsqueeze(1)).flatten(1)  # (B, size * k)
    remainder = torch.arange(size * n_blocks, n_columns).expand(len(scores), -1)  # fewer than a block
    positions = torch.cat([positions, remainder], dim=1)
    values, index = scores.gather(1, positions).topk(k, dim=1)
    return values, positions.gather(1, index)
