"""A question -> videos, from a finished run: `python -m dcdt.recommend RUN "a question" [-k 5] [--json]`."""

import argparse
import csv
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dcdt.cli import Parser, command
from dcdt.config.paths import run_path
from dcdt.data.table_reader import cell_text, find_column, read_rows
from dcdt.serving.load import load
from dcdt.serving.moments import Moment
from dcdt.serving.recommender import Recommendation, ServedRecommender
from dcdt.utils.errors import UserError, exit_on_user_error
from dcdt.utils.files import escape_cell, write_text
from dcdt.utils.shell import user_path
from dcdt.utils.text import join_names, pluralize, printable

QUESTION_COLUMNS = ("question", "query", "text")
CSV_COLUMNS = ("question", "rank", "score", "id", "title", "series", "link")
BATCH_SIZE = 64  # questions that are embedded together
MAX_QUESTIONS = 100_000  # questions of a batch file


def cell(text: str) -> str:
    """Escape a stranger's text for a table of the terminal."""
    return escape(printable(text))


def answer_table(question: str, answer: list[Recommendation], explained: bool) -> Table:
    """An answer as a table."""
    result = Table(title=cell(question), title_justify="left")
    for name in ("rank", "score"):
        result.add_column(name, justify="right")
    optional = [name for name in ("series",) if any(getattr(item, name) for item in answer)]
    for name in ("id", "title", *optional, *(["why"] if explained else [])):
        result.add_column(name, overflow="fold")
    for item in answer:
        lines = [item.title or item.text[:80], *map(format_moment, item.moments)]
        cells = [str(item.rank), f"{item.score:.4f}", cell(item.id), "\n".join(map(cell, lines))]
        cells += [cell(getattr(item, name) or "") for name in optional]
        result.add_row(*cells, *([cell(format_reasons(item.why))] if explained else []))
    return result


def answer_links(answer: list[Recommendation]) -> str:
    """The links of an answer, each on a line that no table breaks: of a video, and of its moments."""
    links = [
        (item.rank, link) for item in answer for link in (item.link, *(part.link for part in item.moments)) if link
    ]
    return "".join(f"{rank:>4}  {printable(link)}\n" for rank, link in links)


def format_moment(moment: Moment) -> str:
    """Format a moment with the beginning of what is said."""
    start = "" if moment.start_s is None else f"at {timedelta(seconds=int(moment.start_s))}: ".replace(" 0:", " ")
    return f"{start}{moment.text[:160]}"


def format_reasons(why: dict[str, Any] | None) -> str:
    """Format the explanation of a score: a line for each component of the model, and one for a rank head.

    >>> format_reasons({"parts": [{"name": "bm25", "score": 2.5, "terms": {"rank": 2.5}, "z": 3.0, "share": 1.5}]})
    'bm25 2.500 (z +3.00, adds +1.500): rank +2.500'
    """
    lines = []
    for part in (why or {}).get("parts", []):
        fused = f" (z {part['z']:+.2f}, adds {part['share']:+.3f})" if "z" in part else ""
        terms = [f"{name} {value:+.3f}" for key in ("fields", "terms") for name, value in part.get(key, {}).items()]
        attention = [f"attention {name} {value:.2f}" for name, value in part.get("attention", {}).items()]
        colon = ":" if terms or attention else ""
        lines.append(f"{part['name']} {part['score']:.3f}{fused}{colon} {', '.join([*terms, *attention])}".rstrip())
    if evidence := (why or {}).get("evidence"):
        lines.append("ranked by " + ", ".join(f"{name} {value:+.3f}" for name, value in evidence.items()))
    return "\n".join(lines)


def to_json(question: str, answer: list[Recommendation]) -> str:
    """An answer as one line of JSON."""
    content = {"question": question, "answer": [item.as_dict() for item in answer]}
    return printable(json.dumps(content, ensure_ascii=False))


def read_questions(path: Path, column: str | None = None) -> list[str]:
    """Questions of a table (.csv, .tsv, .jsonl, .parquet), each once for every row.

    Args:
        path: of the table.
        column: that holds them; `question`, `query` or `text` where none is given.

    Raises:
        UserError: the file cannot be read, has no such column, or too many rows.
    """
    rows = list(read_rows(path))
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    if not 0 < len(rows) <= MAX_QUESTIONS:
        raise UserError(f"{path} holds {len(rows)} questions; 1 to {MAX_QUESTIONS:,} can be asked at once.")
    column_name = find_column(columns, column, QUESTION_COLUMNS, "--query-column")
    if column_name is None:
        raise UserError(f"{path}: no column of questions among {join_names(columns)}.\nName it: --query-column NAME")
    return [cell_text(row.get(column_name)) for _, row in rows]


