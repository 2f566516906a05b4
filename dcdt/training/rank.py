"""The rank of this process among those of a distributed run."""

import os


def global_rank() -> int | None:
    """The number of this process among those that train together; None for a process that stands alone."""
    return int(os.environ["RANK"]) if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys() else None


def adopt_srun() -> None:
    """Give a process that srun started with others the variables that torchrun would give it.

    Without srun, in a script of sbatch or a shell of salloc, there is an allocation but no step of several tasks: such
    a process stands alone.
    """
    step = {name.removeprefix("SLURM_"): value for name, value in os.environ.items() if name.startswith("SLURM_")}
    if global_rank() is not None or int(step.get("STEP_NUM_TASKS", 1)) < 2:
        return
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    nodes, job = step.get("STEP_NODELIST") or step.get("NODELIST", ""), int(step.get("JOB_ID", 0))
    alone = step.get("STEP_NUM_NODES", step.get("NNODES", "1")) == "1"
    os.environ |= {
        "RANK": step["PROCID"],
        "WORLD_SIZE": step["STEP_NUM_TASKS"],
        "LOCAL_RANK": step["LOCALID"],
        "GROUP_RANK": step.get("NODEID", "0"),
    }
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1" if alone else SLURMEnvironment.resolve_root_node_address(nodes))
    os.environ.setdefault("MASTER_PORT", str(15_000 + (7 * job + int(step.get("STEP_ID", 0))) % 10_000))
