"""Token ids of all texts of a collection, and what the frozen layers of an encoder make of them: ragged tables."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class TokenTable:
    """The tokens of the distinct texts of a collection, those of a text side by side.

    Attributes:
        ids: (T,) token ids.
        offsets: (n + 1,) the first token of each text, and T; on the CPU.
        queries: (Q,) number of the text of each query, on the CPU.
        fields: for each field (N,) the number of each video's text, on the CPU.
        embedder: configuration of the encoder, an `embedder=local`.
        layer: number of frozen layers.
        states: (T, H) their output in half precision; None: it is computed in each batch.
    """

    ids: Tensor
    offsets: Tensor
    queries: Tensor
    fields: Mapping[str, Tensor]
    embedder: Any
    layer: int
    states: Tensor | None = None

    def to(self, device: torch.device | None) -> "TokenTable":
        """Move ids and states to a device in place; returns itself."""
        self.ids = self.ids.to(device)
        if self.states is not None:
            self.states = self.states.to(device)
        return self

    def padded(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """Find the tokens of texts (B,): rows of the tables (B, L), and which of them are no padding, (B, L)."""
        starts = self.offsets[texts].unsqueeze(1)  # (B, 1)
        lengths = self.offsets[texts + 1].unsqueeze(1) - starts
        at = torch.arange(int(lengths.max()))
        mask = at < lengths  # (B, L)
        return torch.where(mask, starts + at, starts).to(self.ids.device), mask.to(self.ids.device)

    def batches(self, texts: Tensor, limit: int) -> Iterator[Tensor]:
        """Divide texts (m,), from the shortest to the longest, into batches of at most `limit` padded tokens.

        Returns:
            Positions in `texts` of each batch.
        """
        lengths = self.offsets[texts + 1] - self.offsets[texts]
        order = lengths.argsort(stable=True)
        start = 0
        for end in range(1, len(order) + 1):
            if end == len(order) or int(lengths[order[end]]) * (end + 1 - start) > limit:
                yield order[start:end]
                start = end
