"""Registries of the named options of the configuration: the schema and the class of each.

A configuration names an entry here and can name nothing else, so that a stranger's run is data.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from threading import RLock
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from pydantic import BeforeValidator, ValidationInfo

from dcdt.config.plugins import VARIABLE, load_plugin, plugin_names
from dcdt.config.validation import validate
from dcdt.utils.errors import UserError

SearchSpace = Mapping[str, list[Any]]  # keys of the configuration, each with the values that tuning draws from
BUILT_IN = (
    *("dcdt.models.config", "baselines.config", "dcdt.losses.config", "dcdt.samplers.config"),
    *("dcdt.data.config", "dcdt.embeddings.config", "dcdt.training.config"),
)
TRAINED = frozenset({"loss", "sampler", "batch_size", "optimizer", "train_queries"})
FITTED = frozenset({"train_queries"})  # in closed form, or chosen by validation queries, which go along
UNTRAINED: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Entry:
    """One option of a group.

    Attributes:
        schema: of its configuration.
        target: its class, or where to import it from, as `package.module:Class`; None where nothing is made from it.
        search_space: of tuning, or what makes it from the model's configuration.
        depends_on: of a model: which of loss, sampler, batch_size, optimizer and train_queries its scores depend on.
        depends_on_tuned: the same where several configurations are compared.
    """

    schema: type
    target: str | type | None = None
    search_space: SearchSpace | Callable[[Mapping[str, Any]], SearchSpace] | None = None
    depends_on: frozenset[str] = TRAINED
    depends_on_tuned: frozenset[str] | None = None


class Registry(Mapping[str, Entry]):
    """The entries of a group by name, in the order of their registration; the built-in ones are there when needed."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def __getitem__(self, name: str) -> Entry:
        load()
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        load()
        return iter(self.entries)

    def __len__(self) -> int:
        load()
        return len(self.entries)

    def register(self, name: str, entry: Entry) -> None:
        """Add an entry, or replace the one of this name."""
        self.entries[name] = entry


GROUPS = {
    name: Registry()
    for name in ("model", "loss", "sampler", "data", "split", "embedder", "optimizer", "trainer", "logger")
}
GROUPS["image_embedder"] = Registry()  # of which none may be chosen
SINGLE = Registry()  # groups of which there is one option alone, by the group's name
OPEN_GROUPS = ("model", "loss", "sampler", "embedder", "optimizer")  # which a user can add to
MODELS, LOSSES, SAMPLERS, OPTIMIZERS = (GROUPS[name] for name in ("model", "loss", "sampler", "optimizer"))


class _Loading:
    """Whether the modules that register entries have been imported; plugins may read the registries meanwhile."""

    done = False
    lock = RLock()


def load() -> None:
    """Import the modules that register what comes with the package, then the plugins, once.

    Raises:
        UserError: a plugin cannot be imported.
    """
    with _Loading.lock:
        if _Loading.done:
            return
        _Loading.done = True
        try:
            for module in BUILT_IN:
                import_module(_installed(module))
            for name in plugin_names():
                load_plugin(name)
        except BaseException:
            _Loading.done = False
            raise


def register(
    group: str,
    name: str,
    schema: type,
    search_space: SearchSpace | None = None,
    depends_on: Iterable[str] = TRAINED,
) -> Callable[[type], type]:
    """Register the class that follows as `group=name`, as a plugin does (docs/extending.md).

    Args:
        group: model, loss, sampler, embedder or optimizer.
        name: of the option; its configuration has it as `name`.
        schema: of its configuration, a class decorated with `dcdt.config.schema`, with a field `name`.
        search_space: of a model: keys of the configuration, each with the values that tuning draws from.
        depends_on: of a model: which of loss, sampler, batch_size, optimizer and train_queries its scores depend on.

    Raises:
        UserError: the group or the schema is invalid, or the name is taken.
    """
    load()
    if group not in OPEN_GROUPS:
        raise UserError(f"no {group} can be registered; choose one of {', '.join(OPEN_GROUPS)}.")
    if "name" not in getattr(schema, "__pydantic_fields__", ()):
        raise UserError(f"{schema!r} is no schema; write @schema of dcdt.config above it, and the field `name: str`.")

    def add(cls: type) -> type:
        existing = GROUPS[group].entries.get(name)
        if existing is not None and getattr(existing.target, "__module__", None) != cls.__module__:
            raise UserError(f"{group}={name} is there already; give yours another name.")
        GROUPS[group].register(name, Entry(schema, cls, search_space, frozenset(depends_on)))
        return cls

    return add


