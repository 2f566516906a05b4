"""Gaussian noise on sums, so much as the accountant of opacus asks for."""

import numpy as np
import torch
from torch import Tensor

from dcdt.federation.config import NoiseConfig
from dcdt.models.sums import Sums
from dcdt.utils.errors import UserError, needs_extra


def noise_multiplier(config: NoiseConfig, n_messages: int) -> float:
    """Return the standard deviation of the noise, in units of the sensitivity, that all messages together need.

    Args:
        config: epsilon and delta that all messages of a school together may reach.
        n_messages: how many a school sends.

    Raises:
        UserError: opacus is missing, or no noise suffices.
    """
    with needs_extra("noise", "federated", "opacus"):
        from opacus.accountants.utils import get_noise_multiplier
    try:
        multiplier: float = get_noise_multiplier(
            target_epsilon=config.epsilon,
            target_delta=config.delta,
            sample_rate=1.0,
            steps=n_messages,
            accountant="rdp",
            epsilon_tolerance=config.epsilon / 100 if config.epsilon else 0.01,
        )
    except ValueError as error:
        raise UserError(f"noise.epsilon {config.epsilon} with noise.delta {config.delta}: {error}") from error
    return multiplier


def add_noise(sums: Sums, multiplier: float) -> dict[str, Tensor]:
    """Add noise from the operating system's randomness to sums whose learners are clipped; `gram` stays symmetric."""
    generator, noised = np.random.default_rng(), {}
    for name, tensor in sums.tensors.items():
        noise = torch.from_numpy(generator.normal(0, multiplier * sums.sensitivity, tuple(tensor.shape)))
        if name == "gram":
            noise = noise.triu() + noise.triu(1).T
        noised[name] = tensor + noise
    return noised
