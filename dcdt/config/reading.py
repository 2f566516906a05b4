"""From plain values to an instance of a schema."""

import math
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcdt.config.checks import LARGEST
from dcdt.utils.errors import UserError

T = TypeVar("T")


def typed(schema: type[T], values: DictConfig, place: str) -> T:
    """An instance of `schema` holding `values`, checked.

    Raises:
        UserError: a value is missing, of another type, out of range or unknown.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        missing = sorted(str(key) for key in OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{place}.{missing[0]} is not set; give it as {place}.{missing[0]}=VALUE.")
        part = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        key = f".{error.full_key}" if error.full_key else ""
        raise UserError(f"{place}{key}: {reason}") from error
    for name, value in vars(part).items():
        if name != "extra" and isinstance(value, list) and any(isinstance(one, list | dict) for one in value):
            raise UserError(f"{place}.{name} is {str(value)[:80]}; it must be a list of plain values.")
        numbers = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, float)]
        if isinstance(value, int) and abs(value) > LARGEST:
            raise UserError(f"{place}.{name} is {str(value)[:40]}; at most {LARGEST:,} is read.")
        wrong = math.isnan if name == "penalty" else lambda number: not math.isfinite(number)  # inf: no correction
        if any(map(wrong, numbers)):
            raise UserError(f"{place}.{name} is {value}; it must be a finite number.")
    part.check()  # type: ignore[union-attr]
    return part  # type: ignore[return-value]
