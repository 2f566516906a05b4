"""Fusion of BM25, ridge towers and the trained encoder."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dcdt.data.datamodule import RankingDataModule
from dcdt.data.tables import Tables
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers.division import BothEncoders
from dcdt.embeddings.providers.pooling import load_model
from dcdt.models.components import make_component
from dcdt.models.config import OptimizerConfig
from dcdt.models.encoder import EncoderTowers
from dcdt.models.recommender import Recommender

from .config import HybridEncoderConfig
from .hybrid import Hybrid


class HybridEncoder(Hybrid):
    """Fuse a model that needs no epochs, by default `hybrid_towers`, with `dcdt_encoder`, which is trained.

    `w z(first) + (1 - w) z(encoder)`, with w chosen before each validation by the MRR of the validation queries, which
    the encoder is not trained on; the first model scores them as if they had been left out of its fit.

    Args:
        config: of both models.
        tables: the frozen vectors and the tokens of all texts.
        loss: of the encoder.
        optimizer: of the encoder.
    """

    trained_by_epochs: ClassVar[bool] = True
    starts_useful: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = True

    def __init__(
        self, config: HybridEncoderConfig, tables: Tables, loss: nn.Module, optimizer: OptimizerConfig
    ) -> None:
        Recommender.__init__(self, tables, optimizer)
        self.config = config
        self.first = make_component(config.first, tables, "model=hybrid_encoder")
        self.second: EncoderTowers = EncoderTowers(config.second, tables, loss, optimizer)
        self.second.record_loss = self.record_loss  # type: ignore[method-assign] # which Lightning lets this model log
        n_frozen, tokens = tables.width, self.second.tables.tokens
        assert tokens is not None
        n_all = n_frozen + self.second.n_trained * (n_frozen // len(tokens.embedder.layer_weights))
        self.second.stretches = [(0, self.second.frozen_width), (n_frozen, n_all)]
        for part in self.first.components:
            part.stretches = [(0, n_frozen)]
        self.reads_validation = self.first.reads_validation
        self.needs_question = True
        self.register_buffer("weight", torch.tensor(0.5))
        self.register_buffer("order", torch.arange(tables.videos.shape[1]))

    def on_prepare(self, data: RankingDataModule) -> None:
        """Fit the first model."""
        self.prepare_components(data)

    def on_validation_epoch_start(self) -> None:
        """Choose the weight."""
        super().on_validation_epoch_start()
        self.choose_weight(self.data)

    def on_train_epoch_start(self) -> None:
        """Let the sampler mine with the current encoder."""
        self.second.on_train_epoch_start()

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor:
        """Compute the loss of the encoder."""
        return self.second.training_step(batch, batch_index)

    def served_encoder(self) -> tuple[nn.Module, Any, LocalEmbedderConfig]:
        """Return an encoder that makes the vectors of both models, its tokenizer and its configuration.

        Its layers are those of the frozen vectors and after them the trained ones, which `stretches` tell apart.
        """
        tokens = self.tables.tokens
        assert tokens is not None
        pooled, tokenizer = load_model(tokens.embedder)
        n_trained, weights = self.second.n_trained, tokens.embedder.layer_weights
        both = BothEncoders(pooled, self.second.layers.cpu(), n_trained).eval()
        return both, tokenizer, replace(tokens.embedder, layer_weights=[*weights, *weights[-n_trained:]])

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Divide the parameters of the encoder by layers."""
        return self.second.parameter_groups()
