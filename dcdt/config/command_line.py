"""Check the choices of a command line and load its plugins, before Hydra composes the configuration."""

import os
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any

from dcdt.config.paths import config_folder, latest_run
from dcdt.config.plugins import add_plugins, load_plugin, plugin_folders, plugin_names
from dcdt.config.registry import GROUPS, SINGLE, load
from dcdt.config.settings import Settings
from dcdt.config.validation import field_types
from dcdt.utils.errors import UserError
from dcdt.utils.shell import override, user_path
from dcdt.utils.text import did_you_mean, one_line

HYDRA_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
FEDERATE_KEYS = ("out", "min_queries", "included", "epsilon", "delta", "clip")  # of conf/federate.yaml
OTHER_KEYS = ("experiment", "plugins", "hydra", "dry_run", "verify", "import", *FEDERATE_KEYS)  # Hydra's, embed.yaml's
RUN_NOTHING = {"--help", "-h", "--cfg", "-c", "--info", "-i", "--hydra-help"}
MAX_KEY_CHARS = 200


def check_choices(arguments: list[str]) -> None:
    """Refuse what Hydra would answer with a traceback or long after: unknown options, keys and collections.

    Raises:
        UserError: names the choice, and the one that was probably meant.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, folders = OverridesParser.create(), _config_folders(arguments)
    for text in arguments:
        try:
            override = parser.parse_override(text)
        except HydraException:  # an option of the command, or something that Hydra itself refuses in words
            continue
        group = override.key_or_group
        if len(group) > MAX_KEY_CHARS:
            raise UserError(f"{group[:40]}... is no key of the configuration; see python -m dcdt.run --help.")
        if (config_folder() / group).is_dir():
            _check_option(override, folders)
        elif override.type is None or override.type.name != "CHANGE":  # what is added or deleted, Hydra knows
            continue
        elif group == "data.path" and not RUN_NOTHING & set(arguments):
            _check_collection(override)
        else:
            _check_key(group)


def _check_option(override: Any, folders: list[Path]) -> None:  # noqa: ANN401 - Hydra's
    """Refuse an option that no file of a group has."""
    from hydra.core.override_parser.types import Sweep

    group, value = override.key_or_group, override.value()
    if group.startswith("hydra") or not folders:  # of Hydra's own plugins, or of a search path that Hydra knows
        return
    options = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
    if not isinstance(value, str | list | Sweep | None):
        raise UserError(f"{group}={value} chooses no option; choose one of {', '.join(options)}.")
    for name in _texts(value):
        if not any((folder / group / f"{name.removesuffix('.yaml')}.yaml").is_file() for folder in folders):
            meant = did_you_mean(name, options)
            raise UserError(f"{group}={one_line(name)}: there is no such option.{meant}\nOptions: {', '.join(options)}")


def _check_collection(override: Any) -> None:  # noqa: ANN401 - Hydra's
    """Refuse a folder that is no collection, before anything large is imported."""
    for name in _texts(override.value()):
        folder = user_path(name)
        if "${" not in name and not os.path.isfile(folder / "corpus.jsonl"):
            reason = "it has no corpus.jsonl" if os.path.isdir(folder) else "there is no such folder"
            raise UserError(
                f"{one_line(folder, 300)} is not a collection: {reason}.\n"
                "A collection folder holds corpus.jsonl, queries.jsonl and qrels/*.tsv (BEIR layout)."
            )


def _check_key(key: str) -> None:
    """Refuse a key that no schema has; of the keys of a group, those of every option count."""
    group, _, rest = key.replace("/", ".").partition(".")
    name, groups = rest.partition(".")[0], {**GROUPS, **{one: {one: entry} for one, entry in SINGLE.items()}}
    schemas: list[Any] = [entry.schema for entry in groups.get(group, {}).values()] if rest else [Settings]
    names = list(dict.fromkeys(field for schema in schemas for field in schema.__pydantic_fields__))
    names = names if rest else list(dict.fromkeys([*names, *OTHER_KEYS]))
    if names and (name or group) not in names and group not in OTHER_KEYS:
        keys = ", ".join(one for one in names if one != "name")
        meant = did_you_mean(name or group, names)
        raise UserError(f"{one_line(key)} is no key of the configuration.{meant}\nKeys: {keys}")


def _config_folders(arguments: list[str]) -> list[Path]:
    """Folders of options: ours, those of --config-dir and of plugins; none where Hydra is told to search elsewhere."""
    if any(text.startswith(("hydra.searchpath", "--config-path", "-cp", "--config-name", "-cn")) for text in arguments):
        return []
    folders = [config_folder(), *map(Path, plugin_folders())]
    for text, following in pairwise([*arguments, ""]):
        option, _, folder = text.partition("=")
        folders += [user_path(folder or following)] if option in ("--config-dir", "-cd") else []
    return folders


def _texts(value: Any) -> list[str]:  # noqa: ANN401 - a value of an override
    """The texts of a value, of a list or of a sweep over some."""
    values = getattr(value, "list", value if isinstance(value, list) else [value])
    return [str(getattr(one, "text", one)) for one in values if isinstance(one, str) or hasattr(one, "text")]


def name_latest(arguments: list[str]) -> list[str]:
    """Put the run that was cut off last in the place of `resume=latest`; a UserError where there is none."""
    return [override("resume", latest_run(finished=False)) if text == "resume=latest" else text for text in arguments]


def quote_texts(arguments: list[str]) -> list[str]:
    """Quote what Hydra would change where a text or the name of an option is expected.

    >>> quote_texts(["experiment_name=2024_01", "data.path=a,1.50", "seed=1_000", "hydra.run.dir=1e3", "-m"])
    ["experiment_name='2024_01'", "data.path=a,'1.50'", 'seed=1_000', "hydra.run.dir='1e3'", '-m']
    >>> quote_texts(["data.path=my videos (1)", "data.path='my videos (1)'"])
    ['data.path="my videos (1)"', "data.path='my videos (1)'"]
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    quoted = []
    for text in arguments:
        key, equals, value = text.partition("=")
        if equals and _expects_text(key.lstrip("+")):
            text = f"{key}=" + ",".join(f"'{part}'" if _is_number(part) else part for part in value.split(","))
            try:
                parser.parse_override(text)
            except HydraException:  # brackets, or letters beyond ASCII
                text = f"{key}=" + ",".join(override("", part)[1:] for part in value.split(","))
        quoted.append(text)
    return quoted


def _is_number(text: str) -> bool:
    """Return whether Hydra reads a text as a number or as yes or no."""
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false")
    return True


def _expects_text(key: str) -> bool:
    """Return whether a key of the command line holds a text, a folder or the name of an option."""
    group, _, name = key.rpartition(".")
    schemas = [entry.schema for entry in GROUPS[group].values()] if group in GROUPS else []
    schemas += [SINGLE[group].schema] if group in SINGLE else []
    schemas += [] if group else [Settings]
    is_text = any({str} <= field_types(schema, name) <= {str, NoneType, None} for schema in schemas)
    return is_text or key in HYDRA_FOLDERS or (config_folder() / key).is_dir()


def load_plugins(arguments: list[str]) -> None:
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
    for name in plugin_names():  # also those named after the registries were filled
        load_plugin(name)
