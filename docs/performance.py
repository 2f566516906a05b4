"""Write the table of docs/performance.md from benchmarks/results: `python docs/performance.py`.

What stands between the page's markers is made from the result files; a test says when it is out of date.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "results"
NO_LIMIT = "none"
KHAN, SHORT = "questions of khan_math, median 56 tokens", "questions of linear_algebra, median 13 tokens"


@dataclass(frozen=True)
class Measurement:
    """A row of the page and where its figures come from.

    Attributes:
        what, against: its words on the page.
        file: the result file, without .json.
        question: how the question of its row there begins.
        peer: how the `against` of that row begins, where several rows have the same question.
        limit: of the ratio, `>= x` or `<= x`; by default the target of the row, and NO_LIMIT where that is no ratio's.
    """

    what: str
    against: str
    file: str
    question: str
    peer: str = ""
    limit: str = ""


def answer(model: str, questions: str, words: str, limit: str) -> Measurement:
    """An answer over a million videos beside the embedding of its own question."""
    what = f"Answer over 1,000,000 videos, {words}, p50"
    question = f"question in ({questions}), answer out, {model}, 1,000,000 videos: p50"
    return Measurement(what, "embedding its question, time", "serving", question, "embedding alone", limit)


TABLE = [
    Measurement(
        "Training, 4 explicit negatives, batch 1024, 50,000 videos",
        "the same steps without loading data, samples/s",
        "training",
        "training, 4 explicit negatives",
        "compute only",
    ),
    Measurement(
        "Training, in-batch InfoNCE, batch 1024, 50,000 videos",
        "the same steps without loading data, samples/s",
        "training",
        "training, in-batch",
        "compute only",
    ),
    Measurement("Run of 200 epochs of 22 batches", "a raw PyTorch loop, time", "small_run", "small run, split=query"),
    Measurement("Run of 200 epochs of 2 batches", "a raw PyTorch loop, time", "small_run", "small run, split=paper"),
    Measurement(
        "Mining, 10,000 queries x 50,000 videos", "a square matrix product, FLOP/s", "mining", "mining", "a square"
    ),
    Measurement(
        "The same", "`sentence_transformers.util.semantic_search`, speed", "mining", "mining", "sentence_transformers"
    ),
    Measurement(
        "Full ranking with all metrics, 10,000 queries x 100,000 videos",
        "matrix product and `torch.topk`, time",
        "evaluation",
        "full ranking, 10,000 queries x 100,000 videos, all metrics: test",
    ),
    Measurement("14 ranking metrics, 10,000 queries", "torchmetrics, speed", "metrics", "14 ranking metrics"),
    Measurement(
        "First training step, `logger=wandb`",
        "a script that imports torch and lightning, time",
        "startup",
        "first training step, logger=wandb",
        limit=NO_LIMIT,
    ),
    Measurement(
        "Peak memory, training on 1,000,000 videos in fp16", "its tables of vectors", "memory", "training", "tables of"
    ),
    Measurement(
        "Local embedder, ONNX Runtime", "`SentenceTransformer.encode`, speed", "embedding", "local embedder by onnx"
    ),
    answer("dcdt_ridge", KHAN, "towers, long questions (56 tokens)", "<= 1.35"),
    answer("dcdt_ridge", SHORT, "towers, short questions (13 tokens)", "<= 1.8"),
    answer("hybrid", KHAN, "hybrid, long questions", "<= 2"),
    answer("hybrid", SHORT, "hybrid, short questions", "<= 3"),
]


def read(name: str) -> dict:
    """A result file."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def row_of(item: Measurement) -> dict:
    """The first row of the result file that the measurement names, with its date.

    Raises:
        ValueError: there is none, or it has no ratio.
    """
    found = read(item.file)
    for row in found["rows"]:
        if row["question"].startswith(item.question) and row["against"].startswith(item.peer):
            if row["ratio"] is None:
                raise ValueError(f"{item.file}.json: '{row['question']}' has no ratio")
            return {"date": found["date"], **row}
    raise ValueError(f"{item.file}.json: no row '{item.question}' against '{item.peer}'")


def holds(ratio: float, limit: str) -> bool:
    """Whether a ratio keeps a limit such as `<= 1.3`."""
    sign, number = limit.split()
    return ratio >= float(number) if sign == ">=" else ratio <= float(number)


def table() -> str:
    """The table: a ratio a row, its limit, its date and its file."""
    lines = ["| what | measured against | ratio | limit | | date, file |", "|---|---|---:|---|---|---|"]
    for item in TABLE:
        row = row_of(item)
        limit = item.limit or row["target"]
        kept = "" if limit == NO_LIMIT else "met" if holds(row["ratio"], limit) else "**not met**"
        source = f"{row['date']}, [{item.file}](../benchmarks/results/{item.file}.json)"
        lines.append(f"| {item.what} | {item.against} | {row['ratio']:g} | {limit} | {kept} | {source} |")
    return "\n".join(lines)


def quality() -> str:
    """What the approximate search finds of the exact answers."""
    rows = {row["question"]: row for row in read("serving")["rows"]}
    vectors = next(
        row for question, row in rows.items() if question.startswith("vector in") and "recall@10" in question
    )
    fused = [
        rows[f"fused answers ({words}), hybrid, 1,000,000 videos: of the exact ten found"] for words in (KHAN, SHORT)
    ]
    return (
        f"Over a million videos the approximate index finds {vectors['value']:g} of the ten nearest vectors "
        f"({vectors['date']}).\nA hybrid finds {fused[0]['value']:g} (long questions) and {fused[1]['value']:g} "
        f"(short) of the ten videos that scoring every video\nputs first ({fused[0]['date']}, n = 40 each; "
        "[serving](../benchmarks/results/serving.json))."
    )


def soak() -> str:
    """What a server did under searches and changes at once."""
    found = read("soak")
    waits, held = found["seconds_until_found"], found["server_mb"]
    failed, lost, extra, late = (
        len(found[key]) for key in ("failed_searches", "videos_lost", "videos_too_many", "changes_not_found_in_30_s")
    )
    return "\n".join(
        [
            f"In {found['minutes']:g} minutes: {found['searches']:,} searches, {failed} of them failed; "
            f"{found['changes']:,} additions, edits and deletions ({found['date']}).",
            f"Videos lost: {lost}; videos too many: {extra}; edits not found within 30 s: {late}.",
            f"An edit was found after {waits['p50']:.2f} s (median) and {waits['worst']:.1f} s (the longest wait).",
            f"The server's memory went from {held['first']:.0f} to {held['last']:.0f} MB, at most {held['most']:.0f}.",
        ]
    )


def page(text: str) -> str:
    """The page with everything between its markers as the results are now."""
    made = {"table": table, "quality": quality, "soak": soak}
    return re.sub(
        r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{made[match[2]]()}\n\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
