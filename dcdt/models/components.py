"""Models inside a model: made from their own configuration, over the fields they read."""

import torch
from torch import Tensor

from dcdt.config import Named, vector_fields
from dcdt.config.registry import MODELS, look_up
from dcdt.data.tables import Tables
from dcdt.evaluation.fusion import standardize
from dcdt.models.recommender import Recommender
from dcdt.utils.errors import UserError


def make_component(config: Named, tables: Tables, option: str) -> Recommender:
    """Make a component of a model, over the fields it reads.

    Args:
        config: of the component.
        tables: the frozen vectors of all fields of the model.
        option: of the model, such as model=hybrid, for error messages.

    Raises:
        UserError: the component is a trained model, or reads a field that the model does not read.
    """
    model = look_up(MODELS, config.name)
    if model.trained_by_epochs:
        raise UserError(
            f"{option} takes models that need no epochs; {config.name} is trained.\n"
            "Choose among bm25, zero_shot, dcdt_ridge, hybrid and collaborative."
        )
    fields = vector_fields(config) if getattr(config, "fields", None) else tables.fields
    missing = [name for name in fields if name not in tables.fields]
    if missing:
        raise UserError(
            f"{option}: {config.name} reads '{missing[0]}', the model itself only {', '.join(tables.fields)}.\n"
            "Give both the same fields."
        )
    component: Recommender = model(config, tables.select_fields(fields))
    return component


def z_scores(scores: Tensor, candidates: Tensor | None) -> Tensor:
    """Standardise scores (B, N) over the candidates, rows (C,): 0 where all candidates have the same score."""
    subset = scores if candidates is None else scores[:, candidates]
    z = standardize(scores, subset.mean(1, keepdim=True), subset.std(1, correction=0, keepdim=True))
    return torch.where(subset.amax(1, keepdim=True) > subset.amin(1, keepdim=True), z, 0.0)
