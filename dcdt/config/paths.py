"""Paths of configurations, collections, caches and runs."""

import argparse
import os
from pathlib import Path

from dcdt.utils.errors import UserError
from dcdt.utils.files import read_json
from dcdt.utils.shell import user_path


def config_folder() -> Path:
    """Folder of the configuration files: conf/ of the checkout, or the copy inside an installed package."""
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent / "conf"
    return checkout if (checkout / "config.yaml").is_file() else package / "conf"


def project_root() -> Path:
    """Folder that relative paths of shipped configurations start from: the checkout, or where the user stands."""
    root = Path(__file__).resolve().parent.parent.parent
    return root if (root / "conf" / "config.yaml").is_file() else Path.cwd()


def demo_collection() -> Path:
    """Folder of the linear-algebra videos: in the checkout, or the copy inside an installed package."""
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent / "data" / "linear_algebra"
    return checkout if checkout.is_dir() else package / "demo" / "linear_algebra"


def cache_home() -> Path:
    """Folder of what can be made again: $DCDT_CACHE, or dcdt in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dcdt"
    return user_path(os.environ.get("DCDT_CACHE") or default)


def cache_root() -> Path:
    """Folder of cached vectors: $DCDT_CACHE, or dcdt/embeddings in the user's cache folder."""
    return user_path(os.environ.get("DCDT_CACHE") or cache_home() / "embeddings")


def run_path(text: str) -> Path:
    """A run's folder as an argument of commands: a path, the name of a folder of outputs_root(), or `latest`."""
    path, named = user_path(text), outputs_root() / text
    try:
        if text == "latest" and not path.exists():
            return latest_run()
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return named if not os.path.exists(path) and os.path.isfile(named / "status.json") else path


def latest_run(finished: bool = True) -> Path:
    """The last run of outputs_root() that finished, or that did not; a UserError where there is none."""
    statuses = {path: read_json(path).get("status") for path in outputs_root().glob("*/status.json")}
    files = [path for path, status in statuses.items() if (status == "finished") == finished]
    if not files:
        raise UserError(f"latest: no run in {outputs_root()} {'has finished' if finished else 'was cut off'}")
    return max(files, key=lambda path: path.stat().st_mtime).parent


def outputs_root() -> Path:
    """Folder of runs: $DCDT_OUTPUTS, or outputs/ of the checkout, or where the user stands."""
    return user_path(os.environ.get("DCDT_OUTPUTS") or project_root() / "outputs")
