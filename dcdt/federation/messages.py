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

from dcdt.config.validation import Delta, Epsilon, schema, validate
from dcdt.utils.errors import UserError
from dcdt.utils.files import atomic_write, parse_json
from dcdt.utils.text import one_line

MAX_HEADER_BYTES, MAX_QUERIES = 100_000, 10**9
Number = Annotated[int, Field(strict=True, ge=0, le=2**53)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@schema
class Header:
    """What a message says of its sums."""

    version: Literal[1]
    kind: Literal["statistics", "losses"]
    model: str  # its configuration, as JSON
    catalogue: Digest  # of the videos, and of the settings that decide a ranking
    space: str  # of the vectors
    queries: Number  # or learners; 0 where noise hides how many
    schools: Annotated[Number, Field(ge=1)] = 1
    statistics: Digest | None = None  # of losses: the summed statistics that they were computed with
    epsilon: Epsilon | None = None  # privacy of each learner, the weakest of all schools
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
        tensors = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, {"dcdt": json.dumps(asdict(self.header))})
        return path.stat().st_size


@dataclass(frozen=True)
class Expected:
    """The header of messages about one model and catalogue, the shapes of their sums by kind, and a check of these."""

    header: Header
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    check: Callable[[dict[str, Tensor], int], None]

    def read(self, path: Path) -> Message:
        """Read a message; a wrong one is a UserError that names its file."""
        try:
            largest = max(sum(map(math.prod, shapes.values())) for shapes in self.shapes.values())
            if not path.is_file() or path.stat().st_size > MAX_HEADER_BYTES + 8 * largest:
                raise ValueError(f"there is no such file of at most {MAX_HEADER_BYTES + 8 * largest:,} bytes")
            with safe_open(path, "pt") as file:
                header = self._header(parse_json((file.metadata() or {}).get("dcdt", "null")))
                shapes = self.shapes[header.kind]
                if set(file.keys()) != set(shapes):
                    raise ValueError(f"it does not hold {', '.join(sorted(shapes))} alone")
                for name, shape in shapes.items():
                    part = file.get_slice(name)
                    if part.get_dtype() != "F64" or tuple(part.get_shape()) != shape:
                        raise ValueError(f"'{name}' is {part.get_dtype()} {part.get_shape()}, not F64 {[*shape]}")
                message = Message(header, {name: file.get_tensor(name) for name in shapes}, path)
            self._check_values(message)
        except (ValueError, SafetensorError, UserError) as error:
            raise UserError(f"{path} is refused: {one_line(error, 300)}\nNothing was merged.") from error
        return message

    def _check_values(self, message: Message) -> None:
        n, is_losses = message.header.queries, message.header.kind == "losses"
        for name, tensor in message.tensors.items():
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"'{name}' holds values that are not finite")
            if name == "gram" and float((tensor - tensor.T).abs().max()) > 1e-9 * max(1.0, float(tensor.abs().max())):
                raise ValueError("'gram' is not symmetric")
            if is_losses and n and not bool(((tensor >= 0) & (tensor <= n + 1e-6)).all()):
                raise ValueError(f"'{name}' is not between 0 and {n:,}, the number of queries")
        if not is_losses:
            self.check(message.tensors, n)

    def _header(self, values: object) -> Header:
        if not isinstance(values, dict):
            raise ValueError("it has no header of dcdt")
        header, own = validate(Header, values, "header"), self.header
        for name in ("model", "catalogue", "space"):
            both = [getattr(header, name), getattr(own, name)]
            if both[0] != both[1]:
                start = max(0, next((i for i, pair in enumerate(zip(*both, strict=False)) if len({*pair}) > 1), 0) - 30)
                theirs, ours = (one_line(value[start : start + 60]) for value in both)
                raise ValueError(f"its {name} is not the one here ({theirs}; here {ours}). All must have the same.")
        if max(header.queries, header.schools) > MAX_QUERIES:
            raise ValueError(f"it counts {header.queries:,} queries of {header.schools:,} schools")
        if (header.kind == "losses") != (header.statistics is not None):
            raise ValueError("losses alone name the statistics that they were computed with")
        if len({header.epsilon is None, header.delta is None, header.queries > 0}) > 1:
            raise ValueError("epsilon, delta and a hidden number of queries go together")
        return header


def add_messages(messages: Sequence[Message]) -> Message:
    """Sum messages of one kind; the order in which they are given makes no difference."""
    ordered = sorted(messages, key=lambda message: message.digest)
    headers = [message.header for message in ordered]
    for one, other in pairwise(ordered):
        if one.digest == other.digest:
            raise UserError(f"{one.path} and {other.path} hold the same numbers: give each school once.")
        if (one.header.kind, one.header.statistics) != (other.header.kind, other.header.statistics):
            raise UserError(f"{one.path} and {other.path} do not belong together: one kind, of the same statistics.")
        if (one.header.queries > 0) != (other.header.queries > 0):
            raise UserError(f"one of {one.path} and {other.path} has noise: all schools must choose the same.")
    total = replace(
        headers[0],
        queries=sum(header.queries for header in headers),
        schools=sum(header.schools for header in headers),
        epsilon=max((header.epsilon for header in headers if header.epsilon), default=None),
        delta=max((header.delta for header in headers if header.delta), default=None),
    )
    tensors = {name: torch.stack([one.tensors[name] for one in ordered]).sum(0) for name in ordered[0].tensors}
    return Message(total, tensors, ordered[0].path)


def pair_messages(messages: Sequence[Message], expected: Expected) -> tuple[Message, Message | None]:
    """Sum the statistics and, where the model chooses anything, the losses; they must be of the same schools."""
    by_kind = {kind: [message for message in messages if message.header.kind == kind] for kind in expected.shapes}
    if not by_kind["statistics"]:
        raise UserError("no message holds statistics; give those of all schools, or their sum.")
    summed = add_messages(by_kind["statistics"])
    if not expected.shapes["losses"]:
        return summed, None
    if not by_kind["losses"]:
        raise UserError(
            "this model has a penalty or a weight to choose, for which the losses of all schools are needed:\n"
            "python -m dcdt.federate losses SUM out=FILE at each school (docs/federation.md)."
        )
    losses = add_messages(by_kind["losses"])
    if losses.header.statistics != summed.digest or losses.header.schools != summed.header.schools:
        raise UserError(
            f"the losses, {losses.path} first, were not computed with the sum of these statistics, or not by all "
            f"{summed.header.schools} schools."
        )
    return summed, losses
