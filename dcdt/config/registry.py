"""The named options of the configuration: which schema each has and, of models, losses and samplers, which class.

A configuration names an entry here and can name nothing else, so that a stranger's run is data.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from pydantic import BeforeValidator, ValidationInfo

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
        reads: of a model: which of loss, sampler, batch_size, optimizer and train_queries its scores depend on.
        reads_tuned: the same where several configurations are compared.
    """

    schema: type
    target: str | type | None = None
    search_space: SearchSpace | Callable[[Mapping[str, Any]], SearchSpace] | None = None
    reads: frozenset[str] = TRAINED
    reads_tuned: frozenset[str] | None = None


class Table(Mapping[str, Entry]):
    """The entries of a group by name, in the order of their registration; the built-in ones are there when needed."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}

    def __getitem__(self, name: str) -> Entry:
        load_built_in()
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        load_built_in()
        return iter(self.entries)

    def __len__(self) -> int:
        load_built_in()
        return len(self.entries)


GROUPS = {name: Table() for name in ("model", "loss", "sampler", "data", "split", "embedder", "trainer", "logger")}
SINGLE = Table()  # groups of which there is one option alone, by the group's name
MODELS, LOSSES, SAMPLERS = GROUPS["model"], GROUPS["loss"], GROUPS["sampler"]


@cache
def load_built_in() -> None:
    """Import the modules that register what comes with the package."""
    for module in BUILT_IN:
        import_module(_installed(module))


def _installed(module: str) -> str:
    """The name of a module: the baselines lie beside dcdt/ in a checkout and inside it when installed."""
    inside = module.startswith("baselines.") and find_spec("dcdt.baselines") is not None
    return f"dcdt.{module}" if inside else module


def look_up(table: Table, name: str) -> Any:  # noqa: ANN401 - classes of several kinds
    """The class registered under `name`.

    Raises:
        KeyError: there is none.
    """
    target = table[name].target
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    return getattr(import_module(_installed(module)), attribute)


def choose(table: Table, name: object, key: str, choices: Sequence[str] | None = None) -> Entry:
    """The entry that a configuration names, of all or of some.

    Raises:
        UserError: it is none of them.
    """
    choices = list(table) if choices is None else choices
    if not isinstance(name, str) or name not in choices:
        raise UserError(f"{key}.name is {name!r}; choose one of {', '.join(choices)}.")
    return table[name]


def model_part(*without: str, only: tuple[str, ...] = ()) -> BeforeValidator:
    """What reads the configuration of a model inside another one, such as model.first.

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


def search_space(name: str, model: Mapping[str, Any] | None = None) -> SearchSpace:
    """The values that tuning draws from; empty where a model has nothing to tune.

    Args:
        name: of the model.
        model: its configuration, which decides for some what is read.
    """
    space = MODELS[name].search_space if name in MODELS else None
    return (space(model or {}) if callable(space) else space) or {}


def reads(model: object, trials: object = 1) -> frozenset[str]:
    """Which of loss, sampler, batch_size, optimizer and train_queries (split.train_queries) a model's scores depend on.

    Args:
        model: its configuration; what is no model known here reads all of them.
        trials: how many configurations are compared, by the validation queries.

    >>> sorted(reads({"name": "dcdt_ridge"})), sorted(reads({"name": "bm25"})), sorted(reads({"name": "bm25"}, 2))
    (['train_queries'], [], ['train_queries'])
    """
    try:
        name = model.get("name") if isinstance(model, Mapping) else None
    except OmegaConfBaseException:  # refused where the configuration is checked
        name = None
    entry = MODELS.get(str(name))
    if entry is None:
        return TRAINED
    tuned = entry.reads_tuned if isinstance(trials, int) and trials > 1 else None
    return entry.reads if tuned is None else tuned
