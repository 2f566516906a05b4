"""Check the choices of a command line and load its plugins, before Hydra composes the configuration."""

from types import NoneType

from dcdt.config.paths import config_folder
from dcdt.config.plugins import add_plugins, load_plugin, plugin_names
from dcdt.config.registry import GROUPS, SINGLE, load
from dcdt.config.settings import Settings
from dcdt.config.validation import field_types
from dcdt.utils.errors import UserError
from dcdt.utils.shell import override

HYDRA_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
MAX_KEY_CHARS = 200


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
        if len(group) > MAX_KEY_CHARS:
            raise UserError(f"{group[:40]}... is no key of the configuration; see python -m dcdt.run --help.")
        if (config_folder() / group).is_dir() and not isinstance(value, str | list | Sweep | None):
            options = ", ".join(sorted(path.stem for path in (config_folder() / group).glob("*.yaml")))
            raise UserError(f"{group}={value} chooses no option; choose one of {options}.")


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
