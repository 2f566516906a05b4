"""Read the folders of runs, finished or not; errors name the file."""

import csv
import io
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

from dcdt.config.renames import add_defaults, normalise
from dcdt.runs.folder import RunFiles
from dcdt.runs.validation import check_config, check_provenance, n_trials, numbers
from dcdt.utils.errors import UserError
from dcdt.utils.files import parse_json, read_limited
from dcdt.utils.redaction import redact
from dcdt.utils.text import one_line
from dcdt.utils.yaml import read_yaml

Floats = NDArray[np.float64]
FINISHED, FAILED, NOT_APPLICABLE, UNFINISHED = "finished", "failed", "not applicable", "did not finish"
MAX_ERROR_CHARS, MAX_ROUNDING = 200, 1e-6
MAX_ROWS = 50_000_000  # of a Parquet file, which may say in a few bytes that it has billions
_REMEDY = "\nDelete the run's folder and repeat the command that made it."
_PATH = re.compile(r"(?<![\w.:/\\-])(?:[A-Za-z]:)?(?:[/\\][^\s/\\'\",;:()]+)+[/\\]([^\s/\\'\",;:()]+)")


MOMENT_METRICS = {"within_30": 30, "within_60": 60, "within_120": 120}  # seconds


@dataclass(frozen=True)
class SideScores:
    """Per-query values of one side in one run: n ids, their kinds and warmth, (n,) values by metric, and their units.

    `units` is empty where a run of version 0.1 names none (`dcdt.reporting.units`).
    """

    ids: list[str]
    kinds: list[str]
    warm: list[str]
    values: dict[str, Floats]
    units: list[str] = field(default_factory=list)


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
        folder: its path.
        status: finished, failed, not applicable, or did not finish (killed, or still running).
        config: the resolved configuration; empty where it was refused.
        error: first line of what went wrong, without this machine's paths.
        metrics, provenance, cost: as in the files of those names; empty unless finished.
        sides: per-query values by side, without validation.
        pairs: the pair protocol of the test side, or None.
        moments: how far from the second asked about the best passage starts, and MOMENT_METRICS; or None.
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
    moments: SideScores | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    trials: int = 1

    @property
    def model(self) -> str:
        """Name of the model; of a job whose configuration was refused, of its folder."""
        return str(self.config["model"]["name"]) if self.config else self.folder.name

    @property
    def fold(self) -> int:
        """Index of its division of the collection."""
        return _integer(self.config["split"]["index"]) if self.config else -1

    @property
    def seed(self) -> int:
        """Seed of initialisation and sampling."""
        return _integer(self.config.get("seed"))


def _integer(value: object) -> int:
    """A fold or a seed; -1 where the value of a failed job is no integer."""
    return value if isinstance(value, int) else -1


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read every run in these folders, each a run's or a sweep's; sorted, each once.

    Raises:
        UserError: a folder holds no run, none has finished, or a file of a finished run is missing or corrupt.
    """
    paths: dict[Path, Path] = {}
    for folder in folders:
        for path in _run_paths(folder):
            paths.setdefault(path.resolve(), path)
    runs = [_read(path) for path in paths.values()]
    if not any(run.status == FINISHED for run in runs):
        first = next((f"; {run.folder.name}: {run.error}" for run in runs if run.error), "")
        raise UserError(f"none of the {len(runs)} runs has finished, so there is nothing to report{first}")
    return sorted(runs, key=lambda run: (run.model, run.fold, run.seed, str(run.folder)))


def _run_paths(folder: Path) -> list[Path]:
    """The folder itself where it is a run, else its runs."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder.\nGive the folder of a run or of a sweep (outputs/sweeps/NAME).")
    paths = [folder] if _is_run(folder) else sorted(child for child in folder.iterdir() if _is_run(child))
    if not paths:
        raise UserError(
            f"{folder} holds no run: neither it nor a folder in it has a config.yaml or status.json.\n"
            "Give the folder of a run or of a sweep (outputs/sweeps/NAME)."
        )
    return paths


def _is_run(folder: Path) -> bool:
    files = RunFiles(folder)
    return files.config.is_file() or files.status.is_file()


def _read(folder: Path) -> Run:
    files = RunFiles(folder)
    recorded = _guarded(files.status, _parsed) if files.status.is_file() else {"status": "running"}
    status = {
        "finished": FINISHED,
        "failed": FAILED,
        "not_applicable": NOT_APPLICABLE,
        "running": UNFINISHED,
        "interrupted": UNFINISHED,
    }.get(str(recorded.get("status")))
    if status is None:
        raise UserError(f"{files.status} is corrupt: its status is {recorded.get('status')!r}.")
    if status != FINISHED and not files.config.is_file():  # it was refused, and is not stored
        return Run(folder, status, {}, first_line(str(recorded.get("error", ""))))
    config = _guarded(files.config, lambda path: check_config(normalise(read_yaml(path)), status == FINISHED))
    add_defaults(config)
    config["federated"] = _guarded(files.federation, _federation) if files.federation.is_file() else "no"
    if status != FINISHED:
        return Run(folder, status, config, first_line(str(recorded.get("error", ""))))
    metrics = _guarded(files.metrics, lambda path: numbers(_parsed(path)))
    return Run(
        folder,
        status,
        config,
        metrics=metrics,
        provenance=_guarded(files.provenance, lambda path: check_provenance(_parsed(path))),
        cost=_guarded(files.cost, lambda path: numbers(_parsed(path))),
        sides=_guarded(files.per_query, lambda path: _agreeing(_per_query(path), metrics)),
        pairs=_guarded(files.pairs, lambda path: _pairs(path, metrics)) if files.pairs.is_file() else None,
        moments=_guarded(files.moments, _moments) if files.moments.is_file() else None,
        history=_guarded(files.history, _history) if files.history.is_file() else [],
        trials=_guarded(files.tuning, lambda path: n_trials(_parsed(path))) if files.tuning.is_file() else 1,
    )


