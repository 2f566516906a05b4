"""The provenance of a result: code, packages, data, split and command."""

import hashlib
import json
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dcdt.config import depends_on
from dcdt.config.plugins import plugin_files
from dcdt.config.registry import TRAINED
from dcdt.data.splits import Split, weak_counts
from dcdt.data.types import Collection

PACKAGES = ("dcdt", "torch", "lightning", "hydra-core", "omegaconf", "torchmetrics", "numpy", "rank-bm25", "implicit")


def provenance(collection: Collection, split: Split, space: str, vectors: str | None) -> dict[str, Any]:
    """Values to repeat a result by; of the machine's names and paths only those in the command."""
    return {
        **code_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "command": ["python", "-m", f"dcdt.{'federate' if 'federate' in sys.argv[0] else 'run'}", *sys.argv[1:]],
        "collection": collection.name,
        "collection_fingerprint": collection.fingerprint,
        "embeddings": space,
        "vectors": vectors,
        "split_fingerprint": split.fingerprint,
        "simulated": collection.simulated,
        "weak": weak_counts(collection, split),
        "queries": {
            "train": len(split.train.queries),
            **{name: len(side.queries) for name, side in split.sides.items()},
            "left_out": split.left_out,
        },
        "candidates": {name: int(side.candidates.sum()) for name, side in split.sides.items()},
    }


@cache
def code_version() -> dict[str, Any]:
    """Git commit and dirty flag of the checkout (null outside one), and a hash of the package's source.

    Read once a process: a later change is not what runs.
    """
    package = Path(__file__).resolve().parents[1]
    commit = _git(package, "rev-parse", "HEAD")
    digest = hashlib.sha256()
    for folder in (package, package.parent / "baselines"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder.parent)).encode() + path.read_bytes())
    for path in plugin_files():
        digest.update(path.name.encode() + path.read_bytes())
    dirty = bool(_git(package, "status", "--porcelain", "--", ".", "../baselines", "../conf")) if commit else None
    return {"commit": commit, "dirty": dirty, "code": digest.hexdigest()[:16]}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        process = subprocess.run(  # nosec B603 B607 # the user's own git, with fixed arguments
            ["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip() if process.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def fingerprint(config: DictConfig, collection: str, code: str) -> str:
    """Hash of what decides a job's result: its configuration (except logging and paths), the data and the code."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    unread = TRAINED - depends_on(values.get("model"), values.get("trials"))
    left_out = {"logger", "outputs", "callbacks", "resume", "sweep", *unread}
    deciding = {str(key): value for key, value in values.items() if key not in left_out}
    deciding["callbacks"] = {**values["callbacks"], "progress": None, "checkpoint_seconds": None}
    if "train_queries" in unread:
        deciding["split"] = {**values["split"], "train_queries": None}
    return hashlib.sha256(json.dumps([deciding, collection, code], sort_keys=True).encode()).hexdigest()[:16]
