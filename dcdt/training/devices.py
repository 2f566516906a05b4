"""Count, check and share the devices of this machine. torch is imported only where it is needed."""

import itertools
import os
import tempfile
from pathlib import Path

from dcdt.training.config import TrainerConfig
from dcdt.utils.errors import UserError
from dcdt.utils.lock import lock_path

CLAIMED: dict[str, int | None] = {}  # GPUs that this process has locked, each with the lock's descriptor


def device_type(trainer: TrainerConfig) -> str:
    """`cpu`, `cuda` or `mps`, as Lightning would choose.

    Raises:
        UserError: this machine has no such device.
    """
    import torch

    available = {"mps": torch.backends.mps.is_available(), "cuda": torch.cuda.is_available(), "cpu": True}
    accepted = {"auto": tuple(available), "gpu": ("mps", "cuda")}.get(trainer.accelerator, (trainer.accelerator,))
    for name in accepted:
        if available[name]:
            return name
    value, choices = f"trainer={trainer.name}", "trainer=cpu or trainer=auto"
    if trainer.name != "gpu":
        value, choices = f"trainer.accelerator={trainer.accelerator}", "trainer.accelerator=cpu or auto"
    raise UserError(
        f"{value}: this machine has no GPU that torch {torch.__version__} can use.\n"
        f"Choose {choices}. A GPU that is there needs a build of torch for it."
    )


def device_count(trainer: TrainerConfig) -> int:
    """Number of devices of each machine; `auto` is every GPU, or one CPU."""
    if isinstance(trainer.devices, int):
        return trainer.devices
    if isinstance(trainer.devices, list):
        return len(trainer.devices)
    import torch

    return torch.cuda.device_count() if device_type(trainer) == "cuda" else 1


def world_size(trainer: TrainerConfig) -> int:
    """Number of processes that train together, over all machines."""
    return device_count(trainer) * trainer.num_nodes


def device_number(trainer: TrainerConfig) -> int:
    """The number of this process's device on its machine."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    return trainer.devices[local] if isinstance(trainer.devices, list) else local


def check_devices(trainer: TrainerConfig) -> None:
    """Check that this machine has the devices, and that they can do what the configuration needs.

    Raises:
        UserError: names the value, what there is, and the remedy.
    """
    import torch

    kind, devices, n_processes = device_type(trainer), trainer.devices, int(os.environ.get("WORLD_SIZE", 1))
    if kind == "cuda":
        available = torch.cuda.device_count()
        if (max(devices) + 1 if isinstance(devices, list) else device_count(trainer)) > available:
            raise UserError(
                f"trainer.devices is {devices}; this machine has {available} GPU{'s' * (available != 1)}, numbered "
                "from 0.\nChoose among them, or trainer.accelerator=cpu."
            )
    elif isinstance(devices, list):
        raise UserError(f"trainer.devices is {devices}, which numbers GPUs; on {kind} give a number of processes.")
    if kind == "mps" and trainer.strategy == "ddp":
        raise UserError(
            "trainer.strategy=ddp: an Apple GPU trains alone.\nChoose trainer=gpu, or trainer.accelerator=cpu."
        )
    if kind == "cpu" and trainer.precision == "16-mixed":
        raise UserError("trainer.precision is '16-mixed', which needs a GPU; choose bf16-mixed or 32-true.")
    if world_size(trainer) > 1 and trainer.strategy != "ddp":
        raise UserError(
            f"trainer.devices is {devices}, which is {device_count(trainer)} GPUs; trainer={trainer.name} takes one "
            "device: choose trainer=ddp for several."
        )
    if "RANK" in os.environ and n_processes != world_size(trainer):
        raise UserError(
            f"{n_processes} processes were started, but trainer.devices={devices} and trainer.num_nodes="
            f"{trainer.num_nodes} make {world_size(trainer)}.\nStart one process a device of each machine "
            "(docs/scaling.md)."
        )


def claim_gpus(trainer: TrainerConfig) -> None:
    """Give this process, one of several on this machine, as many GPUs as it needs that no other process uses.

    Where there are more processes than GPUs, they are shared evenly. The choice holds as long as the process, since
    torch reads CUDA_VISIBLE_DEVICES when it first uses a GPU. Nothing changes where there is no choice.
    """
    if CLAIMED or trainer.accelerator == "cpu" or not isinstance(trainer.devices, int):
        return
    import torch

    count, visible = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",")[:count] if visible else [str(number) for number in range(count)]
    if count <= trainer.devices:
        return
    folder = Path(tempfile.gettempdir()) / f"dcdt_gpus_{getattr(os, 'getuid', int)()}"
    folder.mkdir(exist_ok=True)
    for number in itertools.count():
        gpu = gpus[number % count]
        path = folder / f"{gpu.replace('/', '_')}_{number // count}"
        path.touch()
        try:
            CLAIMED[gpu] = lock_path(path, on_wait=None)
        except BlockingIOError:
            continue
        if len(CLAIMED) == trainer.devices:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(CLAIMED)
            return
