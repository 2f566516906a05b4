"""Tensors on their way to a device."""

import torch
from torch import Tensor


def to_device(part: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; a GPU fetches one of the CPU while the CPU goes on."""
    if device.type == "cuda" and part.device.type == "cpu":
        return part.pin_memory().to(device, non_blocking=True)
    return part.to(device)
