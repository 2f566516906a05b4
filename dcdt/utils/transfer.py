"""Copy tensors between devices."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; from the CPU to a GPU without blocking the CPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def replace_rows(values: Tensor, rows: list[int], new: Tensor) -> Tensor:
    """Replace some rows of values (B, ...) by new ones (len(rows), ...) without waiting for the device."""
    return values.index_copy(0, to_device(torch.tensor(rows, dtype=torch.int64), values.device), new)
