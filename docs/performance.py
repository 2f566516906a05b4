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
    """The rows of a result file with its dates, machine and n; a sentence where it was not measured."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return f"Not measured: no `benchmarks/results/{name}.json`."
    found = json.loads(path.read_text(encoding="utf-8"))
    if name == "soak":
        return soak(found)
    lines = ["| question | value | against | ratio | target | |", "|---|---|---|---|---|---|"]
    for row in found["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:g}"
        cells = [row["question"], f"{row['value']:g} {row['unit']}".strip(), row["against"], ratio, row["target"]]
        lines.append("| " + " | ".join([*cells, VERDICT[row["holds"]]]) + " |")
    dates = sorted({row.get("date", found["date"]) for row in found["rows"]})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    size = f"n = {found['n']:,}" if "n" in found else "sizes as in the rows"
    return "\n".join([*lines, "", f"{when}, {found['machine']}, {size}."])


def soak(found: dict) -> str:
    """What a server bore, in sentences."""
    waits, held = found["seconds_until_found"], found["server_mb"]
    lost = [
        len(found[key]) for key in ("failed_searches", "videos_lost", "videos_too_many", "changes_not_found_in_30_s")
    ]
    return "\n".join(
        [
            f"In {found['minutes']:g} minutes: {found['searches']:,} searches, {lost[0]} of them failed; "
            f"{found['changes']:,} additions, edits and deletions ({found['date']}).",
            f"Videos lost: {lost[1]}; videos too many: {lost[2]}; edits not found within 30 s: {lost[3]}.",
            f"An edit was found after {waits['p50']:.2f} s (median) and {waits['worst']:.1f} s (the longest wait).",
            f"The server's memory went from {held['first']:.0f} to {held['last']:.0f} MB, at most {held['most']:.0f};",
            f"in the second half it grew by {found['server_mb_per_minute_second_half']:.1f} MB a minute.",
        ]
    )


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
