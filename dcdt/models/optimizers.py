"""Optimizers by name, and the schedules of their learning rate."""

from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from dcdt.models.config import NAdamConfig, OptimizerConfig, SGDConfig
from dcdt.utils.errors import UserError

Groups = list[dict[str, Any]]  # of parameters, as torch takes them


def adamw(groups: Groups, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Make AdamW, the default."""
    return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def nadam(groups: Groups, config: NAdamConfig) -> torch.optim.Optimizer:
    """Make NAdam, Adam with Nesterov momentum, with decoupled weight decay as AdamW."""
    return torch.optim.NAdam(
        groups,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum_decay=config.momentum_decay,
        decoupled_weight_decay=True,
    )


def sgd(groups: Groups, config: SGDConfig) -> torch.optim.Optimizer:
    """Make stochastic gradient descent with momentum."""
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )


def make_schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig, n_steps: int) -> LRScheduler | None:
    """Make the schedule of a training of n steps, which begins with a linear warm-up; None for a constant rate.

    Raises:
        UserError: the warm-up takes the whole training.
    """
    fraction = config.warmup_steps < 1
    warmup = round(config.warmup_steps * n_steps) if fraction else int(config.warmup_steps)
    if warmup and warmup >= n_steps:
        raise UserError(
            f"optimizer.warmup_steps is {config.warmup_steps:g}: {warmup} of the {n_steps} steps of training.\n"
            "Give fewer, or a fraction below 1."
        )
    schedule: LRScheduler | None = None
    if config.schedule == "linear":
        schedule = LinearLR(optimizer, 1.0, 0.0, total_iters=n_steps - warmup)
    elif config.schedule == "cosine":
        schedule = CosineAnnealingLR(optimizer, T_max=n_steps - warmup)
    if not warmup:
        return schedule
    rise = LinearLR(optimizer, 1 / (warmup + 1), 1.0, total_iters=warmup)
    return rise if schedule is None else SequentialLR(optimizer, [rise, schedule], milestones=[warmup])
