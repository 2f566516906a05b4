"""A device that is not the CPU and keeps real values, so that what a GPU would refuse or wait for shows without one.

Its tensors live in the memory of the CPU, but no operation may mix them with tensors of the CPU (other than numbers
without dimensions, as on a GPU); an index counts as an operand. Each time a value is read back to the CPU, or the
shape of a result depends on values, so that the CPU would have to wait for a GPU, `reads` gains a name.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "separate"
aten = torch.ops.aten
COPIES = (aten._to_copy, aten.copy_, aten.to)
WAITS = {  # operations whose result's shape, or the host's next step, depends on values
    *(
        aten.item,
        aten._local_scalar_dense,
        aten.nonzero,
        aten.nonzero_numpy,
        aten.argwhere,
        aten.masked_select,
        aten.equal,
        aten.is_nonzero,
        aten.bincount,
    ),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.isin),
    *(aten._linalg_eigh, aten._linalg_svd),
}
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index)
KERNELS: list[torch.library.Library] = []
reads: list[str] = []


class SeparateTensor(torch.Tensor):
    """A tensor of the device, around one of the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "SeparateTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:
        return f"separate({self.inner!r})"

    def __format__(self, form: str) -> str:
        return format(self.cpu(), form)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:  # saved as tensors of a GPU are: to be read on any device
        return self.inner.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: Any) -> "SeparateTensor":
        copied = SeparateTensor(self.inner.clone())
        return torch.nn.Parameter(copied, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return apply(func, args, kwargs or {})


class FromValues(TorchFunctionMode):
    """Makes tensors of Python's numbers on the CPU first: torch hides that step from what watches its operations."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        device = given.get("device")
        if func in (torch.tensor, torch.as_tensor) and device is not None and torch.device(device).type == NAME:
            return func(*args, **{**given, "device": "cpu"}).to(device)
        return func(*args, **given)


class OnDevice(TorchDispatchMode):
    """Sees also the operations without a tensor of the device: those that make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return apply(func, args, kwargs or {})


def apply(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Check one operation, compute it on the CPU, and wrap its result."""
    packet, parts = func.overloadpacket, list(leaves([args, list(kwargs.values())]))
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    own = [part for part in tensors if isinstance(part, SeparateTensor)]
    goes_to = next((part.type for part in parts if isinstance(part, torch.device)), None)
    if packet is aten.copy_:
        goes_to = tensors[0].device.type
    if not own and goes_to != NAME:
        return func(*args, **kwargs)
    if packet not in COPIES:
        check_devices(packet, tensors, own)
    if own and must_wait(packet, tensors, own, goes_to):
        reads.append(packet._qualified_op_name)
    inner = {name: mapped(part, on_cpu) for name, part in kwargs.items() if name != "pin_memory"}
    result = func(*mapped(args, on_cpu), **inner)
    if packet is aten.to and goes_to is not None and tensors[0].device.type != goes_to:
        result = result.clone()  # another device is another memory
    if goes_to == "cpu":
        return args[0] if packet is aten.copy_ else result
    operands = {id(part.inner): part for part in own}
    inference = torch.is_inference_mode_enabled() and all(part.is_inference() for part in own)
    with torch.inference_mode(inference):  # a view is of the kind that its tensor is of
        return mapped(result, lambda part: wrapped(part, operands))


def leaves(part: Any) -> Iterator[Any]:
    """What lists and tuples hold, however deep."""
    if isinstance(part, list | tuple):
        for inner in part:
            yield from leaves(inner)
    else:
        yield part


def mapped(part: Any, change: Callable[[Any], Any]) -> Any:
    """The same lists and tuples of changed values."""
    return type(part)(mapped(inner, change) for inner in part) if isinstance(part, list | tuple) else change(part)


def on_cpu(part: Any) -> Any:
    """A tensor of the device as that of the CPU, the device as the CPU."""
    if isinstance(part, SeparateTensor):
        return part.inner
    return torch.device("cpu") if isinstance(part, torch.device) else part


def wrapped(part: Any, operands: dict[int, SeparateTensor]) -> Any:
    """A result as a tensor of the device; an operand that was changed in place as it was."""
    if not isinstance(part, torch.Tensor):
        return part
    return operands[id(part)] if id(part) in operands else SeparateTensor(part)


def check_devices(packet: Any, tensors: list[torch.Tensor], own: list[SeparateTensor]) -> None:
    """Refuse an operation over tensors of two devices."""
    others = [part for part in tensors if not isinstance(part, SeparateTensor)]
    if own and any(part.ndim or packet in INDEXING for part in others):
        shapes = ", ".join(f"{part.device} {tuple(part.shape)}" for part in tensors)
        raise RuntimeError(f"{packet}: expected all tensors to be on the same device, but found {shapes}")


def must_wait(packet: Any, tensors: list[torch.Tensor], own: list[SeparateTensor], goes_to: str | None) -> bool:
    """Whether a GPU would have to finish before the CPU can go on."""
    if packet in COPIES:
        source = tensors[1] if packet is aten.copy_ else tensors[0]
        return goes_to == "cpu" and isinstance(source, SeparateTensor)
    masks = packet in INDEXING and any(part.dtype == torch.bool for part in own[1:])
    return packet in WAITS or masks


class Module:
    """What torch asks of `torch.separate`."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class SeparateAccelerator(Accelerator):
    """The device as Lightning knows it."""

    def setup_device(self, device: torch.device) -> None:
        pass

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        return [0]

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}


def in_halves(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A product as autocast has it on a GPU: of tensors in half precision."""

    def product(*tensors: torch.Tensor | None) -> torch.Tensor:
        halves = [None if part is None else part.to(torch.get_autocast_dtype(NAME)) for part in tensors]
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)):
            return function(*halves)

    return product


def register() -> None:
    """Make the device known to torch and Lightning, once a process."""
    if NAME not in AcceleratorRegistry:
        torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, Module())
        others, products = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
        others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        for name in ("linear", "matmul", "mm", "bmm"):
            products.impl(name, in_halves(getattr(aten, name)), "AutocastPrivateUse1")
        KERNELS.extend([others, products])  # they hold as long as these
        AcceleratorRegistry.register(NAME, SeparateAccelerator, description="separate")


@contextmanager
def separate() -> Iterator[torch.device]:
    """The device, while this lasts."""
    register()
    with torch.autograd.set_multithreading_enabled(False), FromValues(), OnDevice():  # no thread a device
        yield torch.device(NAME, 0)
