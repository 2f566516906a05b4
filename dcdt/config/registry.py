"""Models, losses, samplers and optimizers by name. A configuration names an entry here and can name nothing else."""

from importlib import import_module
from pathlib import Path
from typing import Any

MODELS = {
    "dcdt": "dcdt.models.dual_tower:DualTower",
    "dcdt_residual": "dcdt.models.residual:ResidualTowers",
    "dcdt_ridge": "dcdt.models.ridge_towers:RidgeTowers",
    "dcdt_history": "dcdt.models.history:HistoryTowers",
    "zero_shot": "baselines.zero_shot:ZeroShot",
    "single_tower": "baselines.single_tower:SingleTower",
    "bm25": "baselines.bm25:BM25",
    "collaborative": "baselines.collaborative:Collaborative",
    "hybrid": "baselines.hybrid:Hybrid",
    "two_stage": "dcdt.models.two_stage:TwoStage",
    "two_stage_joint": "dcdt.models.two_stage:JointTwoStage",
}
LOSSES = {
    "contrastive": "dcdt.losses.contrastive:ContrastiveLoss",
    "infonce": "dcdt.losses.infonce:InfoNCELoss",
    "triplet": "dcdt.losses.triplet:TripletLoss",
    "margin_mse": "dcdt.losses.margin_mse:MarginMSELoss",
}
SAMPLERS = {
    "random": "dcdt.samplers.random:RandomSampler",
    "hard": "dcdt.samplers.hard:HardSampler",
    "dynamic_hard": "dcdt.samplers.dynamic_hard:DynamicHardSampler",
    "window": "dcdt.samplers.window:WindowSampler",
    "mixed": "dcdt.samplers.mixed:MixedSampler",
    "in_batch": "dcdt.samplers.in_batch:InBatchSampler",
    "catalogue": "dcdt.samplers.catalogue:CatalogueSampler",
}
OPTIMIZERS = {
    "adamw": "dcdt.models.optimizers:adamw",
    "nadam": "dcdt.models.optimizers:nadam",
    "sgd": "dcdt.models.optimizers:sgd",
}


def look_up(table: dict[str, str], name: str) -> Any:  # noqa: ANN401 - classes and functions
    """The object registered under `name`. The baselines lie beside dcdt/ in a checkout and inside it when installed."""
    module, _, attribute = table[name].partition(":")
    inside = (Path(__file__).parents[1] / "baselines").is_dir()
    return getattr(import_module(f"dcdt.{module}" if inside and module.startswith("baselines.") else module), attribute)
