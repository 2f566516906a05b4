"""Change what a run recommends, without training: `python -m dcdt.index RUN build|add|update|delete|export|info`."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from dcdt.cli import Parser, command
from dcdt.config.paths import run_path
from dcdt.data.types import Documents
from dcdt.serving.load import load
from dcdt.serving.passages import add_transcripts
from dcdt.serving.recommender import ServedRecommender
from dcdt.serving.videos import one_video, read_file
from dcdt.utils.errors import UserError, exit_on_user_error
from dcdt.utils.shell import user_path
from dcdt.utils.text import pluralize, printable


def _read_videos(served: ServedRecommender, args: argparse.Namespace) -> Documents:
    """Read the videos of a command line: a file, or one video; an update keeps the fields that are not named."""
    if (args.videos is None) == (args.id is None):
        raise UserError("give either --videos FILE, or --id with --title and --text.")
    if args.videos is not None:
        roles = {"id": args.id_column, "title": args.title_column, "text": args.text_column}
        return read_file(args.videos, {role: name for role, name in roles.items() if name is not None})
    if args.action == "add":
        return one_video(args.id, args.title or "", args.text or "", args.meta)
    old = served.videos([args.id.strip()])
    title = old.titles[0] if args.title is None else args.title
    text = old.texts[0] if args.text is None else args.text
    new = one_video(args.id, title, text, args.meta)
    return replace(new, metadata=[{**old.metadata[0], **new.metadata[0]}])


def _change(served: ServedRecommender, args: argparse.Namespace) -> str:
    """Add, update or delete; a line that says what was done."""
    started = time.perf_counter()
    if args.action == "delete":
        served.delete(args.ids)
        done = f"deleted {len(set(args.ids))}"
    else:
        videos = _read_videos(served, args)
        if args.transcripts is not None:
            if not served.manifest.has_transcripts:
                raise UserError(f"model={served.name} reads no transcripts; leave out --transcripts.")
            videos = add_transcripts(videos, args.transcripts)
        (served.add if args.action == "add" else served.update)(videos)
        done = f"{'added' if args.action == 'add' else 'updated'} {len(videos)}"
    seconds = time.perf_counter() - started
    return f"{done} in {seconds:.2f} s: {pluralize(len(served), 'video')}, version {served.catalogue.pointer.version}"


def _info(served: ServedRecommender) -> str:
    """Describe the index in lines."""
    catalogue = served.catalogue
    lines = [
        f"{pluralize(len(served), 'video')}, version {catalogue.pointer.version} of build {catalogue.pointer.build}"
    ]
    lines.append(f"model {served.name}, from the collection {served.manifest.collection}")
    lines.append(f"catalogue: {catalogue.table.url}")
    lines.append(f"filters: {', '.join(f'{name} ({kind})' for name, kind in sorted(served.kinds.items()))}")
    for name, info in served.manifest.approximate.items():
        lines.append(f"{name}: {info.kind}, recall@10 {info.recall:.3f} against exact search")
    if not served.manifest.approximate:
        lines.append("search is exact")
    if served.manifest.threshold is not None:
        threshold = served.manifest.threshold
        lines.append(
            f"nothing fits below {threshold.value:.4f}: on {threshold.queries} validation questions it answers "
            f"{threshold.answered:.0%} of those with an answer and rejects {threshold.rejected:.0%} of those without"
        )
    return "\n".join(lines)


def _print_progress(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = Parser("index", description="The catalogue that a finished run recommends from.")
    parser.add_argument("run", metavar="RUN", type=run_path, help="the run's folder, or latest")
    actions = parser.add_subparsers(dest="action", required=True)
    build = actions.add_parser("build", help="export the run and index its collection anew")
    build.add_argument(
        "--catalogue", metavar="URL", help="keep the table at a folder or s3://BUCKET/PATH that several machines share"
    )
    actions.add_parser("info", help="what the index holds")
    for name, about in (("add", "add new videos"), ("update", "put edited videos in the place of old ones")):
        change = actions.add_parser(name, help=about)
        change.add_argument(
            "--videos",
            type=user_path,
            metavar="FILE",
            help=".jsonl like corpus.jsonl, or a table: .csv, .tsv, .parquet",
        )
        for role in ("id", "title", "text"):
            change.add_argument(f"--{role}-column", metavar="NAME", help="of the table, where it has no usual name")
        change.add_argument("--id", help="of one video, given here instead of a file")
        change.add_argument("--title", help="an update keeps what is not given")
        change.add_argument("--text", help="its description")
        change.add_argument("--transcripts", type=user_path, metavar="PATH", help="a .jsonl, or a folder of ID.vtt")
        change.add_argument("--meta", action="append", default=[], metavar="KEY=VALUE", help="such as series=MIT")
    delete = actions.add_parser("delete", help="remove videos")
    delete.add_argument("ids", nargs="+", metavar="ID", help="of the videos")
    export = actions.add_parser("export", help="vectors and metadata as Parquet, for another vector database")
    export.add_argument("out", type=user_path, metavar="FILE.parquet", help="to write")
    return parser


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    args = _parser().parse_args(arguments)
    with exit_on_user_error():
        if args.action == "build":
            from dcdt.serving.export import build

            build(args.run, _print_progress, args.catalogue)
            print(printable(_info(ServedRecommender(args.run))))  # noqa: T201
            return
        served = load(args.run, say=_print_progress)
        if args.action == "info":
            print(printable(_info(served)))  # noqa: T201
        elif args.action == "export":
            from dcdt.serving.parquet import write_parquet

            print(write_parquet(served, args.out))  # noqa: T201
        else:
            print(_change(served, args))  # noqa: T201


if __name__ == "__main__":
    main()
