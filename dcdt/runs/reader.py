"""Read the folders of runs, finished or not; what is wrong with a file is said with its name."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dcdt.config.renames import normalise
from dcdt.runs.validation import check_config, check_provenance, numbers, trials_of
from dcdt.utils.errors import UserError
from dcdt.utils.files import parse_json
from dcdt.utils.text import one_line
from dcdt.utils.yaml import read_yaml

Floats = NDArray[np.float64]
FINISHED, FAILED, NOT_APPLICABLE, UNFINISHED = "finished", "failed", "not applicable", "did not finish"
ERROR_LENGTH = 200
_PATH = re.compile(r"(?<![\w.:/\\-])(?:[A-Za-z]:)?(?:[/\\][^\s/\\'\",;:()]+)+[/\\]([^\s/\\'\",;:()]+)")


@dataclass(frozen=True)
class SideScores:
    """Per-query values of one side in one run: n ids, their kinds and warmth, and (n,) values by metric."""

    ids: list[str]
    kinds: list[str]
    warm: list[str]
    values: dict[str, Floats]


@dataclass(frozen=True)
class PairScores:
    """The pair protocol of one run: for each of m pairs its query, label, score and whether the score is accepted."""

    queries: list[str]
    labels: NDArray[np.bool_]
    scores: Floats
    accepted: NDArray[np.bool_]


@dataclass(frozen=True)
class Run:
    """One run's folder.

    Attributes:
        folder: where it is.
        status: finished, failed, not applicable, or did not finish (killed, or still running).
        config: the resolved configuration.
        error: first line of what went wrong, without this machine's paths.
        metrics, provenance, cost: as in the files of those names; empty unless finished.
        sides: per-query values by side, without validation.
        pairs: the pair protocol of the test side, or None.
        history: loss and validation per epoch.
        trials: configurations compared on validation.
    """

    folder: Path
    status: str
    config: dict[str, Any]
    error: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)
    sides: dict[str, SideScores] = field(default_factory=dict)
    pairs: PairScores | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    trials: int = 1

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.config["model"]["name"])

    @property
    def fold(self) -> int:
        """Which division of the collection it saw."""
        return _whole(self.config["split"]["index"])

    @property
    def seed(self) -> int:
        """Seed of initialisation and sampling."""
        return _whole(self.config["seed"])


def _whole(value: object) -> int:
    """A fold or a seed; -1 where a failed job was given something else."""
    return value if isinstance(value, int) else -1


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Every run in the folders given, each a run's or a sweep's; sorted, each once.

    Raises:
        UserError: a folder holds no run, none has finished, or a file of a finished run is missing or corrupt.
    """
    places: dict[Path, Path] = {}
    for folder in folders:
        for place in _places(folder):
            places.setdefault(place.resolve(), place)
    runs = [_read(place) for place in places.values()]
    if not any(run.status == FINISHED for run in runs):
        first = next((f"; {run.folder.name}: {run.error}" for run in runs if run.error), "")
        raise UserError(f"none of the {len(runs)} runs has finished, so there is nothing to report{first}")
    return sorted(runs, key=lambda run: (run.model, run.fold, run.seed, str(run.folder)))


