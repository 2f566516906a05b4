"""Check values against a schema: a dataclass whose types hold the limits, such as `Annotated[int, Field(ge=1)]`."""

import contextlib
from collections.abc import Iterator
from dataclasses import field, is_dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from dcdt.utils.errors import UserError
from dcdt.utils.redaction import redact
from dcdt.utils.text import did_you_mean

MAX_WIDTH = 65_536  # numbers of a layer; a million would take gigabytes a layer
MAX_WHOLE = 2**31 - 1  # of a whole number without a limit of its own

Count = Annotated[int, Field(ge=1)]
Width = Annotated[int, Field(ge=1, le=MAX_WIDTH)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Epsilon = Annotated[float, Field(ge=0.01, le=1000)]  # of differential privacy, with its delta
Delta = Annotated[float, Field(gt=0, lt=0.1)]
T = TypeVar("T")


def _distinct(names: list[str]) -> list[str]:
    if not names or len(set(names)) != len(names):
        raise ValueError("it must name at least one field, each once.")
    return names


Fields = Annotated[list[str], AfterValidator(_distinct)]  # of a video's texts


@dataclass_transform(field_specifiers=(field,))
def schema(cls: type[T]) -> type[T]:
    """Make a class a schema: a dataclass that refuses unknown names, other types and values out of their limits.

    Limits stand in the types; a `Field(description=...)` says in words what a value must do, where they do not suffice.
    """
    cls._check_type = field_validator("*", mode="before")(classmethod(_check_type))  # type: ignore[attr-defined]
    return dataclass(  # type: ignore[return-value]
        config=ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
    )(cls)


def validate(schema: type[T], values: Any, key: str) -> T:  # noqa: ANN401 - what a file or a command line holds
    """An instance of `schema` with these values.

    Args:
        schema: a class made by `schema`.
        values: a mapping, plain or of OmegaConf.
        key: of the mapping on the command line, such as `model`; empty for the whole configuration.

    Raises:
        UserError: a value is missing, of another type, out of its limits or unknown.
    """
    try:
        plain: Any = OmegaConf.to_container(values, resolve=True) if OmegaConf.is_config(values) else values
    except OmegaConfBaseException as error:
        raise UserError(f"{key} cannot be resolved: {str(error).splitlines()[0]}") from error
    given = {str(name): value for name, value in plain.items() if value != "???"}  # YAML's mark of a missing value
    try:
        return TypeAdapter(schema).validate_python(given, context={"key": key})
    except ValidationError as error:
        raise UserError(_explain(schema, given, key, error.errors(include_url=False)[0])) from error


def _check_type(cls: type, value: Any, info: ValidationInfo) -> Any:  # noqa: ANN401
    """Refuse what pydantic would read as another value: yes or no and fractions as whole numbers."""
    limits = _limits(cls, str(info.field_name))
    if isinstance(value, bool) and {int, float} & limits.types and bool not in limits.types:
        raise PydanticCustomError("other_type", "yes or no is no number")
    if isinstance(value, float) and int in limits.types and float not in limits.types:
        raise PydanticCustomError("other_type", "a fraction is no whole number")
    if isinstance(value, int) and abs(value) > MAX_WHOLE and not limits.bounds.keys() & {"le", "lt"}:
        raise ValueError(f"at most {MAX_WHOLE:,} is read.")
    return value


class _Limits:
    """The limits in the type of a field: plain types, bounds by name, choices and description."""

    def __init__(self, info: FieldInfo) -> None:
        self.types: set[Any] = set()
        self.bounds: dict[str, float] = {}
        self.choices: tuple[Any, ...] = ()
        self.description = info.description
        for annotation, metadata in _plain_types(info.annotation, info.metadata):
            if get_origin(annotation) is Literal:
                self.choices += get_args(annotation)
            self.types |= {annotation, get_origin(annotation)}
            for item in metadata:
                self.description = self.description or getattr(item, "description", None)
                for name in ("ge", "gt", "le", "lt"):
                    if getattr(item, name, None) is not None:
                        self.bounds[name] = getattr(item, name)

    def demand(self, other_type: bool) -> str:
        """Describe a valid value, to follow `it must`."""
        if self.description:
            return self.description
        number = "whole number" if int in self.types and float not in self.types else "number"
        words = {
            str: "a text; quote what looks like a number",
            bool: "true or false",
            list: "a list of plain values",
            int: number,
            float: number,
        }
        if other_type and not self.bounds:
            return "be " + next((word for kind, word in words.items() if kind in self.types), "a plain value")
        if number == "whole number" and self.bounds.keys() == {"ge", "le"}:
            return f"be a whole number from {self.bounds['ge']:,} to {self.bounds['le']:,}"
        sides = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        span = " and ".join(f"{sides[name]} {value:,}" for name, value in self.bounds.items())
        return f"be a {number if other_type else 'number'} of {span}" if self.bounds.keys() == {"ge"} else f"be {span}"


@cache
def _limits(schema: Any, name: str) -> _Limits:  # noqa: ANN401
    return _Limits(schema.__pydantic_fields__[name])


def field_types(schema: Any, name: str) -> set[Any]:  # noqa: ANN401
    """The plain types of a field, with the origins of those that have one; empty if the schema has no such field."""
    return _limits(schema, name).types if name in schema.__pydantic_fields__ else set()


def _plain_types(annotation: Any, metadata: list[Any]) -> Iterator[tuple[Any, list[Any]]]:  # noqa: ANN401
    """The plain types inside an annotation, each with its constraints."""
    if get_origin(annotation) is Annotated:
        inner, *own = get_args(annotation)
        yield from _plain_types(inner, [*metadata, *(part for item in own for part in _constraints(item))])
    elif get_origin(annotation) in (Union, UnionType):
        for one in get_args(annotation):
            yield from _plain_types(one, metadata)
    else:
        yield annotation, metadata


def _constraints(item: Any) -> list[Any]:  # noqa: ANN401
    """A constraint, and those inside a Field(...)."""
    return [item, *getattr(item, "metadata", ())]


def _explain(schema: Any, values: dict[str, Any], key: str, error: Any) -> str:  # noqa: ANN401
    """One line for a violation: the key as on the command line, the value, and what it must be."""
    name, *inner = map(str, error["loc"])
    full, kind = f"{key}.{name}" if key else name, error["type"]
    names = list(schema.__pydantic_fields__)
    if kind == "missing" and not inner:
        return f"{full} is not set; give it as {full}=VALUE."
    if name not in names:
        others = ", ".join(one for one in names if one != "name")
        has = f"{key} has {others}" if key else "see python -m dcdt.run --help"
        return f"unknown setting {full}; {has}.{did_you_mean(name, names)}"
    limits, value = _limits(schema, name), values[name]
    part = next((one for one in limits.types if is_dataclass(one)), None)
    if part is not None and inner:
        return _explain(part, value, full, {**error, "loc": inner})
    if part is not None:
        return f"{full} is {_shown(value, limits.types)}; give its values as {full}.NAME=VALUE."
    reason = f"it must {limits.demand(not kind.startswith(('greater_', 'less_')))}."
    if kind == "value_error":
        reason = str(error["ctx"]["error"])
    elif str in limits.types and isinstance(value, bool | int | float):
        reason = f'it must be a text; in a file, write quotes around it, such as {name}: "2024_01".'
    elif kind == "finite_number":
        reason = "it must be a finite number."
    elif kind == "literal_error":
        value, reason = error["input"], f"choose one of {', '.join(map(str, limits.choices))}."
    return f"{full} is {_shown(value, limits.types)}; {reason}"


def _shown(value: Any, types: set[Any]) -> str:  # noqa: ANN401
    """A value for a message, with numbers of a fraction's type as such."""
    if isinstance(value, list):
        return f"[{', '.join(_shown(one, {float} if list[float] in types else set()) for one in value)}]"[:80]
    if isinstance(value, int | str) and not isinstance(value, bool) and float in types and not {int, str} & types:
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)
    return redact(repr(value))[:80]
