"""Change what a run recommends, without training: `python -m dcdt.index RUN build|add|update|delete|export|info`."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dcdt.data.types import Documents
from dcdt.serving.load import load
from dcdt.serving.recommender import ServedRecommender
from dcdt.serving.videos import one_video, read_file
from dcdt.utils.errors import UserError, format_error
from dcdt.utils.redaction import redact_output
from dcdt.utils.text import pluralize


def _videos(served: ServedRecommender, given: argparse.Namespace) -> Documents:
    """The videos of a command line: a file, or one in words; an update keeps of that one what is not given."""
    if (given.videos is None) == (given.id is None):
        raise UserError("give either --videos FILE, or --id with --title and --text.")
    if given.videos is not None:
        roles = {"id": given.id_column, "title": given.title_column, "text": given.text_column}
        return read_file(given.videos, {role: name for role, name in roles.items() if name is not None})
    if given.action == "add":
        return one_video(given.id, given.title or "", given.text or "", given.meta)
    old = served.videos([given.id.strip()])
    title = old.titles[0] if given.title is None else given.title
    text = old.texts[0] if given.text is None else given.text
    new = one_video(given.id, title, text, given.meta)
    return replace(new, metadata=[{**old.metadata[0], **new.metadata[0]}])


def _change(served: ServedRecommender, given: argparse.Namespace) -> str:
    """Add, update or delete, and say what was done."""
    started = time.perf_counter()
    if given.action == "delete":
        served.delete(given.ids)
        done = f"deleted {len(set(given.ids))}"
    else:
        videos = _videos(served, given)
        (served.add if given.action == "add" else served.update)(videos)
        done = f"{'added' if given.action == 'add' else 'updated'} {len(videos)}"
    seconds = time.perf_counter() - started
    return f"{done} in {seconds:.2f} s: {pluralize(len(served), 'video')}, version {served.store.pointer.version}"


def _info(served: ServedRecommender) -> str:
    """What the index holds."""
    store = served.store
    lines = [f"{pluralize(len(served), 'video')}, version {store.pointer.version} of build {store.pointer.build}"]
    lines.append(f"model {served.name}, from the collection {store.manifest.collection}")
    lines.append(f"catalogue: {store.catalogue.url}")
    lines.append(f"filters: {', '.join(f'{name} ({kind})' for name, kind in sorted(served.kinds.items()))}")
    for name, facts in store.manifest.approximate.items():
        lines.append(f"{name}: {facts.kind}, recall@10 {facts.recall:.3f} against exact search")
    if not store.manifest.approximate:
        lines.append("search is exact")
    if served.manifest.threshold is not None:
        threshold = served.manifest.threshold
        lines.append(
            f"nothing fits below {threshold.value:.4f}: on {threshold.queries} validation questions it keeps "
            f"{threshold.kept:.0%} of those with an answer and refuses {threshold.refused:.0%} of those without"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dcdt.index", description="The catalogue that a finished run recommends from."
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="the run's folder")
    actions = parser.add_subparsers(dest="action", required=True)
    build = actions.add_parser("build", help="export the run and index its collection anew")
    build.add_argument(
        "--catalogue", metavar="URL", help="keep the table at a folder or s3://BUCKET/PATH that several machines share"
    )
    actions.add_parser("info", help="what the index holds")
    for name, about in (("add", "add new videos"), ("update", "put edited videos in the place of old ones")):
        change = actions.add_parser(name, help=about)
        change.add_argument(
            "--videos", type=Path, metavar="FILE", help=".jsonl like corpus.jsonl, or a table: .csv, .tsv, .parquet"
        )
        for role in ("id", "title", "text"):
            change.add_argument(f"--{role}-column", metavar="NAME", help="of the table, where it has no usual name")
        change.add_argument("--id")
        change.add_argument("--title", help="an update keeps what is not given")
        change.add_argument("--text")
        change.add_argument("--meta", action="append", default=[], metavar="KEY=VALUE", help="such as series=MIT")
    delete = actions.add_parser("delete", help="remove videos")
    delete.add_argument("ids", nargs="+", metavar="ID")
    export = actions.add_parser("export", help="vectors and metadata as Parquet, for another vector database")
    export.add_argument("out", type=Path, metavar="FILE.parquet")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    redact_output()
    given = _parser().parse_args(arguments)
    say = lambda text: print(f"{text} ...", file=sys.stderr, flush=True)  # noqa: E731, T201
    try:
        if given.action == "build":
            from dcdt.serving.export import build

            build(given.run, say, given.catalogue)
            print(_info(ServedRecommender(given.run)))  # noqa: T201
            return
        served = load(given.run, say)
        if given.action == "info":
            print(_info(served))  # noqa: T201
        elif given.action == "export":
            from dcdt.serving.parquet import write_parquet

            print(write_parquet(served, given.out))  # noqa: T201
        else:
            print(_change(served, given))  # noqa: T201
    except (UserError, OSError) as error:
        print(f"error: {format_error(error)}", file=sys.stderr)  # noqa: T201 - the command's own message
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
