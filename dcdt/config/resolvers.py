"""The resolvers of conf/ (`${job_name:...}`), and the configuration folders of plugins."""

import os
import secrets
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dcdt.config.help import commented_config, option_list
from dcdt.config.job_names import folder_name, job_name, sweep_name
from dcdt.config.options import model_option
from dcdt.config.paths import cache_root, demo_collection, outputs_root, project_root
from dcdt.config.plugins import plugin_folders, plugin_names
from dcdt.utils.shell import user_path


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
        "stem": lambda path: folder_name(Path(path).name),
        "job_name": job_name,
        "model_option": model_option,
        "run_folder": lambda resumed, new: resumed or new,
        "option_list": option_list,
        "commented_config": lambda *, _root_: commented_config(_root_),
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    once: dict[str, Any] = {"unique": lambda: secrets.token_hex(2), "sweep_name": lambda: sweep_name(sys.argv[1:])}
    for name, resolver in once.items():  # cached: all jobs of a sweep see the parent's value
        OmegaConf.register_new_resolver(name, resolver, use_cache=True, replace=True)


def _vectors_of(path: str) -> str:
    """Cache of a collection: the vectors it brings, else the user's cache."""
    own = user_path(path) / "embeddings"
    return str(own if os.path.isdir(own) else cache_root())  # false also for what no path can be


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
