"""Read untrusted YAML as data: no tags, no aliases, no interpolations."""

import io
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from dcdt.utils.errors import UserError
from dcdt.utils.files import read_limited
from dcdt.utils.text import one_line

MAX_YAML_BYTES = 1 << 20  # typical configurations have a few thousand


def read_yaml(path: Path, as_text: bool = False) -> dict[str, Any]:
    """Read the keys and values of a YAML file.

    Args:
        path: of the file.
        as_text: read every plain value as it is written, so that `no` and `2024_01` are neither false nor a number.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read, is no YAML of keys and values, or has aliases, which can exhaust memory.
    """
    try:
        text = read_limited(path, MAX_YAML_BYTES)
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise UserError(f"{path} repeats a part by an alias (*name); write it out.")
        settings = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))  # also refuses keys that occur twice
        if as_text and settings:
            settings = yaml.load(text, yaml.BaseLoader)  # nosec B506 # it makes texts, lists and mappings
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:  # the YAML reader's errors share no base with OmegaConf's
        raise UserError(f"{path} is not readable YAML ({one_line(error, 160)}).") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold keys and values.")
    return {str(key): value for key, value in settings.items()}


def refuse_interpolations(value: Any, path: Path) -> Any:  # noqa: ANN401 - plain values
    """Return a value that has no interpolation in its texts.

    Raises:
        UserError: it has one.
    """
    if isinstance(value, str) and "${" in value:
        raise UserError(f"{path} holds {value[:80]!r}, which would be looked up here; a run's files hold plain values.")
    if isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            refuse_interpolations(item, path)
    return value