def _installed(module: str) -> str:
    """The name of a module: the baselines lie beside dcdt/ in a checkout and inside it when installed."""
    inside = module.startswith("baselines.") and find_spec("dcdt.baselines") is not None
    return f"dcdt.{module}" if inside else module


def look_up(registry: Registry, name: str) -> Any:  # noqa: ANN401 - classes of several kinds
    """The class registered under `name`.

    Raises:
        KeyError: there is none.
    """
    target = registry[name].target
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(import_module(_installed(module)), attribute)


def name_of(registry: Registry, cls: type) -> str:
    """The name that a class is registered under; what is built in is not imported to find out."""
    path = f"{cls.__module__}:{cls.__name__}"
    return next(name for name, entry in registry.items() if entry.target is cls or _path_of(entry) == path)


def _path_of(entry: Entry) -> str | None:
    """The module and class of what is built in."""
    return _installed(entry.target) if isinstance(entry.target, str) else None


def choose(registry: Registry, name: object, key: str, choices: Sequence[str] | None = None) -> Entry:
    """The entry that a configuration names, of all or of some.

    Raises:
        UserError: it is none of them.
    """
    choices = list(registry) if choices is None else choices
    if not isinstance(name, str) or name not in choices:
        remedy = f"\nIf it is a plugin's, name that: export {VARIABLE}=my_plugin.py, or install its package."
        is_open = isinstance(name, str) and any(registry is GROUPS[group] for group in OPEN_GROUPS)
        raise UserError(f"{key}.name is {name!r}; choose one of {', '.join(choices)}.{remedy if is_open else ''}")
    return registry[name]


def model_part(*without: str, only: tuple[str, ...] = ()) -> BeforeValidator:
    """Validate the configuration of a model inside another one, such as model.first.

    Args:
        without: models that cannot stand there.
        only: those that can, if it is not all the others.
    """

    def read(value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401 - any model's configuration
        key = f"{(info.context or {}).get('key', 'model')}.{info.field_name}"
        if isinstance(value, tuple(entry.schema for entry in MODELS.values())):
            return value
        name = value.get("name") if isinstance(value, dict) else value
        entry = choose(MODELS, name, key, [one for one in only or MODELS if one not in without])
        if not isinstance(value, dict):
            raise UserError(f"{key}={name} sets no model; choose a part as model@{key}={name}.")
        return validate(entry.schema, value, key)

    return BeforeValidator(read)


def expand_images(model: Any) -> Any:  # noqa: ANN401 - a configuration that nobody has checked
    """Replace zero_shot with the field `image`, wherever it stands in a model, by a hybrid with its pictures' part.

    >>> expand_images({"name": "zero_shot", "fields": ["title", "image"]})["second"]
    {'name': 'image'}
    """
    if not isinstance(model, Mapping):
        return model
    model = {key: expand_images(value) for key, value in model.items()}
    fields = model.get("fields")
    if model.get("name") != "zero_shot" or not isinstance(fields, Sequence) or "image" not in fields:
        return model
    texts, pictures = {**model, "fields": [name for name in fields if name != "image"]}, {"name": "image"}
    fusion = {"name": "hybrid", "fusion": "convex", "tune_on": "judged", "k": 60}
    return {**fusion, "first": texts, "second": pictures} if texts["fields"] else pictures


def search_space(name: str, model: Mapping[str, Any] | None = None) -> SearchSpace:
    """The values that tuning draws from; empty where a model has nothing to tune.

    Args:
        name: of the model.
        model: its configuration, which decides for some what is read.
    """
    space = MODELS[name].search_space if name in MODELS else None
    return (space(model or {}) if callable(space) else space) or {}


def depends_on(model: object, trials: object = 1) -> frozenset[str]:
    """List which of loss, sampler, batch_size, optimizer and train_queries a model's scores depend on.

    `train_queries` stands for split.train_queries, the others for groups and keys of the configuration.

    Args:
        model: its configuration; a model that is not registered depends on all of them.
        trials: how many configurations are compared, by the validation queries.

    >>> sorted(depends_on({"name": "dcdt_ridge"})), sorted(depends_on({"name": "bm25"}, trials=2))
    (['train_queries'], ['train_queries'])
    >>> sorted(depends_on({"name": "bm25"}))
    []
    """
    try:
        name = expand_images(model)["name"] if isinstance(model, Mapping) and "name" in model else None
    except OmegaConfBaseException:  # refused where the configuration is checked
        name = None
    entry = MODELS.get(str(name))
    if entry is None:
        return TRAINED
    tuned = entry.depends_on_tuned if isinstance(trials, int) and trials > 1 else None
    return entry.depends_on if tuned is None else tuned
