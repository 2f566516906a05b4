"""Differentiable functions of few operations, for devices that start each operation as a kernel.

Autograd makes the gradient of a composed function operation by operation; here it is written down. On a CPU, and where
a compiler joins operations, the composed functions are as fast.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dcdt.utils.precision import at_least_float32

MIN_NORM = 1e-12  # as that of torch.nn.functional.normalize


class _CastStacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, sizes: Sequence[int], *tensors: Tensor) -> tuple[Tensor, ...]:  # noqa: ANN401
        ctx.dtype = tensors[0].dtype
        first = [tensors[sum(sizes[:i])] for i in range(len(sizes))]
        stacked = [one.new_empty((n, *one.shape), dtype=dtype) for n, one in zip(sizes, first, strict=True)]
        torch._foreach_copy_([layer for stack in stacked for layer in stack.unbind()], list(tensors))
        return tuple(stacked)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
        layers = [layer for stack in gradients for layer in stack.unbind()]
        results = [torch.empty_like(layer, dtype=ctx.dtype, memory_format=torch.contiguous_format) for layer in layers]
        torch._foreach_copy_(results, layers)
        return (None, None, *results)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:  # noqa: ANN401
        dtype = torch.float64 if vectors.dtype == torch.float64 else torch.float32
        norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True, dtype=dtype).clamp_(min=MIN_NORM)
        unit: Tensor = vectors / norm
        ctx.dtype = vectors.dtype
        ctx.save_for_backward(unit, norm)
        return unit

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        unit, norm = ctx.saved_tensors
        along = (gradient.unsqueeze(-2) @ unit.unsqueeze(-1)).squeeze(-1)  # (..., 1)
        across = torch.addcmul(gradient, unit, along, value=-1)
        return torch.div(across, norm, out=torch.empty_like(across, dtype=ctx.dtype))


class _SmoothDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, eps: float) -> Tensor:  # noqa: ANN401
        difference = b - a
        norm = torch.linalg.vector_norm(difference, dim=-1)
        distance: Tensor = norm.hypot(torch.tensor(eps, dtype=difference.dtype))
        ctx.shapes = a.shape, b.shape
        ctx.save_for_backward(difference, distance)
        return distance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        difference, distance = ctx.saved_tensors
        of_b = difference * (gradient / distance).unsqueeze(-1)
        return of_b.sum_to_size(ctx.shapes[0]).neg(), of_b.sum_to_size(ctx.shapes[1]), None


def cast_stacked(groups: Sequence[Sequence[Tensor]], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Cast groups of n tensors of one shape to another precision at once, each group to one tensor (n, ...)."""
    sizes = [len(group) for group in groups]
    stacked: tuple[Tensor, ...] = _apply(_CastStacked, dtype, sizes, *(tensor for group in groups for tensor in group))
    return stacked


def normalize(vectors: Tensor) -> Tensor:
    """Normalise vectors (..., W) in fp32 at least; zeros remain zeros."""
    if _is_composed(vectors):
        return nn.functional.normalize(at_least_float32(vectors), dim=-1)
    unit: Tensor = _apply(_Normalize, vectors)
    return unit


def smooth_distance(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Compute `sqrt(|a - b|^2 + eps^2)` along the last dimension, (..., W) broadcast against each other: (...)."""
    if _is_composed(b):
        return (a - b).square().sum(-1).add(eps**2).sqrt()
    distance: Tensor = _apply(_SmoothDistance, a, b, eps)
    return distance


def select_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Select rows (B, C) of a table (U, W), whose gradient adds up those of equal rows: (B, C, W)."""
    return table[rows] if _is_composed(table) else nn.functional.embedding(rows, table)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:  # noqa: ANN401
    return function.apply(*arguments)  # type: ignore[no-untyped-call]


def _is_composed(tensor: Tensor) -> bool:
    """Return whether composed functions serve as well: on a CPU, and in a compiled step."""
    return tensor.device.type == "cpu" or torch.compiler.is_compiling()
