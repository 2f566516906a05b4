"""The paper's towers (eq. 4 to 6)."""

from torch import Tensor, nn


class Tower(nn.Module):
    """Linear, ReLU, dropout: `q_emb = ReLU(W_q q + b_q)` (eq. 4; 5 and 6 are the same for title and description).

    Args:
        width_in: D, width of the frozen embeddings.
        width: W, width of the tower.
        dropout: probability of dropping an output in training.
    """

    def __init__(self, width_in: int, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vectors: Tensor) -> Tensor:
        """Outputs (..., W) of vectors (..., D)."""
        output: Tensor = self.dropout(self.linear(vectors).relu())
        return output