def _places(folder: Path) -> list[Path]:
    """The folder itself where it is a run, else its runs."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder.\nGive the folder of a run or of a sweep (outputs/sweeps/NAME).")
    places = [folder] if _is_run(folder) else sorted(child for child in folder.iterdir() if _is_run(child))
    if not places:
        raise UserError(
            f"{folder} holds no run: neither it nor a folder in it has a config.yaml or status.json.\n"
            "Give the folder of a run or of a sweep (outputs/sweeps/NAME)."
        )
    return places


def _is_run(folder: Path) -> bool:
    return (folder / "status.json").is_file() or (folder / "config.yaml").is_file()


def _read(folder: Path) -> Run:
    known = _object(folder / "status.json") if (folder / "status.json").is_file() else {"status": "running"}
    status = {
        "finished": FINISHED,
        "failed": FAILED,
        "not_applicable": NOT_APPLICABLE,
        "running": UNFINISHED,
    }.get(str(known.get("status")))
    if status is None:
        raise UserError(f"{folder / 'status.json'} is corrupt: its status is {known.get('status')!r}.")
    config = _guarded(
        folder / "config.yaml",
        lambda path: check_config(normalise(read_yaml(path)), status == FINISHED),
    )
    if status != FINISHED:
        return Run(folder, status, config, first_line(str(known.get("error", ""))))
    optional = {name: (folder / name).is_file() for name in ("pairs.parquet", "history.csv", "tuning.json")}
    return Run(
        folder,
        status,
        config,
        metrics=_guarded(folder / "metrics.json", lambda path: numbers(_parsed(path))),
        provenance=_guarded(folder / "provenance.json", lambda path: check_provenance(_parsed(path))),
        cost=_guarded(folder / "cost.json", lambda path: numbers(_parsed(path))),
        sides=_guarded(folder / "per_query.parquet", _per_query),
        pairs=_guarded(folder / "pairs.parquet", _pairs) if optional["pairs.parquet"] else None,
        history=_guarded(folder / "history.csv", _history) if optional["history.csv"] else [],
        trials=_guarded(folder / "tuning.json", lambda path: trials_of(_parsed(path)))
        if optional["tuning.json"]
        else 1,
    )


def first_line(error: str) -> str:
    r"""The first line of a message, cut to a length, with absolute paths reduced to their last part.

    >>> first_line("UserError: /home/me/data/khan has no queries.jsonl.\nAdd one.")
    'UserError: khan has no queries.jsonl.'
    """
    line = _PATH.sub(r"\1", (error.splitlines() or [""])[0].strip())
    return line if len(line) <= ERROR_LENGTH else f"{line[: ERROR_LENGTH - 1]}…"


T = TypeVar("T")


def _guarded(path: Path, read: Callable[[Path], T]) -> T:
    """What `read` makes of a file.

    Raises:
        UserError: it is missing or corrupt.
    """
    try:
        return read(path)
    except FileNotFoundError:
        reason = "is missing, though the run is marked as finished"
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        reason = f"is corrupt ({one_line(error, 120)})"
    raise UserError(f"{path} {reason}.\nDelete the run's folder and repeat the command that made it.")


def _object(path: Path) -> dict[str, Any]:
    return _guarded(path, _parsed)


def _parsed(path: Path) -> dict[str, Any]:
    found = parse_json(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _per_query(path: Path) -> dict[str, SideScores]:
    columns = ["query_id", "split", "kind", "warm", "metric", "value"]
    table = pq.read_table(path, columns=columns)
    sides = {}
    for side in sorted(set(table["split"].unique().to_pylist()) - {"val"}):
        here = table.filter(pc.equal(table["split"], side))
        parts = {name: here.filter(pc.equal(here["metric"], name)) for name in here["metric"].unique().to_pylist()}
        first = next(iter(parts.values()))
        ids = first["query_id"].to_pylist()
        if len(set(ids)) != len(ids):
            raise ValueError(f"a query of side {side} stands twice")
        values = {}
        for name, part in parts.items():
            if part["query_id"].to_pylist() != ids:
                raise ValueError(f"{name} of side {side} is of other queries than {next(iter(parts))}")
            values[name] = part["value"].to_numpy().astype(np.float64)
            if not np.isfinite(values[name]).all():
                raise ValueError(f"{name} of side {side} holds values that are not finite")
        sides[side] = SideScores(ids, first["kind"].to_pylist(), first["warm"].to_pylist(), values)
    if "test" not in sides:
        raise ValueError("it holds no test side")
    return sides


def _pairs(path: Path) -> PairScores:
    table = pq.read_table(path, columns=["query_id", "label", "score", "accepted"])
    scores = table["score"].to_numpy().astype(np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    labels, accepted = (table[name].to_numpy().astype(np.bool_) for name in ("label", "accepted"))
    queries = table["query_id"].to_pylist()
    if not all(isinstance(name, str) for name in queries):
        raise ValueError("the id of a query is no text")
    return PairScores(queries, labels, scores, accepted)


def _history(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as lines:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]
