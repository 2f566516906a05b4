"""Schemas of collections and splits."""

from os.path import expanduser
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from dcdt.config.registry import GROUPS, Entry
from dcdt.config.validation import schema


@schema
class DataConfig:
    """Paths of the collection and of its vectors; which queries have a video of their own, which is not ranked."""

    name: str
    path: Annotated[str, AfterValidator(expanduser)]
    cache: Annotated[str, AfterValidator(expanduser)]
    own_video: Literal["same_text", "same_id", "keep"] = "same_text"


@schema
class SplitConfig:
    """The division of queries; `index` picks the fold (or the repeat)."""

    name: str
    index: int
    n_folds: Annotated[int, Field(ge=1)]
    part: Literal["open", "sealed", "all"]
    train_queries: Annotated[int, Field(ge=1)] | None = None
    train_on: Literal["all", "judged", "weak"] = "all"
    max_overlap: Annotated[float, Field(gt=0, lt=1)] | None = None
    schools: Annotated[int, Field(ge=2, le=20)] | str | None = None
    school_mix: Literal["iid", "subject"] = "iid"

    @field_validator("n_folds")
    @classmethod
    def _check_folds(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("name") == "folds" and value < 2:
            raise ValueError("it must be a number of at least 2.")
        return value


for data in ("linear_algebra", "files"):
    GROUPS["data"].register(data, Entry(DataConfig))
for split in ("query", "folds", "video", "time", "paper"):
    GROUPS["split"].register(split, Entry(SplitConfig))