def _federation(path: Path) -> str:
    """Describe the schools whose sums a run was fitted from, and their privacy."""
    facts = _parsed(path)
    noise = "no noise" if facts["epsilon"] is None else f"epsilon {facts['epsilon']:g} at delta {facts['delta']:g}"
    return f"{facts['schools']:d} schools, {noise}"


def first_line(error: str) -> str:
    r"""The first line of a message, cut to a length, with absolute paths cut to their last component.

    >>> first_line("UserError: /home/me/data/khan has no queries.jsonl.\nAdd one.")
    'UserError: khan has no queries.jsonl.'
    """
    line = _PATH.sub(r"\1", (redact(error).splitlines() or [""])[0].strip())
    return line if len(line) <= MAX_ERROR_CHARS else f"{line[: MAX_ERROR_CHARS - 1]}…"


T = TypeVar("T")


def _guarded(path: Path, read: Callable[[Path], T]) -> T:
    """Read a file, converting errors to UserError with its name.

    Raises:
        UserError: it is missing or corrupt.
    """
    try:
        return read(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing, though the run is marked as finished.{_REMEDY}") from None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"{path} is corrupt ({one_line(error, 120)}).{_REMEDY}") from error


def _parsed(path: Path) -> dict[str, Any]:
    value = parse_json(read_limited(path))
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _table(path: Path, columns: list[str]) -> pa.Table:
    if pq.read_metadata(path).num_rows > MAX_ROWS:
        raise ValueError(f"it has more than {MAX_ROWS:,} rows")
    return pq.read_table(path, columns=columns, page_checksum_verification=True)


def _per_query(path: Path) -> dict[str, SideScores]:
    columns = ["query_id", "split", "kind", "warm", "metric", "value"]
    has_units = "unit" in pq.read_schema(path).names
    table = _table(path, [*columns, *(["unit"] if has_units else [])])
    sides = {}
    for side in sorted(set(table["split"].unique().to_pylist()) - {"val"}):
        rows = table.filter(pc.equal(table["split"], side))
        by_metric = {name: rows.filter(pc.equal(rows["metric"], name)) for name in rows["metric"].unique().to_pylist()}
        first = next(iter(by_metric.values()))
        ids = first["query_id"].to_pylist()
        if len(set(ids)) != len(ids):
            raise ValueError(f"a query of side {side} stands twice")
        values = {}
        for name, metric_rows in by_metric.items():
            if metric_rows["query_id"].to_pylist() != ids:
                raise ValueError(f"{name} of side {side} is of other queries than {next(iter(by_metric))}")
            values[name] = metric_rows["value"].to_numpy().astype(np.float64)
            if not ((values[name] >= 0) & (values[name] <= 1)).all():
                raise ValueError(f"{name} of side {side} holds values that are not from 0 to 1")
        units = first["unit"].to_pylist() if has_units else []
        if not all(isinstance(name, str) for name in units):
            raise ValueError(f"the unit of a query of side {side} is no text")
        sides[side] = SideScores(ids, first["kind"].to_pylist(), first["warm"].to_pylist(), values, units)
    if "test" not in sides:
        raise ValueError("it holds no test side")
    return sides


def _agreeing(sides: dict[str, SideScores], metrics: dict[str, float]) -> dict[str, SideScores]:
    """Return the sides, whose means are those of metrics.json."""
    for side, scores in sides.items():
        for name, values in scores.values.items():
            if abs(metrics.get(f"{side}/{name}", values.mean()) - values.mean()) > MAX_ROUNDING:
                raise ValueError(f"the mean of {name} of side {side} is not that of metrics.json")
    return sides


def _pairs(path: Path, metrics: dict[str, float]) -> PairScores:
    table = _table(path, ["query_id", "label", "score", "accepted"])
    scores = table["score"].to_numpy().astype(np.float64)
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    labels, accepted = (table[name].to_numpy().astype(np.bool_) for name in ("label", "accepted"))
    queries = table["query_id"].to_pylist()
    if not all(isinstance(name, str) for name in queries):
        raise ValueError("the id of a query is no text")
    right = float((labels == accepted).mean()) if len(labels) else 0.0
    if abs(metrics.get("test/pair_accuracy", right) - right) > MAX_ROUNDING:
        raise ValueError("their accuracy is not that of metrics.json")
    return PairScores(queries, labels, scores, accepted)


def _moments(path: Path) -> SideScores:
    table = _table(path, ["query_id", "video_id", "seconds", "start", "unit"])
    error = np.abs(table["start"].to_numpy() - table["seconds"].to_numpy()).astype(np.float64)  # (M,)
    if not np.isfinite(error).all():
        raise ValueError("a second is not finite")
    pairs = zip(table["query_id"].to_pylist(), table["video_id"].to_pylist(), strict=True)
    ids = [f"{query} {video}" for query, video in pairs]
    values = {name: (error <= seconds).astype(np.float64) for name, seconds in MOMENT_METRICS.items()}
    blank = [""] * len(ids)
    return SideScores(ids, blank, blank, {"error": error, **values}, list(map(str, table["unit"].to_pylist())))


def _history(path: Path) -> list[dict[str, float]]:
    lines = csv.DictReader(io.StringIO(read_limited(path), newline=""))
    return [{name: float(value) for name, value in row.items() if value} for row in lines]
