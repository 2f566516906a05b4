"""List, show, compare or delete runs: `dcdt runs list|show|compare|delete`, or `python -m dcdt.runs`."""

import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dcdt.cli import Parser, command
from dcdt.config import model_option, outputs_root
from dcdt.config.paths import run_path
from dcdt.reporting import render
from dcdt.reporting.tables import make_report
from dcdt.runs.folder import RunFolder, run_folders
from dcdt.runs.reader import first_line, read_runs
from dcdt.runs.sweep import OVERRIDES_FILE
from dcdt.utils.errors import UserError, exit_on_user_error
from dcdt.utils.files import read_json
from dcdt.utils.shell import shell_command
from dcdt.utils.text import printable


def list_runs(outputs: Path, n: int) -> list[str]:
    """List the last n runs and sweeps of a folder, a line each, the latest first."""
    marks = [*outputs.glob("*/status.json"), *outputs.glob(f"sweeps/*/{OVERRIDES_FILE}")]
    latest = sorted(marks, key=lambda path: path.stat().st_mtime, reverse=True)[:n]
    rows = [["run", "ended", "status", "model", "on test"]]
    rows += [_row(mark.parent, str(mark.parent.relative_to(outputs))) for mark in latest]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(path: Path, name: str) -> list[str]:
    if (path / OVERRIDES_FILE).exists():
        counts = Counter(str(run.read_status().get("status")) for run in run_folders(path))
        return [name, "", ", ".join(f"{n} {status}" for status, n in sorted(counts.items())), "", ""]
    run = RunFolder(path)
    status, (model, metric) = run.read_status(), _model_and_metric(run)
    ended = str(status.get("finished") or status.get("started") or "")[:16].replace("T", " ")
    scores = [line.removeprefix("test/") for line in _metrics(run) if line.startswith(f"test/{metric} ")]
    return [name, ended, str(status.get("status", "unreadable")), model, *(scores or [""])]


def _model_and_metric(run: RunFolder) -> tuple[str, str]:
    """Return the option of the model and the primary metric; empty where no configuration can be read."""
    try:
        config = run.read_config()
    except UserError:
        return "", ""
    return model_option(config.get("model")), str(config.get("primary_metric", "")).removeprefix("val/")


def _metrics(run: RunFolder) -> list[str]:
    """Format the metrics of the test side, each beside that of zero_shot."""
    values = {key: value for key, value in read_json(run.files.metrics).items() if isinstance(value, float)}
    beside = {key: f", zero_shot {values[f'zero_shot/{key}']:.3f}" for key in values if f"zero_shot/{key}" in values}
    return [f"{key} {value:.3f}{beside.get(key, '')}" for key, value in values.items() if key.startswith("test/")]


def show_run(path: Path) -> list[str]:
    """Describe a run in lines: how it ended, its test metrics, what it was made by, and how to ask it."""
    run = RunFolder(path)
    status = run.read_status()
    if not status:
        run.require_finished()  # which says what the folder is instead
    lines = [f"{path}: {_model_and_metric(run)[0]}, {status.get('status')}"]
    lines += [f"error: {first_line(str(status['error']))}"] if status.get("error") else []
    lines += [*_metrics(run), f"settings: {run.files.config}"]
    lines += [f"made by: {' '.join(map(str, read_json(run.files.provenance).get('command', [])))}"]
    is_finished = status.get("status") == "finished"
    return [*lines, f'ask it: {shell_command("recommend", path)} "a question"'] if is_finished else lines


def compare_runs(paths: Sequence[Path]) -> list[str]:
    """Compare runs in lines: the primary metric of each, and the paired tests of a report."""
    report = make_report(read_runs(paths))
    lines = render.summary(report).splitlines()
    for one in report.comparisons:
        interval = " ".join([one.difference.text(), *render.interval_and_spread(one.difference)])
        lines.append(f"{one.model} minus {one.reference}: {interval}, p (Holm) {one.adjusted:.2g}: {one.verdict}")
    return lines


def delete_runs(paths: Sequence[Path], confirmed: bool) -> str:
    """Delete folders of runs or sweeps after a yes, or raise UserError; return a line that says so."""
    for path in paths:
        if path.is_symlink() or not any((path / name).is_file() for name in ("status.json", OVERRIDES_FILE)):
            raise UserError(f"{path} is not the folder of a run or of a sweep; nothing was deleted.")
    names = printable(", ".join(map(str, paths)))
    if not confirmed:
        print(f"Delete with all weights and results: {names}? [y/N] ", end="", flush=True)  # noqa: T201
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UserError("nothing was deleted. To delete without a question: --yes")
    for path in dict.fromkeys(paths):
        runs = [RunFolder(path), *run_folders(path)]
        for run in runs:
            run.lock(wait=False)  # until this process ends
        shutil.rmtree(path)
    return f"deleted: {names}"


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("runs", description="The runs that are there. RUN is a folder, its name under outputs/, or latest.")
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="the last runs and sweeps, with their test metric")
    listing.add_argument("-n", type=int, default=20, help="how many (default: 20)")
    for name, help_text, number in (
        ("show", "how a run ended, its metrics and how it was made", None),
        ("compare", "metrics and paired tests of several runs, without writing a report", "+"),
        ("delete", "remove folders of runs or sweeps, after a question", "+"),
    ):
        action = actions.add_parser(name, help=help_text)
        action.add_argument("run", nargs=number, type=run_path, metavar="RUN", help="a run's folder, or latest")
    action.add_argument("--yes", action="store_true", help="delete without a question")
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        if options.action == "list":
            lines = list_runs(outputs_root(), options.n)
        elif options.action == "show":
            lines = show_run(options.run)
        elif options.action == "compare":
            lines = compare_runs(options.run)
        else:
            lines = [delete_runs(options.run, options.yes)]
        print(printable("\n".join(lines)))  # noqa: T201


if __name__ == "__main__":
    main()
