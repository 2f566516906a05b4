"""model.json, which says what an exported run is: one schema, checked once, for a run may be a stranger's."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from dcdt.config.registry import GROUPS
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.layout import FOLDER, MODEL, Pointer, check_files, fingerprint
from dcdt.serving.passages import PASSAGE_COLUMNS
from dcdt.serving.scorers import SCORERS
from dcdt.serving.scorers.base import (
    Count,
    Number,
    ScorerManifest,
    Section,
    configuration,
    first_violation,
    require,
)
from dcdt.serving.scorers.hybrid import Fusion
from dcdt.serving.scorers.two_stage import Head
from dcdt.serving.videos import BASE, TYPES
from dcdt.utils.errors import UserError
from dcdt.utils.files import read_json
from dcdt.utils.shell import shell_command
from dcdt.utils.text import one_line
from dcdt.utils.yaml import refuse_interpolations

FORMAT = 3


class Threshold(Section):
    """The score below which nothing fits: shares of validation `queries` with an answer above it, without one below."""

    value: Number
    answered: Number
    rejected: Number
    queries: Annotated[int, Field(ge=0)]


class Approximate(Section):
    """Measurements of an approximate index at build time."""

    kind: str
    n: Count
    width: Count
    breadth: Count
    depth: Count
    recall: Number


def _scorer_manifest(value: Any) -> ScorerManifest:  # noqa: ANN401 - whatever JSON holds
    """The manifest of a scorer of any kind."""
    if isinstance(value, ScorerManifest):
        return value
    kinds = list(SCORERS)  # what JSON holds need not be hashable
    require(isinstance(value, dict) and value.get("kind") in kinds, f"the kind is none of {', '.join(kinds)}")
    try:
        return SCORERS[value["kind"]].manifest_type.model_validate(value)
    except ValidationError as error:
        raise ValueError(first_violation(error)) from error


class Manifest(Section):
    """The description of an exported run, as model.json holds it.

    Attributes:
        format: of this file.
        run: fingerprint of the run that was exported.
        model: its option, as in `model=dcdt`.
        collection, collection_fingerprint: what it was trained on.
        scorers: of the models that it combines, in the order of their numbers.
        fusion: how the first two are fused.
        head: which re-ranks what they put first.
        columns: metadata keys that became columns, by kind.
        catalogue: folder or object store of the table; None: in the build itself.
        embedder: its configuration.
        threshold: None for a model that does not read the question.
        approximate: indexes by vector column.
        has_transcripts: whether videos have segments, which some scorer reads.
    """

    format: Literal[3]
    run: str
    model: str
    collection: str
    collection_fingerprint: str
    scorers: list[Annotated[SerializeAsAny[ScorerManifest], BeforeValidator(_scorer_manifest)]]
    fusion: Fusion | None
    head: Head | None
    columns: dict[str, Literal["text", "number", "list"]]
    catalogue: str | None
    embedder: dict[str, Any]
    threshold: Threshold | None
    approximate: dict[str, Approximate]
    has_transcripts: bool = False

    @field_validator("embedder")
    @classmethod
    def _is_configuration(cls, value: dict[str, Any]) -> dict[str, Any]:
        require(value.get("name") in list(GROUPS["embedder"]), "no embedder of this name")
        configuration(GROUPS["embedder"][value["name"]].schema, value, "embedder")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "Manifest":
        n = (self.fusion.n_scorers if self.fusion else 1) + (self.head is not None and self.head.reads_lexical)
        require(len(self.scorers) == n, f"{len(self.scorers)} scorers where {n} are combined")
        return self

    @property
    def reads_vectors(self) -> bool:
        """Whether questions and added videos are embedded."""
        return self.head is not None or any(SCORERS[scorer.kind].reads_vectors for scorer in self.scorers)

    @property
    def is_searched(self) -> bool:
        """Whether the best videos are those with the largest product with one vector, theirs or a passage's."""
        return self.head is None and len(self.scorers) == 1 and SCORERS[self.scorers[0].kind].searches_vectors

    @property
    def text_fields(self) -> list[str]:
        """Fields of a video that some scorer reads, each once."""
        names = [name for scorer in self.scorers for name in scorer.text_fields]
        return list(dict.fromkeys([*names, *(self.head.fields if self.head is not None else [])]))

    @property
    def embedder_config(self) -> Any:  # noqa: ANN401 - any embedder's
        """The typed configuration of the embedder."""
        return configuration(GROUPS["embedder"][self.embedder["name"]].schema, self.embedder, "embedder")

    @property
    def reads_history(self) -> bool:
        """Whether what the asking learner watched counts."""
        return any(scorer.reads_history for scorer in self.scorers)

    @property
    def notes(self) -> list[str]:
        """The remarks on an answer that no learner's history went into."""
        return [SCORERS[scorer.kind].note.format(scorer.name) for scorer in self.scorers if scorer.reads_history]


def read_manifest(run: Path, pointer: Pointer) -> Manifest:
    """Read model.json of a build.

    Raises:
        UserError: it is missing, corrupt, of another version of dcdt, or of another run.
    """
    path, remedy = run / FOLDER / pointer.build / MODEL, f"Run: {shell_command('index', run, 'build')}"
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise UserError(f"{path} is missing, corrupt or of another version. {remedy}")
    own = fingerprint(run)
    if values.get("run") != own:
        raise UserError(
            f"the index in {run / FOLDER} was built by another run (fingerprint {one_line(values.get('run'), 40)}; "
            f"this run's is {own}).\n{remedy}"
        )
    refuse_interpolations(values, path)
    try:
        check_files(path.parent, lambda name: not name.startswith("snapshot-"))
    except UserError as error:
        raise UserError(f"{error}\n{remedy}") from error
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path} is corrupt ({one_line(first_violation(error), 120)}).\n{remedy}") from error


def check_catalogue(manifest: Manifest, snapshot: Snapshot, path: Path, run: Path) -> None:
    """Refuse a manifest, read from a path, and a catalogue that do not fit each other.

    Raises:
        UserError: says what does not fit.
    """
    try:
        _check_columns(manifest.columns, snapshot)
        for name, kind in PASSAGE_COLUMNS.items() if manifest.has_transcripts else ():
            require(snapshot.table[name].type == kind and snapshot.table[name].null_count == 0, f"column {name}")
        for number, scorer in enumerate(manifest.scorers):
            SCORERS[scorer.kind].check_columns(scorer, number, snapshot)
        if manifest.head is not None:
            manifest.head.check_columns(snapshot)
        for name in manifest.approximate:
            require(name in snapshot.built.columns, f"column {name}")
    except (AttributeError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} does not fit its catalogue ({one_line(f'{type(error).__name__} {error}', 120)}).\n"
            f"It may be corrupt. Run: {shell_command('index', run, 'build')}"
        ) from error


def _check_columns(columns: dict[str, Any], snapshot: Snapshot) -> None:
    """Columns of results and filters exist and have the right type; ids, titles and texts are without gaps."""
    schema = snapshot.table.schema
    for name, kind in {**BASE, "metadata": "text", **columns}.items():
        require(name in schema.names and schema.field(name).type == TYPES[kind], f"column {name}")
    for name in ("id", "title", "text", "metadata"):
        require(snapshot.table[name].null_count == 0, f"empty cells in column {name}")
