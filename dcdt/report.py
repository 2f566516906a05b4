"""Finished runs -> tables, statistics, figures and one page: `python -m dcdt.report DIR [DIR ...] [--out DIR]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dcdt.reporting import render
from dcdt.reporting.figures import make_figures, png
from dcdt.reporting.page import page
from dcdt.reporting.tables import Report, find_variant, make_report
from dcdt.reporting.variants import Variant
from dcdt.runs.reader import first_line, read_runs
from dcdt.utils.errors import UserError, format_error, is_user_error
from dcdt.utils.files import atomic_write, write_text
from dcdt.utils.redaction import redact_output

FIGURES = ("loss", "scores", "differences", "learning")


def report(
    folders: Sequence[Path],
    out: Path,
    chosen: Sequence[str] = (),
    metric: str | None = None,
    against: str | None = None,
) -> Report:
    """Read runs and write every file of the report.

    Args:
        folders: of runs or of sweeps.
        out: where the files go.
        chosen: labels of the two models whose queries the page compares; the best and zero_shot where none is given.
        metric: that orders and tests; the primary metric where none is given.
        against: label of the row that all others are tested against; zero_shot where none is given.

    Raises:
        UserError: nothing has finished, a file is corrupt, runs that cannot be compared, or an unknown label.
    """
    found = make_report(read_runs(folders), metric, against)
    pair = choose(found, chosen)
    quality = [*found.tables, *([found.failures] if found.failures.rows else [])]
    tests = [table for table in quality if table.name == "tests"]
    texts = {
        "table.md": render.markdown(quality),
        "table.tex": render.latex(quality),
        "table.csv": render.csv_wide(found.tables[0]),
        "tests.csv": "".join(map(render.csv_wide, tests)),
        "breakdowns.csv": render.csv_long([table for table in found.tables[1:] if table not in tests]),
        "table.json": render.report_json(found),
        "cost.md": render.markdown([found.cost]),
        "cost.csv": render.csv_wide(found.cost),
        "cost.json": render.table_json(found.cost),
        "index.html": page(found, out, pair),
    }
    for name, text in texts.items():
        write_text(out / name, text)
    figures = make_figures(found)
    for name in FIGURES:
        path = out / f"{name}.png"
        path.unlink(missing_ok=True)  # of an earlier report
        if name in figures:
            with atomic_write(path) as temporary:
                temporary.write_bytes(png(figures[name]))
    return found


def publish(
    folders: Sequence[Path],
    out: Path,
    to_wandb: bool,
    chosen: Sequence[str] = (),
    metric: str | None = None,
    against: str | None = None,
) -> None:
    """Write a report, print its table and its page's place, and send it to W&B where asked to.

    Raises:
        UserError: as `report`; or W&B refuses.
    """
    result = report(folders, out, chosen, metric, against)
    print(render.summary(result))  # noqa: T201 - the command's own message
    print(f"report: {out / 'index.html'}")  # noqa: T201
    if to_wandb:
        from dcdt.training.loggers.wandb_report import log_report

        log_report(result, folders[0], {name: out / f"{name}.png" for name in FIGURES})


def report_sweep(folder: Path, to_wandb: bool) -> None:
    """The report of a sweep that has just ended; what goes wrong is a line that says how to repeat it."""
    try:
        publish([folder], folder / "report", to_wandb)
    except (Exception, KeyboardInterrupt) as error:  # whatever it is, it is no failure of the sweep
        reason = (
            format_error(error)
            if isinstance(error, Exception) and is_user_error(error)
            else f"{type(error).__name__}: {error}"
        )
        again = f"python -m dcdt.report {folder}{' --wandb' if to_wandb else ''}"
        reason = first_line(reason).rstrip(".: ")
        print(f"the report is not complete: {reason}. Repeat: {again}", file=sys.stderr)  # noqa: T201


def choose(found: Report, chosen: Sequence[str]) -> tuple[Variant, Variant] | None:
    """The two models whose queries are compared; None where there is only one.

    Raises:
        UserError: a label that is none of the report's.
    """
    if chosen:
        first, second = (find_variant(found.variants, label, "--compare") for label in chosen)
        return first, second
    others = [found.reference, *(variant for variant in found.variants if variant.runs)]
    other = next((variant for variant in others if variant is not None and variant is not found.best), None)
    return (found.best, other) if other else None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    redact_output()
    parser = argparse.ArgumentParser(
        prog="python -m dcdt.report",
        description="Tables, tests and figures of finished runs.",
        epilog="Writes index.html, table.{md,tex,csv,json}, tests.csv, breakdowns.csv, cost.{md,csv,json} and *.png.",
    )
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="a run's folder or a sweep's")
    parser.add_argument("--out", type=Path, help="where the files go (default: report/ in the first DIR)")
    parser.add_argument("--compare", nargs=2, default=(), metavar="MODEL", help="two models whose queries to compare")
    parser.add_argument("--metric", help="order and test by this one, such as ndcg@10 (default: the primary metric)")
    parser.add_argument("--against", metavar="MODEL", help="test every other row against this one (default: zero_shot)")
    parser.add_argument("--wandb", action="store_true", help="send tables and figures to W&B as a run of their own")
    given = parser.parse_args(arguments)
    out = given.out or given.folders[0] / "report"
    try:
        publish(given.folders, out, given.wandb, given.compare, given.metric, given.against)
    except (UserError, OSError) as error:
        print(f"error: {format_error(error)}", file=sys.stderr)  # noqa: T201 - the command's own message
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
