"""Make, check or copy a collection: `python -m dcdt.collection new|check|demo FOLDER [--videos FILE ...]`."""

import argparse
import csv
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from dcdt.config import demo_collection
from dcdt.data.beir import load_collection
from dcdt.data.config import SplitConfig
from dcdt.data.importer import USUAL, Found, add_interactions, add_queries, add_videos
from dcdt.data.splits import make_split
from dcdt.data.survey import Survey, survey
from dcdt.data.weak import KINDS, add_weak_queries
from dcdt.utils.errors import UserError, format_error
from dcdt.utils.redaction import redact_output
from dcdt.utils.text import pluralize

EPILOG = """Files are .csv, .tsv, .jsonl or .parquet. A column is found by its usual name; otherwise name it, such as
--title-column "course name" --text-column blurb. Each further column of the videos is kept as metadata."""


def new(folder: Path, given: argparse.Namespace) -> list[str]:
    """Read the tables and write the folder, whole or not at all.

    Returns:
        Warnings about the tables.

    Raises:
        UserError: the folder holds something, or a table cannot become a collection.
    """
    _refuse_existing(folder)
    names = {role: value for role in USUAL if (value := getattr(given, f"{role.replace('-', '_')}_column"))}
    found = Found()
    add_videos(found, given.videos, names, given.keep)
    if given.queries:
        add_queries(found, given.queries, names)
    if given.interactions:
        add_interactions(found, given.interactions, names)
    if given.bootstrap_queries:
        made = add_weak_queries(found, given.bootstrap_queries, given.positive_grade)
        made_of = pluralize(made, "weak query was", "weak queries were")
        found.warnings.append(f"{made_of} made from {given.bootstrap_queries}; nobody judged them.")
    if found.queries and not found.grades:
        raise UserError(
            f"{given.queries}: no row names a video that answers its question, so nothing can be learnt or tested.\n"
            "Name the column of their ids: --video-column NAME; or add --bootstrap-queries titles."
        )
    if not found.queries:
        raise UserError(
            "without queries there is nothing to train on or to test. Give --queries FILE, a question and the id of a\n"
            "video that answers it in each row; or --bootstrap-queries titles, which makes weak ones of the titles."
        )
    settings = {"name": given.name or folder.resolve().name, "positive_grade": given.positive_grade}
    if given.languages:
        settings["languages"] = given.languages
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
        draft = Path(place) / "collection"
        _write(draft, found, settings)
        try:
            check(draft)  # what it refuses never stands under the folder's name
        except UserError as error:
            raise UserError(str(error).replace(str(draft), str(folder))) from None
        _place(draft, folder)
    return found.warnings


def check(folder: Path) -> Survey:
    """Read a collection as a run would, splits included, and count what is there.

    Raises:
        UserError: what a run would refuse, with file and line.
    """
    collection = load_collection(folder)
    make_split(collection, SplitConfig("query", 0, 1, "all"))
    return survey(collection)


def demo(folder: Path) -> None:
    """Copy the 46 linear-algebra videos with their queries, judgments, learners and vectors.

    Raises:
        UserError: the folder holds something.
    """
    _refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
        draft = Path(place) / "collection"
        shutil.copytree(demo_collection(), draft, ignore=shutil.ignore_patterns("*.py", "__pycache__", "judging"))
        _place(draft, folder)


def _write(folder: Path, found: Found, settings: dict[str, object]) -> None:
    (folder / "qrels").mkdir(parents=True)
    for name, records in (("corpus", found.videos), ("queries", found.queries)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records.values())
    with (folder / "qrels" / "all.tsv").open("w", encoding="utf-8") as lines:
        lines.write("query-id\tcorpus-id\tscore\n")
        lines.writelines(f"{query}\t{video}\t{grade:.15g}\n" for (query, video), grade in found.grades.items())
    if found.watches:
        with (folder / "interactions.csv").open("w", encoding="utf-8", newline="") as lines:
            csv.writer(lines).writerows([("user_id", "item_id", "timestamp"), *found.watches])
    OmegaConf.save(OmegaConf.create(settings), folder / "collection.yaml")


def _place(draft: Path, folder: Path) -> None:
    """Give the finished draft its name, unless another process has taken it meanwhile."""
    try:
        draft.replace(folder)
    except OSError:
        _refuse_existing(folder)
        raise


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty. Name another folder, or remove this one first.")


def show(found: Survey, warnings: Sequence[str]) -> None:
    """Print figures, the lengths as bars, and the warnings."""
    console = Console(highlight=False)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in found.facts:
        table.add_row(name, value)
    console.print(table)
    console.print("\nvideos by words of their description")
    most = max(n for _, n in found.lengths)
    for label, n in found.lengths:
        console.print(f"  {label:>12} {'█' * round(40 * n / most)} {n:,}")
    for warning in [*warnings, *found.warnings]:
        console.print(f"[yellow]warning:[/yellow] {warning}", soft_wrap=True)


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    command = argparse.ArgumentParser(prog="python -m dcdt.collection", description="Collections: make, check, copy.")
    actions = command.add_subparsers(dest="action", required=True)
    make = actions.add_parser("new", help="write a collection from exported tables", epilog=EPILOG)
    make.add_argument("folder", type=Path)
    make.add_argument("--videos", type=Path, required=True, metavar="FILE", help="id, title, description, ...")
    make.add_argument("--queries", type=Path, metavar="FILE", help="question, id of a video that answers it, grade")
    make.add_argument("--interactions", type=Path, metavar="FILE", help="learner, video, time")
    for role, usual in USUAL.items():
        make.add_argument(f"--{role}-column", metavar="NAME", help=f"found as {', '.join(usual[:4])}")
    make.add_argument("--keep", nargs="*", metavar="COLUMN", help="columns of the videos to keep as metadata (all)")
    make.add_argument("--name", help="of the collection (the folder's)")
    make.add_argument("--positive-grade", type=float, default=1.0, metavar="G", help="least grade of a positive (1)")
    make.add_argument("--languages", nargs="*", metavar="CODE", help="of the queries; others are reported apart")
    make.add_argument("--bootstrap-queries", choices=KINDS, help="weak queries: no labels are needed, none are made up")
    for name, words in (("check", "validate a collection and print what it holds"), ("demo", "copy the 46-video set")):
        actions.add_parser(name, help=words).add_argument("folder", type=Path)
    return command


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    redact_output()
    given = parser().parse_args(arguments)
    try:
        warnings = new(given.folder, given) if given.action == "new" else []
        if given.action == "demo":
            demo(given.folder)
        show(check(given.folder), warnings)
    except (UserError, OSError) as error:
        print(f"error: {format_error(error)}", file=sys.stderr)  # noqa: T201 - the command's own message
        raise SystemExit(2) from None
    run = f"python -m dcdt.run data=files data.path={given.folder}"
    print(f"\n{given.folder} is a collection. Train on it: {run} experiment=best")  # noqa: T201


if __name__ == "__main__":
    main()
