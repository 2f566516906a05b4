"""A sentence encoder divided in two: layers that stay as they are, and those above them that are trained."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers.pooling import PooledLayers, load_model, pool
from dcdt.utils.errors import UserError

TOLERANCE = 1e-4  # between the two parts, one after the other, and the whole
N_CHECKED_TOKENS = 7


class FrozenLayers:
    """The embeddings and the first layers of a transformer; no module, so that no checkpoint holds their weights.

    Args:
        model: of the transformers library.
        n: number of layers.
    """

    def __init__(self, model: Any, n: int) -> None:  # noqa: ANN401 - transformers' classes share no useful type
        self.model, self.n = model.eval().requires_grad_(False), n

    @torch.no_grad()
    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Compute the output of the layers (B, T, H) of token ids (B, T), whose mask is false at padding."""
        model = self.model.to(ids.device)
        states: Tensor = model(ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states[self.n]
        return states


class TopLayers(nn.Module):
    """The last layers of a transformer, each pooled over the tokens and normalised.

    Args:
        model: of the transformers library; it is copied.
        frozen: number of layers below these.
        pooling: `mean` or `cls`.
        dropout: probability; None: the model's own.

    Raises:
        UserError: the architecture cannot be divided.
    """

    model: Any

    def __init__(self, model: Any, frozen: int, pooling: str, dropout: float | None) -> None:  # noqa: ANN401
        super().__init__()
        self.pooling = pooling
        self.model = copy.deepcopy(model).requires_grad_(True)
        self.path = _path_of_layers(self.model)
        parent, _, name = self.path.rpartition(".")
        setattr(self.model.get_submodule(parent), name, self.layers[frozen:])
        self.model.embeddings, self.model.pooler = _Identity(), None
        for module in self.model.modules():
            if isinstance(module, nn.Dropout) and dropout is not None:
                module.p = dropout

    @property
    def layers(self) -> Any:  # noqa: ANN401 - an nn.ModuleList
        """The layers, from the lowest to the last."""
        layers: Any = self.model.get_submodule(self.path)
        return layers

    def weights_of_whole(self, frozen: int) -> dict[str, Tensor]:
        """Return the weights by their names in the whole model, which has this number of layers below these."""
        weights: dict[str, Tensor] = {}
        for name, value in self.model.state_dict().items():
            head, _, rest = name.removeprefix(f"{self.path}.").partition(".")
            is_layer = name.startswith(f"{self.path}.")
            weights[f"{self.path}.{int(head) + frozen}.{rest}" if is_layer else name] = value.cpu()
        return weights

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """Compute pooled layers (B, L, H) from the states below them (B, T, H), whose mask is false at padding."""
        out = self.model(inputs_embeds=states, attention_mask=mask.long(), output_hidden_states=True)
        hidden = out.hidden_states[1:]  # each (B, T, H)
        return torch.stack([pool(layer, mask, self.pooling) for layer in hidden], dim=1)


class BothEncoders(nn.Module):
    """An encoder as it was, and its last layers as they were trained: one pass gives the pooled layers of both.

    Args:
        pooled: the encoder as it was.
        top: the trained layers.
        n_trained: how many of the pooled layers are trained ones.
    """

    model: Any

    def __init__(self, pooled: PooledLayers, top: TopLayers, n_trained: int) -> None:
        super().__init__()
        self.model, self.top, self.pooling = pooled.model, top, pooled.pooling
        self.n_pooled, self.n_trained, self.layers = pooled.layers, n_trained, pooled.layers + n_trained

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Compute layers (B, L, H), those as they were before the trained ones, of token ids (B, T) and their mask."""
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        frozen = [pool(layer, attention_mask, self.pooling) for layer in out.hidden_states[-self.n_pooled :]]
        states = out.hidden_states[-1 - len(self.top.layers)]
        trained = self.top(states, attention_mask)[:, -self.n_trained :]
        return torch.cat([torch.stack(frozen, dim=1), trained], dim=1)


class _Identity(nn.Module):
    """Stands for the embeddings of tokens where states are given instead."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - architectures call it differently
        tensors = (value for value in (*args, *kwargs.values()) if torch.is_tensor(value))
        return next(value for value in tensors if value.ndim == 3)


def divide(config: LocalEmbedderConfig, trainable: int, dropout: float | None) -> tuple[FrozenLayers, TopLayers, Any]:
    """Load an encoder in two parts, and its tokenizer.

    Args:
        config: names the package or folder.
        trainable: number of layers that are trained.
        dropout: of these; None: the model's own.

    Raises:
        UserError: it cannot be loaded or divided, or has fewer layers.
    """
    pooled, tokenizer = load_model(config)
    model = pooled.model
    lower = FrozenLayers(model, count_frozen(model, trainable, config))
    try:
        upper = TopLayers(model, lower.n, pooled.pooling, dropout)
        same = _same(pooled, lower, upper)
    except (AttributeError, KeyError, StopIteration, TypeError, ValueError, RuntimeError) as error:
        same, reason = False, type(error).__name__
    else:
        reason = "the parts compute something else"
    if not same:
        raise UserError(
            f"{config.package} is a {type(model).__name__}, which model=dcdt_encoder cannot divide into frozen and "
            f"trained layers ({reason}).\nName an encoder such as BERT, MPNet, DistilBERT or XLM-RoBERTa."
        )
    return lower, upper, tokenizer


def count_frozen(model: Any, trainable: int, config: LocalEmbedderConfig) -> int:  # noqa: ANN401
    """Count the layers below those that are trained.

    Raises:
        UserError: the model has fewer layers than are to be trained.
    """
    available: int = model.config.num_hidden_layers
    if trainable > available:
        raise UserError(f"model.trainable_layers is {trainable}; {config.package} has {available} layers.")
    return available - trainable


@torch.no_grad()
def _same(pooled: PooledLayers, lower: FrozenLayers, upper: TopLayers) -> bool:
    """Whether both parts, one after the other, compute what the whole does, with padding too."""
    ids = torch.arange(5, 5 + 2 * N_CHECKED_TOKENS).view(2, N_CHECKED_TOKENS)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, N_CHECKED_TOKENS // 2 :] = False
    expected = PooledLayers(pooled.model, 1, pooled.pooling)(ids, mask.long())[:, -1]
    parts = upper.eval()(lower(ids, mask), mask)[:, -1]
    upper.train()
    return bool((expected - parts).abs().max() <= TOLERANCE)


def _path_of_layers(model: Any) -> str:  # noqa: ANN401
    """Find the list of layers in a transformer: its name.

    Raises:
        StopIteration: there is none.
    """
    lists = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    path: str = next(name for name, layers in lists if len(layers) == model.config.num_hidden_layers)
    return path
