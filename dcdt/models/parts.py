"""Models inside a model: made from their own configuration, over the fields they read."""

import torch
from torch import Tensor

from dcdt.config import ModelConfig
from dcdt.data.tables import Tables
from dcdt.errors import UserError
from dcdt.models.recommender import Recommender
from dcdt.registry import MODELS, look_up


def make_part(config: ModelConfig, tables: Tables, whole: str) -> Recommender:
    """One part, over the fields it reads.

    Args:
        config: of the part.
        tables: the frozen vectors of all fields of the whole model.
        whole: name of the whole model, for the error.

    Raises:
        UserError: the part is a model that is trained.
    """
    model = look_up(MODELS, config.name)
    if model.fittable:
        raise UserError(
            f"model={whole} is built from models that need no epochs; {config.name} is trained.\n"
            "Choose as parts among bm25, zero_shot, dcdt_ridge, hybrid and collaborative."
        )
    part: Recommender = model(config, tables.of(list(getattr(config, "fields", tables.fields))))
    return part


def z_scores(scores: Tensor, candidates: Tensor | None) -> Tensor:
    """Scores (B, N) less their mean over the candidates, over their deviation there; 0 where that is 0."""
    among = scores if candidates is None else scores[:, candidates]
    centred, spread = scores - among.mean(1, keepdim=True), among.std(1, correction=0, keepdim=True)
    return torch.where(among.amax(1, keepdim=True) > among.amin(1, keepdim=True), centred / spread, 0.0)
