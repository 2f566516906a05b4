"""Base classes of a kind of served model: manifest, export, columns of videos, scores, explanations."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dcdt.config import validate
from dcdt.data.passages import Passages
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.catalogue.top_k import top_k
from dcdt.serving.graphs import QUERY_MAP, Floats, Scores, unit
from dcdt.serving.learners import Watched
from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

Rows = NDArray[np.int64]
Columns = dict[str, pa.Array]
EmbedTexts = Callable[[list[list[str]]], list[Floats]]  # texts of each field to their frozen vectors (n, D)
MAX_NUMBER = 1e30  # beyond any weight or score; its square is still a number
MIN_VARIANCE = {"float64": 1e-6, "float32": 0.1}  # of the mean square: less of it loses digits as a difference
TOLERANCE = 1e-5  # between torch and what answers without it
N_EXAMPLES, N_PROBES = 5, 400  # queries and videos on which a graph is compared; queries on which recall is measured

Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Count = Annotated[int, Field(ge=1, lt=2**53)]
Names = Annotated[list[str], Field(min_length=1)]


class Section(BaseModel):
    """A part of model.json: exactly its fields, each of its type, every number finite."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ScorerManifest(Section):
    """The entry of a scorer in model.json.

    Attributes:
        kind: of the scorer, a name in `dcdt.serving.scorers.SCORERS`.
        name: of the model, for explanations.
        reads_history: whether what the asking learner watched counts.
    """

    kind: str
    name: str
    reads_history: bool = False

    @property
    def text_fields(self) -> list[str]:
        """Fields of a video that are read."""
        return []


@dataclass(frozen=True)
class Query:
    """A question of a user.

    Attributes:
        text: in words.
        vector: (D,) frozen; None where no scorer reads vectors.
        watched: what the learner who asks has watched, where that is known.
    """

    text: str
    vector: Floats | None
    watched: Watched | None = None


@dataclass(frozen=True)
class NewVideos:
    """Texts and, where some scorer reads them, frozen vectors (n, D) of each field of n videos; p passages likewise."""

    texts: Mapping[str, Sequence[str]]
    vectors: Mapping[str, Floats]
    passages: Passages | None = None
    passage_vectors: Floats | None = None


