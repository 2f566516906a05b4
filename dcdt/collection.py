"""Make, check or copy a collection: `python -m dcdt.collection new|check|demo|ocr|feedback FOLDER [...]`."""

import argparse
import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dcdt.cli import Parser, command
from dcdt.config import demo_collection
from dcdt.data.beir import load_collection
from dcdt.data.captions import read_captions
from dcdt.data.config import SplitConfig
from dcdt.data.feedback import add_clicks
from dcdt.data.importer import (
    COLUMN_NAMES,
    ImportedRecords,
    add_interactions,
    add_judgments,
    add_queries,
    add_videos,
)
from dcdt.data.slides import recognise_slides
from dcdt.data.splits import make_split
from dcdt.data.summary import CollectionSummary, summarise_collection
from dcdt.data.transcripts import TRANSCRIPTS
from dcdt.data.weak_queries import KINDS, add_weak_queries
from dcdt.utils.errors import UserError, exit_on_user_error
from dcdt.utils.files import temporary_folder
from dcdt.utils.shell import override, shell_command, user_path
from dcdt.utils.text import pluralize, printable

EPILOG = """Files are .csv, .tsv, .json, .jsonl (also .gz), .xlsx or .parquet. A column is found by its usual name,
whatever its case; otherwise name it, such as --title-column "course name" --text-column blurb. Each further column of
the videos is kept as metadata. Videos alone are enough to be searched."""


CATALOGUE = (
    "Questions with the id of a video that answers each (--queries FILE) would show how good the search is, and let\n"
    "it be fitted: 32 paid on two of four collections measured, and did no harm on the others."
)


def new_collection(folder: Path, options: argparse.Namespace) -> ImportedRecords:
    """Read the tables and write the folder atomically.

    Returns:
        What was read, with the columns that were taken and warnings about the tables.

    Raises:
        UserError: the folder is not empty, or a table is invalid.
    """
    _refuse_existing(folder)
    if "${" in (options.name or ""):  # a variable, in YAML files of this project
        raise UserError(f"--name is {options.name!r}; it must not have '${{'.")
    records = _read_records(options)
    settings = {"name": options.name or folder.resolve().name, "positive_grade": options.positive_grade}
    if options.languages:
        settings["languages"] = options.languages
    with temporary_folder(folder) as temporary:
        draft = temporary / "collection"
        _write(draft, records, settings)
        try:
            check_collection(draft)  # before it is renamed into place
        except UserError as error:
            raise UserError(str(error).replace(str(draft), str(folder))) from None
        _rename_draft(draft, folder)
    return records


def _read_records(options: argparse.Namespace) -> ImportedRecords:
    """Read the tables that the options name."""
    names = {role: value for role in COLUMN_NAMES if (value := getattr(options, f"{role.replace('-', '_')}_column"))}
    records = ImportedRecords()
    add_videos(records, options.videos, names, options.keep, options.transcript)
    if options.captions:
        captions, note = read_captions(options.captions, records.videos.keys())
        records.transcripts |= captions
        records.warnings += [note] if note else []
    if options.queries:
        add_queries(records, options.queries, names)
    if options.judgments:
        add_judgments(records, options.judgments, names)
    unjudged = len(records.queries.keys() - {query for query, _ in records.grades})
    if unjudged:
        total = len(records.queries)
        records.warnings.append(f"queries without a judgment: {unjudged} of {total}; they are left out.")
    if options.interactions:
        add_interactions(records, options.interactions, names)
    if options.bootstrap_queries:
        n_weak = add_weak_queries(records, options.bootstrap_queries, options.positive_grade)
        sentence = pluralize(n_weak, "weak query was", "weak queries were")
        records.warnings.append(f"{sentence} made from {options.bootstrap_queries}; they have no human judgments.")
    if records.queries and not records.grades:
        raise UserError(
            f"{options.queries}: no row names a video that answers its question, so nothing can be learnt or tested.\n"
            "Name the column of their ids: --video-column NAME; or a table of them: --judgments FILE."
        )
    return records


def check_collection(folder: Path) -> CollectionSummary:
    """Read a collection as a run does, with its splits, and summarise it.

    Raises:
        UserError: a run would refuse it, with file and line.
    """
    collection = load_collection(folder, needs_queries=False)
    if len(collection.queries):
        make_split(collection, SplitConfig("query", 0, 1, "all"))
    return summarise_collection(collection)


def copy_demo(folder: Path) -> None:
    """Copy the 46 linear-algebra videos with their queries, judgments, learners and vectors.

    Raises:
        UserError: the folder is not empty.
    """
    _refuse_existing(folder)
    with temporary_folder(folder) as temporary:
        draft = temporary / "collection"
        shutil.copytree(demo_collection(), draft, ignore=shutil.ignore_patterns("*.py", "__pycache__", "judging"))
        _rename_draft(draft, folder)


