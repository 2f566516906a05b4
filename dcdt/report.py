"""Finished runs -> tables, statistics, figures and one page: `python -m dcdt.report DIR [DIR ...] [--out DIR]`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dcdt.cli import Parser, command
from dcdt.config.paths import run_path
from dcdt.data.feedback import read_feedback
from dcdt.reporting import render
from dcdt.reporting.figures import make_figures, png, svg
from dcdt.reporting.interleaving import compare_interleaved
from dcdt.reporting.page import page
from dcdt.reporting.tables import Report, find_variant, make_report
from dcdt.reporting.variants import Variant
from dcdt.runs.reader import first_line, read_runs
from dcdt.utils.errors import UserError, exit_on_user_error, format_error, is_user_error
from dcdt.utils.files import atomic_write, refuse_outside_links, write_text
from dcdt.utils.shell import shell_command, user_path
from dcdt.utils.signals import Interrupted
from dcdt.utils.text import printable

FIGURES = ("loss", "scores", "differences", "learning")


def report(
    folders: Sequence[Path],
    out: Path,
    compare: Sequence[str] = (),
    metric: str | None = None,
    against: str | None = None,
) -> Report:
    """Read runs and write every file of the report.

    Args:
        folders: of runs or of sweeps.
        out: where the files go.
        compare: labels of the two models whose queries the page compares; the best and zero_shot by default.
        metric: that orders and tests; the primary metric by default.
        against: label of the row that all others are tested against; zero_shot by default.

    Raises:
        UserError: nothing has finished, a file is corrupt, runs that cannot be compared, or an unknown label.
    """
    if out.parent in folders:
        refuse_outside_links(out, out.parent)
    result = make_report(read_runs(folders), metric, against)
    pair = compared_models(result, compare)
    quality = [*result.tables, *([result.failures] if result.failures.rows else [])]
    tests = [table for table in quality if table.name == "tests"]
    texts = {
        "table.md": render.markdown(quality),
        "table.tex": render.latex(quality),
        "table.csv": render.csv_wide(result.tables[0]),
        "tests.csv": "".join(map(render.csv_wide, tests)),
        "breakdowns.csv": render.csv_long([table for table in result.tables[1:] if table not in tests]),
        "table.json": render.report_json(result),
        "cost.md": render.markdown([result.cost]),
        "cost.csv": render.csv_wide(result.cost),
        "cost.json": render.table_json(result.cost),
        "index.html": page(result, out, pair),
    }
    for name, text in texts.items():
        write_text(out / name, printable(text))
    figures = make_figures(result)
    for name in FIGURES:
        for path in (out / f"{name}.png", out / f"{name}.svg"):
            path.unlink(missing_ok=True)  # of an earlier report
            if name in figures:
                data = png(figures[name]) if path.suffix == ".png" else svg(figures[name], name, name, {}).encode()
                with atomic_write(path) as temporary:
                    temporary.write_bytes(data)
    return result


def publish(
    folders: Sequence[Path],
    out: Path,
    to_wandb: bool,
    compare: Sequence[str] = (),
    metric: str | None = None,
    against: str | None = None,
    to_workspace: bool = False,
) -> None:
    """Write a report, print its table and the path of its page, and with `to_wandb` log it to W&B.

    With `to_workspace` a view of the sweep and a written report are saved there as well.

    Raises:
        UserError: as `report`; or W&B refuses.
    """
    result = report(folders, out, compare, metric, against)
    print(printable(render.summary(result)))  # noqa: T201 - the command's own message
    print(f"report: {out / 'index.html'}")  # noqa: T201
    if to_wandb or to_workspace:
        from dcdt.training.loggers.wandb_report import log_report
        from dcdt.training.loggers.wandb_workspace import save_workspace

        place = log_report(result, folders[0], {name: out / f"{name}.png" for name in FIGURES})
        if to_workspace and place is None:
            raise UserError("--workspace needs W&B's server, which keeps views. Run wandb login, or give --wandb.")
        if to_workspace and place:
            print("\n".join(f"W&B: {address}" for address in save_workspace(result, place)))  # noqa: T201


def report_sweep(folder: Path, to_wandb: bool) -> None:
    """Report a sweep that has just ended; an error is printed in one line, with the command that repeats it."""
    repeat = shell_command("report", folder, *(["--wandb"] if to_wandb else []))
    try:
        publish([folder], folder / "report", to_wandb)
    except Interrupted as error:
        error.advice = f"the report is not complete. Repeat: {repeat}"
        raise
    except Exception as error:  # the sweep has not failed
        reason = format_error(error) if is_user_error(error) else f"{type(error).__name__}: {error}"
        reason = first_line(reason).rstrip(".: ")
        print(f"the report is not complete: {reason}. Repeat: {repeat}", file=sys.stderr)  # noqa: T201


def compared_models(result: Report, labels: Sequence[str]) -> tuple[Variant, Variant] | None:
    """The two models whose queries the page compares; None where there is only one.

    Raises:
        UserError: a label that is none of the report's.
    """
    if labels:
        first, second = (find_variant(result.variants, label, "--compare") for label in labels)
        return first, second
    others = [result.reference, *(variant for variant in result.variants if variant.runs)]
    other = next((variant for variant in others if variant is not None and variant is not result.best), None)
    return (result.best, other) if other else None


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser(
        "report",
        description="Tables, tests and figures of finished runs.",
        epilog="index.html, table.{md,tex,csv,json}, tests.csv, breakdowns.csv, cost.{md,csv,json}, *.{png,svg}.",
    )
    parser.add_argument(
        "folders", metavar="DIR", nargs="*", type=run_path, help="a run's folder or a sweep's, or latest"
    )
    parser.add_argument("--out", type=user_path, help="where the files go (default: report/ in the first DIR)")
    parser.add_argument("--compare", nargs=2, default=(), metavar="MODEL", help="two models whose queries to compare")
    parser.add_argument("--metric", help="order and test by this one, such as ndcg@10 (default: the primary metric)")
    parser.add_argument("--against", metavar="MODEL", help="test every other row against this one (default: zero_shot)")
    parser.add_argument("--interleaved", type=user_path, metavar="FOLDER", help="print which model learners preferred")
    parser.add_argument("--wandb", action="store_true", help="send tables and figures to W&B as a run of their own")
    parser.add_argument("--workspace", action="store_true", help="--wandb, with a view of the sweep and a report there")
    options = parser.parse_args(arguments)
    if bool(options.folders) == bool(options.interleaved):
        parser.error("give DIR of runs, or --interleaved FOLDER of feedback")
    if options.interleaved:
        with exit_on_user_error():
            for models, (wins, losses, ties, p) in compare_interleaved(read_feedback(options.interleaved)).items():
                counts = f"{wins} won, {losses} lost, {ties} tied, over learners (questions, of unknown ones)"
                print(f"{models}: {counts}; p = {p:.3g} (exact sign test, two-sided)")  # noqa: T201
        return
    out = options.out or options.folders[0] / "report"
    with exit_on_user_error():
        publish(
            options.folders, out, options.wandb, options.compare, options.metric, options.against, options.workspace
        )


if __name__ == "__main__":
    main()
