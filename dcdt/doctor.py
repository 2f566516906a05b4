"""Versions, devices, keys and folders, and what to fix: `python -m dcdt.doctor`. No key is ever printed."""

import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from dcdt.cli import Parser, command
from dcdt.utils.shell import program

KEYS = {
    "OPENAI_API_KEY": "embedder=openai needs it; embedder=local does not",
    "OPENAI_BASE_URL": "another server that speaks OpenAI's protocol",
    "WANDB_API_KEY": "or `wandb login`; without either runs stay offline",
    "AWS_ACCESS_KEY_ID": "for a catalogue at s3://",
}
EXTRA = re.compile(r'extra == "([^"]+)"')
Line = tuple[str, str]


def packages() -> tuple[list[Line], list[str]]:
    """Versions of the required packages, by extra, and problems: core packages that are missing or too old."""
    lines, problems = [("dcdt", version("dcdt")), ("python", platform.python_version())], []
    for requirement in map(Requirement, requires("dcdt") or []):
        match = EXTRA.search(str(requirement.marker))
        extra = f"[{match[1]}]" if match else ""
        if extra in ("[dev]", "[audit]") or not _applies(requirement, extra):
            continue
        remedy = f"pip install 'dcdt{extra}'"
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            lines.append((requirement.name, f"not installed: {remedy}"))
            problems += [] if extra else [f"{requirement.name} is missing: {remedy}"]
            continue
        fits = requirement.specifier.contains(installed, prereleases=True)
        lines.append((requirement.name, installed + (f"  {extra}" if extra else "")))
        if not fits:
            versions = f"{requirement.name} is {installed}; dcdt{extra} needs {requirement.specifier}"
            problems.append(f"{versions}: pip install --upgrade 'dcdt{extra}'")
    return lines, problems


def _applies(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement applies to this machine, given its extra."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra.strip("[]")})


def devices() -> list[Line]:
    """Name the accelerators that torch can train on."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return [("accelerator", f"{', '.join(names)} (CUDA {torch.version.cuda}): trainer=gpu")]
    if torch.backends.mps.is_available():
        return [("accelerator", "Apple GPU: trainer=gpu")]
    return [("accelerator", f"none that torch {torch.__version__} can use: trainer=cpu, {os.cpu_count()} cores")]


def keys() -> list[Line]:
    """The keys that are set, without their values."""
    return [(name, "set" if os.environ.get(name) else f"not set ({words})") for name, words in KEYS.items()]


def folders() -> tuple[list[Line], list[str]]:
    """Sizes of the caches and of the outputs, and folders that cannot be written."""
    from dcdt.config import cache_root, outputs_root

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
    """The mode of runs with logger=wandb."""
    from dcdt.training.loggers.wandb_key import has_key

    chosen = os.environ.get("WANDB_MODE")
    mode = f"{chosen} ($WANDB_MODE)" if chosen else "online" if has_key() else "offline, since no key is configured"
    return [("W&B", mode)]


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        try:
            yield path.stat().st_size if path.is_file() else 0
        except OSError:  # removed meanwhile
            continue


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command; exit code 2 where a run is not possible."""
    parser = Parser("doctor", description=__doc__)
    parser.parse_args(arguments)
    lines, problems = packages()
    lines += keys()
    if not problems:  # what follows needs the packages
        where, problems = folders()
        lines += [*where, *wandb_mode(), *devices()]
    for name, value in lines:
        print(f"{name:<34}{value}")  # noqa: T201 - the command's own answer
    for problem in problems:
        print(f"fix: {problem}")  # noqa: T201
    if problems:
        raise SystemExit(2)
    print(f"nothing stands in the way of a run: {program('run')}")  # noqa: T201


if __name__ == "__main__":
    main()