class CatalogueScores(ABC):
    """One scorer's scores of one query over one snapshot of the catalogue, computed as far as they are needed.

    Args:
        snapshot: the catalogue.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._scores: Scores | None = None
        self._square = 0.0  # sum of all squares

    @abstractmethod
    def compute(self) -> Scores:
        """Scores of all rows, (N,)."""

    def scores(self) -> Scores:
        """Scores of all rows (N,), computed once."""
        if self._scores is None:
            self._scores = self.compute()
            self._square = float(self._scores @ self._scores)
            if not np.isfinite(self._square):
                raise UserError("the index holds numbers that are not finite. Run: python -m dcdt.index RUN build")
        return self._scores

    def top(self, k: int, allowed: NDArray[np.bool_]) -> tuple[Rows, Scores]:
        """Rows and scores of the best k among the allowed rows (N,), the best first."""
        scores = self.scores() if allowed.all() else np.where(allowed, self.scores(), -np.inf)
        rows = top_k(scores, None if self.snapshot.indexes else self.snapshot.order, k)
        return rows, scores[rows]

    def scores_of(self, rows: Rows) -> Scores:
        """Scores of some rows (n,)."""
        return self.scores()[rows]

    def mean(self, scores: Scores) -> float:
        """Mean of the scores of the videos that are present."""
        return float(scores.mean())

    def mean_and_deviation(self) -> tuple[float, float]:
        """Mean and standard deviation of the scores over the whole catalogue."""
        scores, all_present = self.scores(), len(self.snapshot) == len(self.snapshot.present)
        scores = scores if all_present else scores[self.snapshot.present]
        mean, square = self.mean(scores), (self._square if all_present else float(scores @ scores)) / len(scores)
        if square - mean**2 > MIN_VARIANCE[scores.dtype.name] * square:
            return mean, (square - mean**2) ** 0.5
        return mean, float(scores.std(dtype=np.float64)) if scores.max() > scores.min() else 0.0

    def passage_scores(self, row: int) -> Scores | None:
        """Scores of the passages of a row (p,); None where they are not told apart."""
        return None

    def explain(self, row: int, embed: EmbedTexts) -> dict[str, Any]:
        """Explain the score of a row, by kind of reason: numbers that sum to the score, or weights."""
        return {}


@dataclass(frozen=True)
class Graph:
    """A function of a model that becomes an ONNX graph.

    Attributes:
        module: the torch module whose weights it reads.
        function: of the module and a tensor of rows; its outputs as a tuple.
        example: such a tensor.
        input: name of the input.
        outputs: names of the outputs.
    """

    module: Any
    function: Callable[[Any, Any], tuple[Any, ...]]
    example: Any
    input: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Export:
    """The exported data of a model, or of its head.

    Attributes:
        manifest: as model.json holds it.
        columns: what it adds to the table of videos.
        graphs: ONNX graphs by name.
        arrays: what scoring reads beside the table.
        probes: (P, W) query vectors on which the recall of an approximate index is measured.
    """

    manifest: Section
    columns: Columns
    graphs: dict[str, Graph] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    probes: NDArray[np.float32] | None = None


class Scorer(ABC):
    """Scores an exported model's queries, without torch. A kind of model is a subclass, a file and a line in SCORERS.

    Args:
        manifest: what model.json says of it.
        number: of the scorer, by which its columns and files are named.
        folder: of the build.
    """

    kind: ClassVar[str]
    manifest_type: ClassVar[type[ScorerManifest]]
    models: ClassVar[tuple[str, ...]] = ()  # registered names of the models it serves; others need two towers
    reads_vectors: ClassVar[bool] = True  # of the query, and of added videos
    searches_vectors: ClassVar[bool] = False  # scores are products with `vector_<number>`, so the best can be searched
    note: ClassVar[str] = ""  # what counts without a learner's history, of a scorer that reads it; {} is its name

    @abstractmethod
    def __init__(self, manifest: Any, number: int, folder: Path) -> None:  # noqa: ANN401 - of its manifest_type
        """Read what every query needs."""

    @staticmethod
    @abstractmethod
    def export(model: Any, name: str, restored: Any, number: int) -> Export:  # noqa: ANN401 - torch is not imported
        """Export the model of a restored run (`dcdt.training.checkpoint.Restored`)."""

    @staticmethod
    @abstractmethod
    def check_columns(manifest: Any, number: int, snapshot: Snapshot) -> None:  # noqa: ANN401
        """Raise ValueError or KeyError where the catalogue lacks a column that the scorer reads."""

    @abstractmethod
    def columns(self, videos: NewVideos, snapshot: Snapshot) -> Columns:
        """Compute the columns of n new videos, for a catalogue as it is before they come."""

    @abstractmethod
    def score(self, query: Query, snapshot: Snapshot) -> CatalogueScores:
        """The scores of a query over the catalogue."""


def query_map(model: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401
    """The matrix of a model whose query tower is one product with it, as an array of its scorer; else nothing.

    Raises:
        UserError: the product differs from the tower.
    """
    tensor = model.linear_query()
    if tensor is None:
        return {}
    queries, matrix = model.tables.queries[:N_EXAMPLES], np.ascontiguousarray(tensor.numpy())
    worst = float(np.abs(unit(queries.numpy() @ matrix) - model.encode_queries(queries).numpy()).max())
    if not worst <= TOLERANCE:
        raise UserError(f"the query map is {worst:.2g} off torch (limit {TOLERANCE:g}); report this as a bug.")
    return {QUERY_MAP: matrix}


def configuration(schema: Any, values: Mapping[str, Any], name: str) -> Any:  # noqa: ANN401 - of any group of conf/
    """The values of a configuration, typed.

    Raises:
        ValueError: they do not fit the schema.
    """
    try:
        return validate(schema, OmegaConf.create(dict(values)), name)
    except (UserError, TypeError, AttributeError) as error:
        raise ValueError(one_line(error, 120)) from error


def require(condition: bool, name: str) -> None:
    """Raise ValueError with the name of what does not fit."""
    if not condition:
        raise ValueError(name)


def first_violation(error: ValidationError) -> str:
    """The place and the message of the first field that a schema refused."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
