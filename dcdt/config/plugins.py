"""Python files and packages of the user that register models, losses, samplers and embedders of their own.

They are named on the command line, in the environment or by an installed package, and never by a stored run.
"""

import os
import re
import sys
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from dcdt.utils.errors import UserError
from dcdt.utils.shell import user_path
from dcdt.utils.text import one_line

VARIABLE = "DCDT_PLUGINS"
ENTRY_POINTS = "dcdt.plugins"


def plugin_names() -> list[str]:
    """Files and modules that $DCDT_PLUGINS names, and the modules of installed packages."""
    named = [name.strip() for name in re.split(f"[,{os.pathsep}]", os.environ.get(VARIABLE, "")) if name.strip()]
    return list(dict.fromkeys([*named, *_installed()]))


@cache
def _installed() -> tuple[str, ...]:
    return tuple(point.module for point in entry_points(group=ENTRY_POINTS))


def add_plugins(names: Iterable[str]) -> None:
    """Name plugins in $DCDT_PLUGINS, which workers and other processes have too; files by their whole path."""
    paths = [str(user_path(name).resolve()) if name.endswith(".py") else name for name in names]
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*paths, *plugin_names()]))


def load_plugin(name: str) -> ModuleType:
    """Import a plugin, once.

    Args:
        name: a Python file, or a module that can be imported.

    Raises:
        UserError: it is missing or cannot be imported.
    """
    try:
        return _import_file(user_path(name)) if name.endswith(".py") else import_module(name)
    except UserError as error:
        raise UserError(f"the plugin {name} is refused: {error}") from error
    except Exception as error:  # whatever a user's file raises
        reason = f"{type(error).__name__}: {one_line(error, 200)}"
        raise UserError(
            f"the plugin {name} cannot be imported: {reason}.\nMend it, or take it out of plugins=[...] or ${VARIABLE}."
        ) from error


def _import_file(path: Path) -> ModuleType:
    name = f"dcdt_plugin_{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(path.resolve()):
        return loaded
    if not path.is_file() or loaded is not None:
        reason = "another plugin has that name" if path.is_file() else "there is no such file"
        raise UserError(f"{reason}. Name Python files, as plugins=[my_towers.py].")
    spec = spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def plugin_files() -> list[Path]:
    """The files of all plugins."""
    files = (load_plugin(name).__file__ for name in plugin_names())
    return [Path(file) for file in files if file is not None]


def plugin_folders() -> list[Path]:
    """Folders of YAML that lie beside plugins: conf/model/my_towers.yaml is model=my_towers."""
    return [folder for folder in dict.fromkeys(path.parent / "conf" for path in plugin_files()) if folder.is_dir()]
