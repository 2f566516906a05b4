"""What Hydra needs to compose a configuration: resolvers, names of runs and sweeps, checks of the command line."""

import hashlib
import os
import re
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dcdt.config.options import model_option
from dcdt.config.paths import cache_root, config_folder, demo_collection, outputs_root, project_root
from dcdt.config.plugins import add_plugins, load_plugin, plugin_folders, plugin_names
from dcdt.config.registry import TRAINED, depends_on, load
from dcdt.utils.errors import UserError

LONGEST_KEY = 200  # characters
ELSEWHERE = ("outputs=", "logger=", "logger.", "callbacks.progress=", "sweep.", "plugins=")  # which decide no result


def check_choices(arguments: list[str]) -> None:
    """Refuse on the command line what Hydra would answer with a traceback: a number where an option is chosen.

    Raises:
        UserError: names the choice.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Sweep
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for text in arguments:
        try:
            override = parser.parse_override(text)
        except HydraException:  # an option of the command, or something that Hydra itself refuses in words
            continue
        group, value = override.key_or_group, override.value()
        if len(group) > LONGEST_KEY:
            raise UserError(f"{group[:40]}... is no key of the configuration; see python -m dcdt.run --help.")
        if (config_folder() / group).is_dir() and not isinstance(value, str | list | Sweep | None):
            options = ", ".join(sorted(path.stem for path in (config_folder() / group).glob("*.yaml")))
            raise UserError(f"{group}={value} chooses no option; choose one of {options}.")


def take_plugins(arguments: list[str]) -> None:
    """Load the plugins of the environment and of `plugins=[...]` on the command line.

    Raises:
        UserError: one is missing or cannot be imported.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for text in arguments:
        if not text.startswith("plugins="):
            continue
        try:
            value = OverridesParser.create().parse_override(text).value()
        except HydraException:
            value = None
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise UserError(f"{text[:80]} names no plugins; give Python files or modules as plugins=[my_towers.py].")
        add_plugins(value)
    load()
    for name in plugin_names():  # also where the tables were there before
        load_plugin(name)


def _add_plugin_folders() -> None:
    """Let Hydra find the options that lie in conf/ beside a plugin."""
    from hydra.core.config_search_path import ConfigSearchPath
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class PluginFolders(SearchPathPlugin):
        """Adds the folders whenever a configuration is composed."""

        def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
            """Put them after those of the command line."""
            for folder in plugin_folders():
                search_path.append(provider="dcdt plugins", path=f"file://{folder}")

    if not any(one.__name__ == PluginFolders.__name__ for one in Plugins.instance().discover(SearchPathPlugin)):
        Plugins.instance().register(PluginFolders)


def register_resolvers() -> None:
    """Make the resolvers of conf/ known to OmegaConf, and the options of plugins to Hydra."""
    if plugin_names():
        _add_plugin_folders()
    resolvers: dict[str, Any] = {
        "project_root": lambda: str(project_root()),
        "demo_collection": lambda: str(demo_collection()),
        "cache_root": lambda: str(cache_root()),
        "outputs_root": lambda: str(outputs_root()),
        "vectors_of": _vectors_of,
        "stem": lambda path: _plain(Path(path).name),
        "job_name": job_name,
        "model_option": model_option,
        "run_folder": lambda resumed, new: resumed or new,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    once: dict[str, Any] = {"unique": lambda: secrets.token_hex(2), "sweep_name": lambda: _sweep_name(sys.argv[1:])}
    for name, resolver in once.items():  # cached: all jobs of a sweep see the parent's value
        OmegaConf.register_new_resolver(name, resolver, use_cache=True, replace=True)


def _vectors_of(path: str) -> str:
    """Cache of a collection: the vectors it brings, else the user's cache."""
    own = Path(path) / "embeddings"
    return str(own if os.path.isdir(own) else cache_root())  # false also for what no path can be


def _sweep_name(arguments: list[str]) -> str:
    """Folder of a sweep: its experiment and a hash of the command line, so that the same command finds it again."""
    overrides = [item for item in arguments if not item.startswith(("-", "hydra", *ELSEWHERE))]
    given = dict(override.split("=", 1) for override in overrides if "=" in override)
    path = Path(given.get("data.path", given.get("data", "linear_algebra"))).name
    return f"{_plain(given.get('experiment', 'sweep'))}_{_plain(path)}_{_digest(sorted(overrides))}"


def read_overrides(overrides: Sequence[str], model: object, trials: object = 1) -> list[str]:
    """The choices of a job without those that its model does not read.

    Args:
        overrides: of the command line, as Hydra gives them to a job.
        model: the model's configuration.
        trials: configurations compared.

    >>> choices = ["model=zero_shot", "loss.margin=0.5", "+sampler=x", "model@loss.teacher=bm25"]
    >>> read_overrides([*choices, "split.train_queries=8"], {"name": "zero_shot"})
    ['model=zero_shot']
    """
    skipped = TRAINED - depends_on(model, trials)
    return [text for text in overrides if _setting(text) not in skipped]


def _setting(override: str) -> str:
    """Which setting of training an override changes: `loss` for loss=infonce and for loss.margin=1."""
    key = override.split("=")[0].lstrip("+~").split("@")[-1]
    return "train_queries" if key == "split.train_queries" else key.split(".")[0]


def job_name(overrides: Sequence[str], model: object = None, trials: object = 1) -> str:
    """Folder of one job of a sweep: the choices in words, as far as they fit, and a hash of all of them.

    Choices that the model does not read are left out, so that jobs which differ in nothing else are one.
    """
    deciding = [item for item in read_overrides(overrides, model, trials) if not item.startswith(ELSEWHERE)]
    shown = [item for item in deciding if not item.startswith(("experiment=", "data=", "data.path=", "data.cache="))]
    return f"{_plain(','.join(shown))[:90]}_{_digest(sorted(deciding))}"


def _plain(text: str) -> str:
    """Text for the name of a folder. Only a minus sign becomes a minus sign before a number.

    >>> _plain("model.fields=[title,text]"), _plain("optimizer.lr=1e+30"), _plain("optimizer.lr=1e-30")
    ('model.fields=-title,text-', 'optimizer.lr=1e+30', 'optimizer.lr=1e-30')
    >>> _plain("a=-1"), _plain("a=[1]"), _plain("a=[-1]"), _plain("a={b:1}"), _plain("a={b:-1}")
    ('a=-1', 'a=_1-', 'a=--1-', 'a=-b_1-', 'a=-b--1-')
    >>> _plain("+a=1"), _plain("~a"), _plain("a/b=c d")
    ('+a=1', '-a', 'a-b=c-d')
    """
    text = re.sub(r"[^A-Za-z0-9=.,_+-](?=[0-9.])", "_", text)
    return re.sub(r"[^\x00-\x7f]+|[^A-Za-z0-9=.,_+-]", "-", text)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
