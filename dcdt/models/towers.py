"""The towers of the paper (eq. 4 to 6), and a low-rank map that starts at zero."""

from torch import Tensor, nn


class Tower(nn.Module):
    """Linear, ReLU, dropout: `q_emb = ReLU(W_q q + b_q)` (eq. 4; 5 and 6 are the same for title and description).

    Args:
        width_in: D, width of the frozen embeddings.
        width: W, width of the tower.
        dropout: probability of dropping an output in training.
        is_linear: whether the tower is `W_q q` alone, without bias and ReLU, as eq. 3 takes it.
    """

    def __init__(self, width_in: int, width: int, dropout: float, is_linear: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width, bias=not is_linear)
        self.is_linear = is_linear
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map vectors (..., D) to (..., W)."""
        product = self.linear(vectors)
        output: Tensor = self.dropout(product if self.is_linear else product.relu())
        return output


class LowRankMap(nn.Module):
    """A ReLU map of low rank that starts at zero: `W_2 ReLU(W_1 x + b_1)` with `W_2 = 0`.

    Args:
        width_in: D, width of the input.
        width: W, width of the output.
        rank: width in between.
    """

    def __init__(self, width_in: int, width: int, rank: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width_in, rank)
        self.outer = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(self, vectors: Tensor) -> Tensor:
        """Map vectors (..., D) to (..., W)."""
        output: Tensor = self.outer(self.inner(vectors).relu())
        return output
