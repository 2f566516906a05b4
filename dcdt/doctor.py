"""What is installed here, what it can use, and what to mend: `python -m dcdt.doctor`. No key is ever shown."""

import argparse
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from rich.console import Console

from dcdt.config import cache_root, outputs_root
from dcdt.redact import guard_output

KEYS = {
    "OPENAI_API_KEY": "embedder=openai needs it; embedder=local does not",
    "OPENAI_BASE_URL": "another server that speaks OpenAI's protocol",
    "WANDB_API_KEY": "or `wandb login`; without either runs stay offline",
}
Line = tuple[str, str]


def packages() -> tuple[list[Line], list[str]]:
    """Versions of what the package requires, by extra, and what is missing of the core."""
    lines, missing = [("dcdt", version("dcdt")), ("python", platform.python_version())], []
    for requirement in map(Requirement, requires("dcdt") or []):
        extra = str(requirement.marker).split('"')[1] if requirement.marker else ""
        if extra == "dev":
            continue
        try:
            lines.append((requirement.name, version(requirement.name) + (f"  [{extra}]" if extra else "")))
        except PackageNotFoundError:
            lines.append((requirement.name, f"not installed: pip install 'dcdt{f'[{extra}]' if extra else ''}'"))
            missing += [] if extra else [f"{requirement.name} is missing: pip install dcdt"]
    return lines, missing


def devices() -> list[Line]:
    """What torch can train on."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
        return [("accelerator", f"{', '.join(names)} (CUDA {torch.version.cuda}): trainer=gpu")]
    if torch.backends.mps.is_available():
        return [("accelerator", "Apple GPU: trainer=gpu")]
    return [("accelerator", f"none that torch {torch.__version__} can use: trainer=cpu, {os.cpu_count()} cores")]


def keys() -> list[Line]:
    """Which keys are set; never their values."""
    return [(name, "set" if os.environ.get(name) else f"not set ({words})") for name, words in KEYS.items()]


def folders() -> tuple[list[Line], list[str]]:
    """Sizes of the caches and of the outputs, and what cannot be written."""
    lines, problems = [], []
    for name, folder, remedy in (
        ("vectors", cache_root(), "export DCDT_CACHE=FOLDER"),
        ("outputs", outputs_root(), "export DCDT_OUTPUTS=FOLDER"),
    ):
        home = next(path for path in (folder, *folder.parents) if path.exists())
        size, free = sum(_sizes(folder)) / 2**20, shutil.disk_usage(home).free / 2**30
        lines.append((name, f"{folder}: {size:,.0f} MB, {free:,.1f} GB free"))
        if not os.access(home, os.W_OK):
            problems.append(f"{folder} cannot be written: {remedy}")
        if free < 1:
            problems.append(f"only {free:.1f} GB are free for {folder}: make room, or {remedy}")
    return lines, problems


def wandb_mode() -> list[Line]:
    """Where runs with logger=wandb go."""
    from dcdt.callbacks.wandb_key import has_key

    chosen = os.environ.get("WANDB_MODE")
    mode = f"{chosen} ($WANDB_MODE)" if chosen else "online" if has_key() else "offline, since no key is configured"
    return [("W&B", mode)]


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        try:
            yield path.stat().st_size if path.is_file() else 0
        except OSError:  # removed meanwhile
            continue


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; exit code 2 where something stands in the way of a run."""
    guard_output()
    parser = argparse.ArgumentParser(prog="python -m dcdt.doctor", description=__doc__)
    parser.parse_args(arguments)
    console = Console(highlight=False)
    installed, missing = packages()
    where, problems = folders()
    problems = missing + problems
    for name, value in [*installed, *keys(), *where, *([] if missing else [*wandb_mode(), *devices()])]:
        console.print(f"{name:<24}{value}", soft_wrap=True, markup=False)
    for problem in problems:
        console.print(f"mend: {problem}", soft_wrap=True, markup=False)
    if problems:
        raise SystemExit(2)
    console.print("nothing stands in the way of a run: python -m dcdt.run")


if __name__ == "__main__":
    main()
