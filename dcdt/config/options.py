"""The options of conf/model by their values: a run is named by the option that its user chose, not by its class."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcdt.config.paths import config_folder


@cache
def model_presets() -> dict[str, dict[str, Any]]:
    """The values of every option of conf/model by its name, as Hydra would compose them in 1.6 seconds."""
    options = sorted(path.stem for path in (config_folder() / "model").glob("*.yaml"))
    return {name: cast(dict[str, Any], OmegaConf.to_container(_compose(name, {}))) for name in options}


def _compose(name: str, parts: dict[str, Any]) -> DictConfig:
    """One option with its `defaults` merged in their order; `parts` are choices made by an option built on it."""
    own = {key: value for key, value in _file(name).items() if key != "defaults"}
    defaults = list(_file(name).get("defaults", []))
    chosen: dict[str, Any] = {}
    for key, option in (pair for item in defaults if not isinstance(item, str) for pair in item.items()):
        if key.startswith("override "):
            chosen[key.partition("@")[2]] = option
    chosen |= parts
    result: Any = OmegaConf.create()
    for item in defaults if "_self_" in defaults else [*defaults, "_self_"]:
        if item == "_self_":
            result = OmegaConf.merge(result, own)
        elif isinstance(item, str):
            result = OmegaConf.merge(result, _compose(item, chosen))
        else:
            [(key, option)] = item.items()
            branch = key.partition("@")[2]
            option = chosen.get(branch, option)
            if option is not None and not key.startswith("override "):
                result = OmegaConf.merge(result, {branch: _compose(option, {})})
    return cast(DictConfig, result)


@cache
def _file(name: str) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(config_folder() / "model" / f"{name}.yaml")))


def model_option(model: Any) -> str:  # noqa: ANN401 - a configuration that nobody has checked
    """The option of conf/model that a model's configuration is, or of the same class the one it differs least from.

    Keys that came after an older run do not count. Where no option is of its class, the class's name.

    >>> model_option({"name": "dcdt", "attention": "query", "width": 8})
    'dcdt_attention'
    """
    try:
        values = flatten(OmegaConf.to_container(model, resolve=True) if OmegaConf.is_config(model) else model)
    except OmegaConfBaseException:  # an interpolation that leads nowhere, which the check of the configuration refuses
        name = cast(dict[str, Any], OmegaConf.to_container(model)).get("name", "model")
        return str(name)
    name = values.get("name", "model")
    differing = {
        option: sum(known.get(key) != value for key, value in values.items())
        for option, known in _flat_presets().items()
        if known["name"] == name
    }
    return min(differing, key=lambda option: (differing[option], option != name, option), default=name)


@cache
def _flat_presets() -> dict[str, dict[str, str]]:
    return {option: flatten(values) for option, values in model_presets().items()}


def flatten(value: Any) -> dict[str, str]:  # noqa: ANN401 - configuration
    """Dotted keys of nested mappings, with their values as a command line would give them.

    >>> flatten({"loss": {"name": "contrastive", "margin": 1.0}, "seed": 0})
    {'loss.name': 'contrastive', 'loss.margin': '1', 'seed': '0'}
    """
    return dict(_flatten(value, ""))


def _flatten(value: Any, place: str) -> Iterable[tuple[str, str]]:  # noqa: ANN401 - configuration
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{place}.{key}" if place else str(key))
    else:
        yield place, as_text(value)


def as_text(value: Any) -> str:  # noqa: ANN401 - configuration
    """A value as a command line would give it.

    >>> as_text([True, None, 0.001, "title"])
    '[true,null,0.001,title]'
    """
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{as_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(as_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 1e15
    return str(int(value) if whole else value)  # margin 1 and margin 1.0 are the same choice
