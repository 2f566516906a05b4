"""Limits of values: each raises UserError with the value, the limit and the choices."""

from dcdt.utils.errors import UserError

WIDEST = 65_536  # numbers of a layer; a million would take gigabytes a layer
LARGEST = 2**31 - 1  # whole number of a configuration or a model's description


def at_least(name: str, value: float, limit: float) -> None:
    """Raise UserError where a value is below its limit."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < limit:
        raise UserError(f"{name} is {value!r}; it must be a number of at least {limit}.")


def between(name: str, value: int, low: int, high: int) -> None:
    """Raise UserError where a whole number is out of its range."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UserError(f"{name} is {value!r}; it must be a whole number from {low:,} to {high:,}.")


def below_one(name: str, value: float) -> None:
    """Raise UserError where a value is not in [0, 1)."""
    if not 0 <= value < 1:
        raise UserError(f"{name} is {value}; it must be at least 0 and below 1.")


def one_of(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise UserError where a value is not among its choices."""
    if value not in choices:
        raise UserError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")


def distinct(name: str, values: list[str]) -> None:
    """Raise UserError where a list is empty or holds a value twice."""
    if not values or len(set(values)) != len(values):
        raise UserError(f"{name} is {list(values)}; it must name at least one field, each once.")
