"""Write the tables of docs/performance.md from benchmarks/results: `python docs/performance.py`.

What stands between the page's markers is made from the result files; a test says when it is out of date.
"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "benchmarks" / "results"
VERDICT = {True: "met", False: "**not met**", None: ""}


def table(name: str) -> str:
    """The rows of a result file with its date, machine and n; a sentence where it was not measured."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return f"Not measured: no `benchmarks/results/{name}.json`."
    found = json.loads(path.read_text(encoding="utf-8"))
    lines = ["| question | value | against | ratio | target | |", "|---|---|---|---|---|---|"]
    for row in found["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:g}"
        cells = [row["question"], f"{row['value']:g} {row['unit']}".strip(), row["against"], ratio, row["target"]]
        lines.append("| " + " | ".join([*cells, VERDICT[row["holds"]]]) + " |")
    return "\n".join([*lines, "", f"{found['date']}, {found['machine']}, n = {found['n']:,}."])


def page(text: str) -> str:
    """The page with every table as the results are now."""
    return re.sub(
        r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{table(match[2])}\n\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
