"""Keys of the configuration by their names of before 0.2, which are read for one release and no longer written."""

import logging
from collections.abc import Iterable, MutableMapping
from contextlib import nullcontext
from functools import cache
from typing import Any

from omegaconf import DictConfig, flag_override

from dcdt.config.registry import GROUPS, SINGLE

log = logging.getLogger("dcdt")
RENAMED = {  # the old name of a key, its new one, and the groups it stands in; a loss may have a model as its teacher
    "weight_on": ("tune_on", ("model", "loss")),
    "pool_share": ("pool_fraction", ("sampler",)),
    "learned": ("learn_temperature", ("loss",)),
    "tables": ("embedding_dtype", ("trainer",)),
}


def rename_overrides(overrides: Iterable[str]) -> list[str]:
    """Arguments of the command line with the names of now.

    >>> rename_overrides(["sampler.pool_share=0.1", "model.recall.weight_on=val", "model=hybrid"])
    ['sampler.pool_fraction=0.1', 'model.recall.tune_on=val', 'model=hybrid']
    """
    return [_rename_override(text) for text in overrides]


def _rename_override(text: str) -> str:
    key, equals, value = text.partition("=")
    path, dot, old = key.rpartition(".")
    new, groups = RENAMED.get(old, ("", ()))
    group = path.lstrip("+~").partition(".")[0]
    if not dot or group not in groups or any(_has(entry.schema, old) for entry in GROUPS[group].values()):
        return text
    _warn(f"{group}.{old}", f"{group}.{new}")
    return f"{path}.{new}{equals}{value}"


def normalise(config: Any) -> Any:  # noqa: ANN401 - whatever a file holds
    """A configuration, changed in its place, as this version writes it.

    Keys have their names of now (where it has both, the old one was given), and it names no plugins: these are for the
    command line, and no stored run says what to import.
    """
    for group in (name for name in GROUPS if name in config):
        _rename_in(config, group, group)
    optimizer = config.get("optimizer")
    if isinstance(optimizer, dict):  # which was AdamW, before there were others
        config["optimizer"] = {"name": "adamw", "warmup_steps": 0.0, **optimizer}
    embedder = config.get("embedder")
    if isinstance(embedder, dict) and embedder.get("spoken_formulas") is False:  # an option that is gone
        del embedder["spoken_formulas"]
    if "plugins" in config:
        with flag_override(config, "struct", False) if isinstance(config, DictConfig) else nullcontext():
            del config["plugins"]
    return config


def add_defaults(config: dict[str, Any]) -> None:
    """Add the keys that came after a stored configuration was written: the defaults are what its version did."""
    for group, part in config.items():
        if isinstance(part, dict):
            registry = GROUPS.get(group, SINGLE if group in SINGLE else GROUPS["model"])
            entry = registry.get(group if group in SINGLE else str(part.get("name")))
            schema: Any = entry.schema if entry is not None else None
            for key, field in getattr(schema, "__dataclass_fields__", {}).items():
                if isinstance(field.default, str | int | float | None):
                    part.setdefault(key, field.default)
            add_defaults(part)  # a model may have others as its parts


def _rename_in(config: Any, key: str, group: str) -> None:  # noqa: ANN401
    part = config._get_node(key) if isinstance(config, DictConfig) else config.get(key)
    if not isinstance(part, MutableMapping) or (
        isinstance(part, DictConfig) and (part._is_none() or part._is_missing())
    ):
        return
    for name in list(part):
        new, groups = RENAMED.get(str(name), ("", ()))
        if group in groups and _is_old(part, str(name), new):
            _warn(f"{group}.{name}", f"{group}.{new}")
            if isinstance(part, DictConfig):
                with flag_override(part, ["struct", "readonly"], False):
                    part[new] = part._get_node(name)
                    del part[name]
            else:
                part[new] = part.pop(name)
        else:
            _rename_in(part, name, group)


def _is_old(part: Any, old: str, new: str) -> bool:  # noqa: ANN401
    """Whether the schema that a mapping names has the new name of a key and not the old one."""
    name = part._get_node("name") if isinstance(part, DictConfig) else part.get("name")
    schemas = [table[str(name)].schema for table in GROUPS.values() if str(name) in table]
    return any(_has(schema, new) and not _has(schema, old) for schema in schemas)


def _has(schema: Any, name: str) -> bool:  # noqa: ANN401
    return name in schema.__pydantic_fields__


@cache
def _warn(old: str, new: str) -> None:
    log.warning("%s is now named %s; the old name is read until 0.3.", old, new)
