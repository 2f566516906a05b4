"""What DATASHEET.md must say of the files: hashes of what is frozen, and counts.

Without an option both are printed. `--check` exits with 1 where the datasheet says otherwise, `--write` corrects it.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

KINDS = ("keyword", "question", "beginner", "notation", "misconception", "typo", "applied")
FIELDS = ("kind", "lang", "canonical_for")

Record = dict[str, Any]


def read_jsonl(path: Path) -> list[Record]:
    """Records of a file with one JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def hash_lines(folder: Path) -> list[str]:
    """One line a frozen file. Of the queries only what is not simulated counts."""
    queries = [
        json.dumps([query["_id"], query["text"], *(query["metadata"].get(key) for key in FIELDS)], ensure_ascii=False)
        for query in read_jsonl(folder / "queries.jsonl")
    ]
    contents = {
        "corpus.jsonl": (folder / "corpus.jsonl").read_bytes(),
        "qrels/all.tsv": (folder / "qrels" / "all.tsv").read_bytes(),
        f"queries.jsonl (id, text, {', '.join(FIELDS)})": "\n".join(queries).encode(),
    }
    return [f"{name}  sha256 {hashlib.sha256(content).hexdigest()}" for name, content in contents.items()]


def count_lines(folder: Path) -> list[str]:
    """Counts by kind, language and grade, and the figures of the simulation, as Markdown."""
    videos, queries = read_jsonl(folder / "corpus.jsonl"), read_jsonl(folder / "queries.jsonl")
    judgments = [line.split("\t") for line in (folder / "qrels" / "all.tsv").read_text("utf-8").splitlines()[1:]]
    positives: dict[str, set[str]] = {query["_id"]: set() for query in queries}
    for query_id, video, grade in judgments:
        positives[query_id] |= {video} if grade == "2" else set()
    slices = Counter((query["metadata"]["kind"], query["metadata"]["lang"]) for query in queries)
    langs = Counter(query["metadata"]["lang"] for query in queries)
    example = {query["metadata"]["kind"]: query["text"].replace("|", "\\|") for query in reversed(queries)}
    grades = Counter(grade for *_, grade in judgments)
    words = [len(video["text"].split()) for video in videos]
    asked_for = Counter(video for found in positives.values() for video in found)
    return [
        "| kind | English | Chinese | example |",
        "|---|---|---|---|",
        *(f"| {kind} | {slices[kind, 'en']} | {slices[kind, 'zh']} | {example[kind]} |" for kind in KINDS),
        f"| all | {langs['en']} | {langs['zh']} | |",
        "",
        f"- Videos: {len(videos)} ({_tally(video['metadata']['series'] for video in videos)}).",
        f"- Levels: {_tally(video['metadata']['level'] for video in videos)}.",
        f"- Descriptions: {min(words)} to {max(words)} words, median {median(words):g}.",
        f"- Judgments: {len(judgments)}; grade 2: {grades['2']}, grade 1: {grades['1']}.",
        f"- Queries by their number of grade-2 videos: {_tally(sorted(map(len, positives.values())))}.",
        f"- Grade-2 judgments of a video: {min(asked_for.values())} to {max(asked_for.values())}.",
        *_simulation_lines(folder, queries, positives),
    ]


def _simulation_lines(folder: Path, queries: list[Record], positives: dict[str, set[str]]) -> list[str]:
    watches: dict[str, list[tuple[int, str]]] = {}
    for line in (folder / "interactions.csv").read_text("utf-8").splitlines()[1:]:
        user, video, time = line.split(",")
        watches.setdefault(user, []).append((int(time), video))
    lengths = [len(part) for part in watches.values()]
    days = [datetime.fromtimestamp(time, UTC).date() for part in watches.values() for time, _ in part]
    number: Counter[str] = Counter()
    for query in queries:
        about, wanted = query["metadata"], positives[query["_id"]]
        earlier = [video for time, video in watches[about["user_id"]] if time < about["timestamp"]]
        later = [video for time, video in watches[about["user_id"]] if time >= about["timestamp"]]
        number["later"] += not wanted.isdisjoint(later)
        number["earlier"] += not wanted.isdisjoint(earlier)
        number["never"] += wanted.isdisjoint(earlier + later)
        number["next"] += not wanted.isdisjoint(later[:1])
        number["no history"] += not earlier
    share = {key: f"{100 * count / len(queries):.0f} %" for key, count in number.items()}
    return [
        f"- Simulated learners: {len(watches)}, of whom {len({q['metadata']['user_id'] for q in queries})} ask. "
        f"Simulated watches: {sum(lengths)}, {min(lengths)} to {max(lengths)} a learner, median {median(lengths):g}, "
        f"from {min(days)} to {max(days)}.",
        f"- Simulated askers: in {share['later']} of the queries the asker watches a grade-2 video after asking, in "
        f"{share['earlier']} before, in {share['never']} never. The very next watch is one in {share['next']}. "
        f"No watch comes before the query in {share['no history']}.",
    ]


def _tally(values: Any) -> str:  # noqa: ANN401 - any iterable of labels
    return ", ".join(f"{label}: {number}" for label, number in Counter(values).items())


def filled(sheet: str, folder: Path) -> str:
    """The datasheet with its two blocks as the files demand."""
    blocks = {"hashes": ["```text", *hash_lines(folder), "```"], "counts": count_lines(folder)}
    for name, lines in blocks.items():
        head, begin, rest = sheet.partition(f"<!-- {name} -->\n")
        _, end, tail = rest.partition(f"<!-- end of {name} -->\n")
        if not end:
            sys.exit(f"DATASHEET.md has no block <!-- {name} --> ... <!-- end of {name} -->.")
        sheet = "".join([head, begin, *(line + "\n" for line in lines), end, tail])
    return sheet


def main() -> None:
    """Print, check or write."""
    parser = argparse.ArgumentParser(description="Hashes and counts for DATASHEET.md.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent)
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", action="store_true")
    action.add_argument("--write", action="store_true")
    options = parser.parse_args()
    path = options.folder / "DATASHEET.md"
    if options.write:
        path.write_text(filled(path.read_text("utf-8"), options.folder), encoding="utf-8")
    elif not options.check:
        print(*hash_lines(options.folder), "", *count_lines(options.folder), sep="\n")
    elif path.read_text("utf-8") != filled(path.read_text("utf-8"), options.folder):
        sys.exit("DATASHEET.md does not agree with the files. If the change is meant, run freeze.py --write.")


if __name__ == "__main__":
    main()
