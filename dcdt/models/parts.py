"""Models inside a model: made from their own configuration, over the fields they read."""

import torch
from torch import Tensor

from dcdt.config import Named
from dcdt.config.registry import MODELS, look_up
from dcdt.data.tables import Tables
from dcdt.models.recommender import Recommender
from dcdt.utils.errors import UserError


def make_part(config: Named, tables: Tables, whole: str) -> Recommender:
    """One part, over the fields it reads.

    Args:
        config: of the part.
        tables: the frozen vectors of all fields of the whole model.
        whole: what takes the part, such as model=hybrid, for the error.

    Raises:
        UserError: the part is a model that is trained, or reads a field whose vectors are not here.
    """
    model = look_up(MODELS, config.name)
    if model.fittable:
        raise UserError(
            f"{whole} takes models that need no epochs; {config.name} is trained.\n"
            "Choose among bm25, zero_shot, dcdt_ridge, hybrid and collaborative."
        )
    fields = list(getattr(config, "fields", tables.fields))
    lacking = [name for name in fields if name not in tables.fields]
    if lacking:
        raise UserError(
            f"{whole}: {config.name} reads '{lacking[0]}', the model itself only {', '.join(tables.fields)}.\n"
            "Give both the same fields."
        )
    part: Recommender = model(config, tables.of(fields))
    return part


def as_mask(candidates: Tensor | None, n_videos: int) -> Tensor | None:
    """Rows (C,) of the candidates as a bool for each of N videos; None, all, stays None."""
    if candidates is None:
        return None
    return torch.zeros(n_videos, dtype=torch.bool, device=candidates.device).index_fill(0, candidates, True)


def z_scores(scores: Tensor, candidates: Tensor | None) -> Tensor:
    """Scores (B, N) less their mean over the candidates, rows (C,), over their deviation there; 0 where that is 0."""
    among = scores if candidates is None else scores[:, candidates]
    centred, spread = scores - among.mean(1, keepdim=True), among.std(1, correction=0, keepdim=True)
    return torch.where(among.amax(1, keepdim=True) > among.amin(1, keepdim=True), centred / spread, 0.0)
