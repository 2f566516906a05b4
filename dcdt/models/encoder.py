"""DCDT whose sentence encoder is trained as well: the last layers of the transformer that made the frozen vectors."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dcdt.data.tables import BLOCK, Tables
from dcdt.data.transcripts import TRANSCRIPT
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers.batching import token_batches
from dcdt.embeddings.providers.division import TopLayers, divide
from dcdt.embeddings.providers.pooling import load_model
from dcdt.models.config import EncoderConfig, OptimizerConfig
from dcdt.models.pairs import PairRecommender
from dcdt.models.passages import make_pooling
from dcdt.models.query_batch import QueryBatch
from dcdt.utils.errors import UserError
from dcdt.utils.precision import at_least_float32


class EncoderTowers(PairRecommender):
    """The cosine of zero_shot with the last layers of the encoder trained, shared by questions and fields.

    A text's vector holds the pooled layers of the embedder, weighted as `embedder.layer_weights`: those of frozen
    layers as they are in the frozen vectors, those of trained layers computed from the cached states of the layer
    below. A video is the sum of its field vectors; the cosine with the best passage of a transcript is added to that
    with the other fields. So the untrained model scores as zero_shot does, up to the half precision of the states.

    Training reads titles and descriptions. Passages are embedded anew before each validation, which costs as much as
    embedding them does, but for the frozen layers where their states are kept.

    Args:
        config: which layers are trained, and how.
        tables: the frozen vectors, and the tokens of all texts.
        loss: a loss that takes distances or similarities (B, C) and labels.
        optimizer: learning rate, weight decay and schedule.

    Raises:
        UserError: the embedder is no local encoder or has too few layers, or transcripts are the only field.
    """

    layers: TopLayers
    weights: Tensor
    starts_useful: ClassVar[bool] = True
    reads_tokens: ClassVar[bool] = True
    adds_passages: ClassVar[bool] = True
    trains_passages: ClassVar[bool] = False

    def __init__(self, config: EncoderConfig, tables: Tables, loss: nn.Module, optimizer: OptimizerConfig) -> None:
        super().__init__(tables, loss, optimizer)
        if tables.tokens is None:
            raise UserError("model=dcdt_encoder reads tokens, which these tables lack; load them by load_tokens.")
        self.text_fields = [name for name in tables.fields if name != TRANSCRIPT]
        if not self.text_fields:
            raise UserError(
                f"model.fields is [{TRANSCRIPT}], but model=dcdt_encoder is trained on titles and texts; add title."
            )
        self.pooling = make_pooling(config.passages, tables)
        self.layer_decay = config.layer_decay
        embedder = tables.tokens.embedder
        lower, self.layers, _ = divide(embedder, config.trainable_layers, config.dropout)
        self._frozen_layers = lower if tables.tokens.states is None else None
        weights = torch.tensor(embedder.layer_weights)
        self.n_trained = min(config.trainable_layers, len(weights))  # of the pooled layers
        self.register_buffer("weights", weights[-self.n_trained :] / weights.norm(), persistent=False)
        self.frozen_width = tables.width // len(weights) * (len(weights) - self.n_trained)

    def encode_queries(self, vectors: Tensor) -> Tensor:
        """Normalise the vectors (B, D) that the trained encoder has made of queries."""
        return nn.functional.normalize(at_least_float32(vectors), dim=-1)

    def encode_videos(self, fields: Tensor) -> Tensor:
        """Sum and normalise the field vectors (F, ..., D) that the trained encoder has made: (..., D)."""
        return nn.functional.normalize(at_least_float32(fields.sum(0)), dim=-1)

    def field_contributions(self, fields: Tensor) -> dict[str, Tensor]:
        """Compute what each field adds to a video's vector: name to (..., D)."""
        return dict(zip(self.tables.fields, fields, strict=True))

    def score(self, queries: QueryBatch) -> Tensor:
        """Score B queries of the collection against all N videos, (B, N)."""
        assert queries.rows is not None
        return self.score_encoded(self.encode_queries(self.query_inputs(queries.rows)))

    def video_vectors(self) -> Tensor:
        """Return the vectors of the whole catalogue (N, D), computed once until the weights change."""
        if self._vectors is None:
            blocks = torch.split(torch.arange(self.tables.videos.shape[1]), BLOCK)
            self._vectors = torch.cat([self.encode_videos(self.video_inputs(rows)) for rows in blocks])
        return self._vectors

    def query_inputs(self, rows: Tensor) -> Tensor:
        """Encode the texts of query rows (B,) by the trained layers: (B, D)."""
        assert self.tables.tokens is not None
        texts = self.tables.tokens.queries[rows.cpu()]
        return self.encode_texts(texts, self.tables.queries[rows.to(self.tables.device)])

    def video_inputs(self, rows: Tensor) -> Tensor:
        """Encode the fields of video rows (U,), but for the transcript, by the trained layers: (F, U, D)."""
        assert self.tables.tokens is not None
        texts = torch.stack([self.tables.tokens.fields[name][rows.cpu()] for name in self.text_fields])  # (F, U)
        layers = [self.tables.fields.index(name) for name in self.text_fields]
        frozen = self.tables.videos[layers][:, rows.to(self.tables.device)]  # (F, U, D)
        return self.encode_texts(texts.flatten(), frozen.flatten(0, 1)).view(*texts.shape, -1)

    def passage_vectors(self, rows: slice) -> Tensor:
        """Return the vectors of passages (r, D), all computed once until the weights change."""
        videos = self.video_vectors()
        if self._passages is None or self._passages[0] is not videos:
            assert self.tables.passages is not None and self.tables.tokens is not None
            texts, frozen = self.tables.tokens.fields[TRANSCRIPT], self.tables.passages.vectors
            blocks = zip(torch.split(texts, BLOCK), torch.split(frozen, BLOCK), strict=True)
            encoded = torch.cat([self.encode_queries(self.encode_texts(*block)) for block in blocks])
            self._passages = videos, encoded
        return self._passages[1][rows]

    def other_vectors(self) -> Tensor:
        """Return the vectors of the fields beside the transcript, (N, D)."""
        return self.video_vectors()

    def encode_texts(self, texts: Tensor, frozen: Tensor) -> Tensor:
        """Encode texts by the trained layers, in batches of similar lengths.

        Args:
            texts: (m,) numbers of `tables.tokens`.
            frozen: (m, D) their frozen vectors.

        Returns:
            (m, D), of length 1.
        """
        tokens = self.tables.tokens
        assert tokens is not None
        pooled, order = [], []
        for batch in token_batches(tokens.lengths(texts).tolist(), tokens.embedder.batch_tokens):
            positions = torch.tensor(batch)
            rows, mask = tokens.padded(texts[positions])
            if tokens.states is not None:
                states = tokens.states[rows].float()  # (b, L, H)
            else:
                assert self._frozen_layers is not None
                states = self._frozen_layers(tokens.ids[rows].long(), mask)
            pooled.append(self.layers(states, mask)[:, -self.n_trained :])  # (b, l, H)
            order.append(positions)
        inverse = torch.cat(order).argsort().to(frozen.device)
        trained = torch.cat(pooled)[inverse] * self.weights.unsqueeze(-1)  # (m, l, H)
        return torch.cat([at_least_float32(frozen)[:, : self.frozen_width], trained.flatten(1)], dim=1)

    def served_encoder(self) -> tuple[nn.Module, Any, LocalEmbedderConfig]:
        """Return the encoder with its trained layers in place, on the CPU, its tokenizer and its configuration."""
        assert self.tables.tokens is not None
        config: LocalEmbedderConfig = self.tables.tokens.embedder
        pooled, tokenizer = load_model(config)
        pooled.model.load_state_dict(self.layers.weights_of_whole(self.tables.tokens.layer), strict=False)
        return pooled, tokenizer, config

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Divide the parameters: each layer below the last learns by `layer_decay` more slowly; biases do not decay."""
        assert self.optimizer_config is not None
        groups: list[dict[str, Any]] = []
        depth_of = {
            parameter: depth
            for depth, layer in enumerate(reversed(self.layers.layers))
            for parameter in layer.parameters()
        }
        for depth in range(len(self.layers.layers)):
            rate = self.optimizer_config.lr * self.layer_decay**depth
            own = [parameter for parameter in self.parameters() if depth_of.get(parameter, 0) == depth]
            groups.append({"params": [parameter for parameter in own if parameter.ndim > 1], "lr": rate})
            flat = [parameter for parameter in own if parameter.ndim <= 1]
            groups.append({"params": flat, "lr": rate, "weight_decay": 0.0})
        return [group for group in groups if group["params"]]