def _write(folder: Path, records: ImportedRecords, settings: dict[str, object]) -> None:
    folder.mkdir(parents=True)
    files = {"corpus.jsonl": records.videos, "queries.jsonl": records.queries, TRANSCRIPTS: records.transcripts}
    files = {name: entries for name, entries in files.items() if entries}
    for name, entries in files.items():
        with (folder / name).open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in entries.values())
    if records.queries:
        (folder / "qrels").mkdir()
        with (folder / "qrels" / "all.tsv").open("w", encoding="utf-8") as lines:
            lines.write("query-id\tcorpus-id\tscore\n")
            lines.writelines(f"{query}\t{video}\t{grade:.15g}\n" for (query, video), grade in records.grades.items())
    if records.watches:
        with (folder / "interactions.csv").open("w", encoding="utf-8", newline="") as lines:
            csv.writer(lines).writerows([("user_id", "item_id", "timestamp"), *records.watches])
    OmegaConf.save(OmegaConf.create(settings), folder / "collection.yaml")


def _rename_draft(draft: Path, folder: Path) -> None:
    """Rename the finished draft, unless another process has made the folder meanwhile."""
    try:
        draft.replace(folder)
    except OSError:
        _refuse_existing(folder)
        raise


def _refuse_existing(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty. Name another folder, or remove this one first.")


def print_summary(summary: CollectionSummary, warnings: Sequence[str]) -> None:
    """Print figures, the lengths as bars, and the warnings."""
    console = Console(highlight=False, emoji=False)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in summary.statistics:
        table.add_row(name, escape(printable(value)))
    console.print(table)
    console.print("\nvideos by words of their description")
    longest = max(n for _, n in summary.lengths)
    for label, n in summary.lengths:
        console.print(f"  {label:>12} {'█' * round(40 * n / longest)} {n:,}")
    for warning in [*warnings, *summary.warnings]:
        console.print(f"[yellow]warning:[/yellow] {escape(printable(warning))}", soft_wrap=True)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command's arguments."""
    parser = Parser("collection", description="Collections: make, check, copy.")
    actions = parser.add_subparsers(dest="action", required=True)
    make = actions.add_parser("new", help="write a collection from exported tables", epilog=EPILOG)
    make.add_argument("folder", type=user_path, help="to write, which must be new or empty")
    make.add_argument("--videos", type=user_path, required=True, metavar="FILE", help="id, title, description, ...")
    make.add_argument(
        "--queries", type=user_path, metavar="FILE", help="question, id of a video that answers it, grade"
    )
    make.add_argument(
        "--judgments", type=user_path, metavar="FILE", help="query id, video id, grade, where --queries has none"
    )
    make.add_argument("--interactions", type=user_path, metavar="FILE", help="learner, video, time")
    for role, names in COLUMN_NAMES.items():
        make.add_argument(f"--{role}-column", metavar="NAME", help=f"found as {', '.join(names[:4])}")
    make.add_argument("--captions", type=user_path, metavar="FOLDER", help="files ID.vtt, ID.en.srt, ID.json3, ...")
    make.add_argument("--transcript", metavar="COLUMN", help="of the videos: what is said in them")
    make.add_argument("--keep", nargs="*", metavar="COLUMN", help="columns of the videos to keep as metadata (all)")
    make.add_argument("--name", help="of the collection (the folder's)")
    make.add_argument("--positive-grade", type=float, default=1.0, metavar="G", help="least grade of a positive (1)")
    make.add_argument("--languages", nargs="*", metavar="CODE", help="of the queries; others are reported apart")
    make.add_argument("--bootstrap-queries", choices=KINDS, help="weak queries: no labels are needed, none are made up")
    for name, help_text in (
        ("check", "validate a collection and print what it holds"),
        ("demo", "copy the 46-video set"),
        ("ocr", "read the text on the slides in FOLDER/images, as the field 'slides' of the videos"),
    ):
        actions.add_parser(name, help=help_text).add_argument("folder", type=user_path, help="of the collection")
    feedback = actions.add_parser("feedback", help="add what learners clicked (dcdt.serve --feedback) to a collection")
    feedback.add_argument("feedback", type=user_path, metavar="FOLDER", help="of the feedback")
    feedback.add_argument("--into", dest="folder", type=user_path, required=True, metavar="COLLECTION", help="to write")
    feedback.add_argument("--propensities", type=user_path, metavar="FILE", help="rank,propensity (else estimated)")
    return parser


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = make_parser().parse_args(arguments)
    with exit_on_user_error():
        warnings: list[str] = []
        if options.action == "new":
            records = new_collection(options.folder, options)
            warnings = records.warnings
            for line in records.mappings:
                print(printable(f"columns of {line}"))  # noqa: T201
        if options.action == "ocr":
            done, *warnings = recognise_slides(options.folder, load_collection(options.folder).videos.row_of)
            print(done)  # noqa: T201
        if options.action == "feedback":
            print(*add_clicks(options.feedback, load_collection(options.folder), options.propensities), sep="\n")  # noqa: T201
        if options.action == "demo":
            copy_demo(options.folder)
        summary = check_collection(options.folder)
        print_summary(summary, warnings)
    if not summary.n_queries:
        search = shell_command("serve", options.folder, *(["--embedder", "multilingual"] if summary.is_foreign else []))
        print(f"\n{options.folder} is a catalogue without questions. Search it: {search}\n{CATALOGUE}")  # noqa: T201
        return
    foreign = ["embedder=multilingual"] if summary.is_foreign else []
    run = shell_command("run", "data=files", override("data.path", options.folder), "experiment=best", *foreign)
    print(f"\n{options.folder} is a collection. Train on it: {run}")  # noqa: T201


if __name__ == "__main__":
    main()
