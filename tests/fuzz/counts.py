"""The counts of results.json as the table of docs/reliability.md; `python tests/fuzz/counts.py` writes it there."""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "reliability.md"
START, END = "<!-- counts of the fuzzing: written by tests/fuzz/counts.py -->\n", "<!-- end of the counts -->\n"
WHAT = {
    "collection": "corpus.jsonl, queries.jsonl, qrels, collection.yaml, interactions.csv, transcripts, moments",
    "tables": "CSV, TSV, JSONL, Parquet, WebVTT, SRT and json3 for `collection new`",
    "images": "PNG, JPEG, GIF, BMP and WebP in `images/`",
    "vectors": "manifest and shards of a cache, `.npy`, `.parquet` and names of an import",
    "overrides": "command lines of `dcdt.run`",
    "http": "requests to the service",
    "report": "every file of a run, as `dcdt.report` reads it",
    "restore": "configuration, status and checkpoints, as `recommend`, `serve` and `resume` read them",
    "index": "pointer, model.json, snapshot, ONNX graphs and embedder of an exported run",
    "approximate": "faiss indexes and what lies beside them",
    "catalogue": "files of the LanceDB catalogue",
    "messages": "what schools send to `dcdt.federate merge`",
    "changes": "videos for `dcdt.index`, questions of a batch, filters",
}


def table():
    """One row a target, and the command and date of each."""
    results = json.loads((HERE / "results.json").read_text())
    head = ["target", "what is changed", "real inputs", "executions", "accepted", "refused in words", "edges"]
    head += ["kept by coverage", "defects now", "inputs of defects"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for name, what in WHAT.items():
        counts = results[name]
        kept = len(list((HERE / "found" / name).glob("*")))
        numbers = [counts[key] for key in ("seeds", "executions", "accepted", "refused", "edges", "corpus", "defects")]
        cells = [name, what, *(f"{number:,}" for number in numbers), f"{kept:,}"]
        lines.append("| " + " | ".join(cells) + " |")
    commands = sorted({(facts["date"], facts["command"].replace(name, "TARGET")) for name, facts in results.items()})
    lines += ["", *(f"{date}: `{command}`" for date, command in commands)]
    files = [f"{n} ({', '.join(names)})" for n, names in by_value(results, "collections").items()]
    lines += ["", f"atheris {', '.join(by_value(results, 'atheris'))}. Collections whose real files were there:"]
    lines += [f"{'; '.join(files)}."]
    return "\n".join(lines) + "\n"


def by_value(results, key):
    """The targets of each value of a fact."""
    found = {}
    for name in WHAT:
        found.setdefault(results[name][key], []).append(name)
    return dict(sorted(found.items()))


def page():
    """The page with the table of now in its place."""
    before, _, rest = PAGE.read_text().partition(START)
    return before + START + table() + END + rest.partition(END)[2]


def renew():
    """Write the page."""
    PAGE.write_text(page())


if __name__ == "__main__":
    renew()
