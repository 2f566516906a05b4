"""The floating-point precision of tensors: half-precision types, and computing in fp32 whatever they are."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

HALF_DTYPES = (torch.float16, torch.bfloat16)


def at_least_float32(tensor: Tensor) -> Tensor:
    """Convert a half-precision tensor to fp32; return any other as it is."""
    return tensor.float() if tensor.dtype in HALF_DTYPES else tensor


def autocast_off(tensor: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off on the device of a tensor, so that products keep the precision of their factors."""
    return torch.autocast(tensor.device.type, enabled=False)


def autocasts(device: torch.device) -> bool:
    """Return whether autocast casts what is multiplied on this device, which is not the CPU."""
    return device.type != "cpu" and torch.is_autocast_enabled(device.type)
