"""Token ids of all texts of a collection, and what the frozen layers of an encoder make of them: ragged tables."""

from collections.abc import Mapping
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
        lengths = self.lengths(texts).unsqueeze(1)  # (B, 1)
        place = torch.arange(int(lengths.max()))
        mask = place < lengths  # (B, L)
        return torch.where(mask, starts + place, starts).to(self.ids.device), mask.to(self.ids.device)

    def lengths(self, texts: Tensor) -> Tensor:
        """Count the tokens of texts (B,): (B,)."""
        return self.offsets[texts + 1] - self.offsets[texts]
