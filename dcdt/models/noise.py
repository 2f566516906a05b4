"""Gaussian noise on sums, so much as the accountant of opacus asks for."""

import numpy as np
import torch
from torch import Tensor

from dcdt.models.sums import Sums
from dcdt.utils.errors import UserError, needs_extra


def noise_multiplier(epsilon: float, delta: float, n_messages: int) -> float:
    """Return the standard deviation of the noise, in units of the sensitivity, that so many messages together need."""
    with needs_extra("noise", "federated", "opacus"):
        from opacus.accountants.utils import get_noise_multiplier
    target = {"target_epsilon": epsilon, "target_delta": delta, "epsilon_tolerance": epsilon / 100}
    try:
        return float(get_noise_multiplier(sample_rate=1.0, steps=n_messages, accountant="rdp", **target))
    except ValueError as error:
        raise UserError(f"epsilon={epsilon} with delta={delta}: {error}") from error


def add_noise(sums: Sums, multiplier: float) -> dict[str, Tensor]:
    """Add noise from the operating system's randomness to sums whose learners are clipped; `gram` stays symmetric."""
    generator, noised = np.random.default_rng(), {}
    for name, tensor in sums.tensors.items():
        noise = torch.from_numpy(generator.normal(0, multiplier * sums.sensitivity, tuple(tensor.shape)))
        noised[name] = tensor + (noise.triu() + noise.triu(1).T if name == "gram" else noise)
    return noised