def batch_lines(served: ServedRecommender, questions: Sequence[str], args: argparse.Namespace) -> Iterator[str]:
    """The answers to many questions, as CSV or as lines of JSON."""
    if not args.json:
        yield _csv_line(CSV_COLUMNS)
    notes = Counter(note for question in questions for note in served.notes_for(args.user, question))
    for note, n in notes.items():
        print(f"note: {pluralize(n, 'question')}: {note}", file=sys.stderr)  # noqa: T201
    for start in range(0, len(questions), BATCH_SIZE):
        part = questions[start : start + BATCH_SIZE]
        answers = served.recommend(part, args.k, args.filter, args.explain, args.abstain, args.user)
        for question, answer in zip(part, answers, strict=True):
            if args.json:
                yield to_json(question, answer) + "\n"
                continue
            for item in answer:
                texts = map(escape_cell, (item.title, item.series or "", item.link or ""))  # may be a stranger's
                yield _csv_line((escape_cell(question), item.rank, f"{item.score:.6g}", item.id, *texts))


def answer_one(served: ServedRecommender, question: str, args: argparse.Namespace, console: Console) -> None:
    """Print the answer to one question."""
    answers = served.answer(question, args.k, args.filter, args.explain, args.abstain, args.user)
    answer = answers.videos[0]
    for note in served.notes_for(args.user, question):
        print(f"note: {note}", file=sys.stderr, flush=True)  # noqa: T201
    if args.json:
        print(to_json(question, answer), flush=True)  # noqa: T201
    elif answer:
        console.print(answer_table(question, answer, args.explain))
        print(answer_links(answer), end="", flush=True)  # noqa: T201 # not wrapped by the console
    elif answers.nothing_fits[0]:
        console.print("Nothing here fits the question.")
    else:
        console.print("No video meets the filter.")


def answer_lines(served: ServedRecommender, args: argparse.Namespace, console: Console) -> None:
    """Answer questions line by line until the input ends; a mistake is told, and the next line is read."""
    if sys.stdin.isatty():
        console.print(f"{pluralize(len(served), 'video')}. One question a line; an empty line or Ctrl-D ends.")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line in another encoding is refused, and the next one read
    for line in sys.stdin:
        if not line.strip():
            break
        try:
            answer_one(served, line.strip(), args, console)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201


@command
def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = Parser("recommend", description="Videos that answer a question, from a finished run of any model.")
    parser.add_argument("run", metavar="RUN", type=run_path, help="the run's folder, or latest")
    parser.add_argument("question", nargs="?", help="in words; in quotes, so that the shell leaves it whole")
    parser.add_argument("-k", type=int, default=10, help="how many videos (default: 10)")
    parser.add_argument("--filter", default="", help="such as level=intro,duration_s<600")
    parser.add_argument("--user", metavar="ID", help="who asks, for models that read histories (interactions.csv)")
    parser.add_argument("--moment-link", default="", metavar="TEMPLATE", help="such as {link}#t={seconds}")
    parser.add_argument("--json", action="store_true", help="one line of JSON a question")
    parser.add_argument("--explain", action="store_true", help="what made up each score")
    parser.add_argument("--abstain", action="store_true", help="leave out what scores below validation's threshold")
    parser.add_argument("--interactive", action="store_true", help="answer one question a line, from standard input")
    parser.add_argument("--batch", type=user_path, metavar="CSV", help="answer the questions of a table")
    parser.add_argument("--query-column", metavar="NAME", help="of --batch (default: question, query or text)")
    parser.add_argument("--out", type=user_path, metavar="FILE", help="write the answers to a batch here")
    args = parser.parse_args(arguments)
    if sum([args.question is not None, args.interactive, args.batch is not None]) != 1:
        parser.error('give one of: "a question", --interactive, --batch CSV')
    console = Console(width=None if os.isatty(1) else 120, emoji=False)
    with exit_on_user_error():
        try:
            served = load(args.run, say=lambda text: print(f"{text} ...", file=sys.stderr, flush=True))  # noqa: T201
            served.link = args.moment_link
            if args.abstain:
                served.check_abstain()
            if args.interactive:
                answer_lines(served, args, console)
            elif args.batch is not None:
                lines = batch_lines(served, read_questions(args.batch, args.query_column), args)
                if args.out is not None:
                    write_text(args.out, "".join(lines))
                else:
                    sys.stdout.writelines(lines)
            else:
                answer_one(served, args.question, args, console)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has seen enough


def _csv_line(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


if __name__ == "__main__":
    main()
