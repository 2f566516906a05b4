"""Messages between schools and a hub: sums of numbers with a header, each field of which is checked."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dcdt.config.validation import schema, validate
from dcdt.federation.config import Delta, Epsilon
from dcdt.utils.errors import UserError
from dcdt.utils.files import atomic_write, parse_json
from dcdt.utils.text import one_line, pluralize

MAX_HEADER_BYTES, MAX_QUERIES = 100_000, 10**9
SUFFIX = ".safetensors"
Shapes = Mapping[str, tuple[int, ...]]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@schema
class Header:
    """What a message says of its sums.

    Attributes:
        version: of this format.
        kind: `statistics`, of which a model is fitted, or `losses`, by which penalty and weight are chosen.
        model: its configuration, as JSON.
        catalogue: digest of the videos' ids and texts, and of the settings that decide a ranking.
        space: of the vectors.
        schools: number of schools that are summed.
        queries: number of queries or learners that are summed; 0 where noise hides it.
        statistics: of losses: digest of the summed statistics that they were computed with.
        epsilon, delta: of each learner's privacy, the largest of all schools; None: a school has no noise.
    """

    version: Literal[1]
    kind: Literal["statistics", "losses"]
    model: str
    catalogue: Digest
    space: str
    queries: Annotated[int, Field(strict=True, ge=0, le=2**53)]
    schools: Annotated[int, Field(strict=True, ge=1, le=2**53)] = 1
    statistics: Digest | None = None
    epsilon: Epsilon | None = None
    delta: Delta | None = None


@dataclass(frozen=True)
class Message:
    """Sums with their header, and the file that they come from."""

    header: Header
    tensors: dict[str, Tensor]
    path: Path = field(default_factory=Path)

    @property
    def digest(self) -> str:
        """Hash of the numbers."""
        value = hashlib.sha256()
        for name in sorted(self.tensors):
            value.update(name.encode() + self.tensors[name].contiguous().numpy().tobytes())
        return value.hexdigest()

    def write(self, path: Path) -> int:
        """Write the message atomically; returns its number of bytes."""
        metadata = {"dcdt": json.dumps(asdict(self.header))}
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata)
        return path.stat().st_size


@dataclass(frozen=True)
class Expected:
    """What the messages about one model and one catalogue hold.

    Attributes:
        header: model, catalogue and space; its other values do not count.
        shapes: of the sums by kind.
        check: raises ValueError for statistics that no n queries have.
    """

    header: Header
    shapes: Mapping[str, Shapes]
    check: Callable[[dict[str, Tensor], int], None]

    def read(self, path: Path) -> Message:
        """Read and check a message.

        Raises:
            UserError: names the file and what is wrong with it.
        """
        try:
            if not path.is_file():
                raise ValueError("there is no such file")
            limit = MAX_HEADER_BYTES + max(8 * _n_values(shapes) for shapes in self.shapes.values())
            if path.stat().st_size > limit:
                raise ValueError(f"it has more than {limit:,} bytes")
            with safe_open(path, "pt") as file:
                header = _read_header(file.metadata() or {})
                self._check_header(header)
                shapes = self.shapes[header.kind]
                if set(file.keys()) != set(shapes):
                    raise ValueError(f"it does not hold {', '.join(sorted(shapes)) or 'nothing'} alone")
                for name, shape in shapes.items():
                    part = file.get_slice(name)
                    if part.get_dtype() != "F64" or tuple(part.get_shape()) != shape:
                        raise ValueError(f"'{name}' is {part.get_dtype()} {part.get_shape()}, not F64 {[*shape]}")
                message = Message(header, {name: file.get_tensor(name) for name in shapes}, path)
            self.check_sums(message)
        except (ValueError, SafetensorError, UserError) as error:
            raise UserError(f"{path} is refused: {one_line(error, 300)}\nNothing was merged.") from error
        return message

    def check_sums(self, message: Message) -> None:
        """Refuse numbers that no queries have.

        Raises:
            ValueError: says which.
        """
        n = message.header.queries
        for name, tensor in message.tensors.items():
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"'{name}' holds values that are not finite")
            if message.header.kind == "losses" and n and not bool(((tensor >= 0) & (tensor <= n + 1e-6)).all()):
                raise ValueError(f"'{name}' is not between 0 and {n:,}, the number of queries")
        if message.header.kind == "statistics":
            self.check(message.tensors, n)

    def _check_header(self, header: Header) -> None:
        own = self.header
        if header.model != own.model:
            raise ValueError(f"its model is {_difference(header.model, own.model)}; give all the same model")
        if header.catalogue != own.catalogue:
            raise ValueError(
                "its catalogue is another one: ids, order and texts of the videos, positive_grade, ks and "
                "data.own_video must be the same"
            )
        if header.space != own.space:
            raise ValueError(f"its vectors are of {header.space[:80]}, not of {own.space}")
        if header.queries > MAX_QUERIES or header.schools > MAX_QUERIES:
            raise ValueError(f"it counts {header.queries:,} queries of {header.schools:,} schools")
        if (header.kind == "losses") != (header.statistics is not None):
            raise ValueError("losses alone name the statistics that they were computed with")
        if (header.epsilon is None) != (header.delta is None) or (header.queries == 0) != (header.epsilon is not None):
            raise ValueError("epsilon, delta and a hidden number of queries go together")


def add_messages(messages: Sequence[Message]) -> Message:
    """Sum messages of one kind; the order in which they are given makes no difference.

    Raises:
        UserError: two hold the same numbers, losses belong to different statistics, or noise hides some numbers only.
    """
    ordered = sorted(messages, key=lambda message: message.digest)
    for one, other in pairwise(ordered):
        if one.digest == other.digest:
            raise UserError(f"{one.path} and {other.path} hold the same numbers: give each school once.")
    headers = [message.header for message in ordered]
    if len({header.statistics for header in headers}) > 1:
        names = ", ".join(str(message.path) for message in ordered)
        raise UserError(f"these losses were not computed with the same statistics: {names}.")
    hidden = [message for message in ordered if not message.header.queries]
    if 0 < len(hidden) < len(ordered):
        raise UserError(f"{hidden[0].path} has noise, others have none: all schools must choose the same.")
    total = replace(
        headers[0],
        queries=sum(header.queries for header in headers),
        schools=sum(header.schools for header in headers),
        epsilon=max((header.epsilon for header in headers if header.epsilon is not None), default=None),
        delta=max((header.delta for header in headers if header.delta is not None), default=None),
    )
    tensors = {name: torch.stack([message.tensors[name] for message in ordered]).sum(0) for name in ordered[0].tensors}
    return Message(total, tensors, ordered[0].path)


def pair_messages(messages: Sequence[Message], expected: Expected) -> tuple[Message, Message | None]:
    """Sum the statistics and the losses among messages, which must belong together.

    Raises:
        UserError: statistics or losses are missing, or are of other schools.
    """
    statistics = [message for message in messages if message.header.kind == "statistics"]
    losses = [message for message in messages if message.header.kind == "losses"]
    if not statistics:
        raise UserError("no message holds statistics; give those of all schools, or their sum.")
    summed = add_messages(statistics)
    if not expected.shapes["losses"]:
        return summed, None
    if not losses:
        raise UserError(
            "this model has a penalty or a weight to choose, for which the losses of all schools are needed:\n"
            "python -m dcdt.federate losses SUM out=FILE at each school (docs/federation.md)."
        )
    summed_losses = add_messages(losses)
    if summed_losses.header.statistics != summed.digest:
        raise UserError(f"{losses[0].path} was computed with other statistics than the sum of those given here.")
    if summed_losses.header.schools != summed.header.schools:
        counts = pluralize(summed.header.schools, "school"), pluralize(summed_losses.header.schools, "school")
        raise UserError(f"the statistics are of {counts[0]}, the losses of {counts[1]}; give those of all.")
    return summed, summed_losses


def _read_header(metadata: Mapping[str, str]) -> Header:
    try:
        values = parse_json(metadata["dcdt"])
    except KeyError:
        raise ValueError("it has no header of dcdt") from None
    if not isinstance(values, dict):
        raise ValueError("its header is no object")
    return validate(Header, values, "header")


def _difference(theirs: str, ours: str) -> str:
    """The settings of two models that differ, in a few words."""
    try:
        values, own = parse_json(theirs), parse_json(ours)
        names = [key for key in own if values.get(key) != own[key]]
        return ", ".join(f"{key}={one_line(values.get(key), 40)} instead of {one_line(own[key], 40)}" for key in names)
    except (ValueError, AttributeError):
        return "another one"


def _n_values(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes.values())
