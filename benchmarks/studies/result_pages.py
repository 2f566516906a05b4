"""Fill the tables of docs/results from the reports that results.sh wrote, so that no figure is copied by hand.

    python benchmarks/studies/result_pages.py $DCDT_OUTPUTS/tables [PAGE ...] [--date DATE]

A page says what stands where in comments that stay; everything up to the next `<!-- end -->` is replaced:

    <!-- report khan_math -->                  all of table.md and cost.md
    <!-- table ablation_loss main tests -->    these tables of table.md, a level lower
    <!-- file paper_stopping validation.md --> a file of the report, as it is
    <!-- scores towers_khan_math mrr ndcg@10 recall@5 -->
    <!-- tests towers_khan_math [ROW] -->      every paired test, or those of one row
    <!-- pairs two_stage_khan_math ... -->    the tests of several reports in one table
    <!-- curve curve_khan_math -->             differences to zero_shot by number of training queries
    <!-- verdicts khan_math ... -->            tests whose verdict by queries was another one
    <!-- collections linear_algebra ... -->    MRR of each model, a column for each report

README.md at the top is a page too. A table whose report is not there stays as it is, and is named at the end. Reports
are read by their table.json; the commits of their runs stand in commits.txt.
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PART = re.compile(r"(<!-- (\w+) ([^>]*?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
MEASURED = re.compile(r"^<!-- measured -->.*$", re.MULTILINE)
METRICS = {"mrr": "MRR", "ndcg@10": "nDCG@10"}

Report = dict[str, Any]  # table.json
Rows = list[list[str]]


def rows_of(report: Report, table: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and cells of each row of a table; none where the report has no such table."""
    named = [one for one in report["tables"] if one["name"] == table]
    return [(row["name"], row["cells"]) for one in named for row in one["rows"]]


def interval(cell: dict[str, float], signed: bool = False) -> str:
    """A value with its interval, to three places."""
    value, low, high = (f"{cell[key]:{'+' if signed else ''}.3f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def probability(cell: dict[str, float]) -> str:
    """A p-value as the reports print it."""
    return "< 0.0001" if cell["value"] < 0.0001 else f"{cell['value']:.4f}"


def grid(head: list[str], rows: Rows) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n"


def caption(report: Report) -> str:
    """Queries, units, their design effect and the detectable difference, as the report's own caption has them."""
    facts = report["facts"]
    detectable = facts.get("smallest detectable difference")
    return (
        f"{facts['queries']}, {facts['videos']}; {facts['folds']} x {facts['seeds']}. Units: {facts['units']}."
        + (f" Smallest detectable difference: {detectable}." if detectable else "")
        + "\n\n"
    )


def scores(report: Report, metrics: list[str]) -> str:
    """The cells of those of the metrics that the report has, without deviations."""
    titles = next(one["columns"] for one in report["tables"] if one["name"] == "main")
    known = [metric for metric in metrics if metric in titles]
    main = [(name, cells) for name, cells in rows_of(report, "main") if cells.keys() >= {*known}]  # without failed jobs
    rows = [[name, *(interval(cells[metric]) for metric in known)] for name, cells in main]
    return grid(["model", *(titles[metric] for metric in known)], rows) + caption(report)


def tests(report: Report, only: list[str]) -> str:
    """The paired tests, with the differences on warm, cold and mixed queries where there are 30."""
    titles = next(one["columns"] for one in report["tables"] if one["name"] == "tests")
    parts = [key for key in ("warm", "cold", "mixed") if key in titles]
    rows = [
        [
            *(name, cells["against"], interval(cells["difference"], True)),
            *(interval(cells[key], True) if key in cells else "" for key in parts),
            *(probability(cells["p"]), cells["verdict"]),
        ]
        for name, cells in rows_of(report, "tests")
        if not only or name in only
    ]
    head = ["model", "against", titles["difference"].replace("Difference", "difference")]
    head += [titles[key].removeprefix("Difference in ") for key in parts]
    return grid([*head, "p (Holm)", "verdict"], rows)


def curve(report: Report, _: list[str]) -> str:
    """Differences to the untrained cosine; a row for each number of training queries, a column for each model."""
    points: dict[tuple[str, float], str] = {}
    for name, cells in rows_of(report, "tests"):
        number = re.search(r"train_queries=(\w+)", name)
        if cells["against"] == report["zero_shot"] and number:
            size = float("inf") if number[1] == "null" else float(number[1])
            points[name.split(",")[0], size] = interval(cells["difference"], True)
    models = sorted({name for name, _ in points})
    sizes = sorted({size for _, size in points})
    rows = [[f"{size:g}".replace("inf", "all"), *(points.get((name, size), "") for name in models)] for size in sizes]
    return grid(["training queries", *models], rows) + caption(report)


def verdicts(reports: dict[str, Report], earlier: Sequence[str] = ()) -> str:
    """Tests whose verdict is another one than with queries as units, below lines of reports that are not here."""
    rows = [
        [
            *(name, METRICS.get(report["primary_metric"], report["primary_metric"]), row, cells["against"]),
            *(interval(cells["difference"], True), cells["verdict_by_query"], cells["verdict"]),
        ]
        for name, report in reports.items()
        for row, cells in rows_of(report, "tests")
        if cells["verdict"] != cells["verdict_by_query"]
    ]
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in earlier] + rows
    head = ["report", "metric", "model", "against", "difference, by units", "verdict by queries", "verdict by units"]
    return grid(head, rows) if rows else "\nNone.\n\n"


def pairs(reports: dict[str, Report]) -> str:
    """Tests of reports of two models each, in one table: the model that a report is named after against the other."""
    rows = []
    for name, report in reports.items():
        for model, cells in rows_of(report, "tests"):
            gap, other = cells["difference"], cells["against"]
            if max(model, other, key=lambda one: name.startswith(one) and len(one)) == other:
                model, other = other, model
                gap = {"value": -gap["value"], "low": -gap["high"], "high": -gap["low"]}
            metric = METRICS[report["primary_metric"]]
            numbers = [f"{cells['n']} in {cells['units']}", f"{cells['detectable_difference']['value']:.3f}"]
            line = [name.removesuffix("-ndcg"), metric, other, interval(gap, True), probability(cells["p"])]
            rows.append(line + numbers)
    head = ["report", "metric", "against", "difference", "p", "queries in units", "detectable"]
    return grid(head, rows)


def collections(reports: dict[str, Report], names: Sequence[str], before: str) -> str:
    """MRR of every model, a column for each name: of its report, or as it stood where that is not here."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in before.splitlines() if line[:1] == "|"]
    titles, cells = lines[0] if lines else [], dict[str, dict[str, str]]()
    columns = []
    for name in names:
        short, stood = name.removeprefix("towers_"), dict[str, str]()
        title = next((one for one in titles if one.startswith(f"{short} (")), f"{short} (not run)")
        if name in reports:
            title = f"{short} ({reports[name]['facts']['queries'].split()[0]})"
            main = rows_of(reports[name], "main")
            stood = {model: interval(values["mrr"]) for model, values in main if "mrr" in values}
        elif title in titles:
            stood = {line[0]: line[titles.index(title)] for line in lines[2:]}
        columns.append(title)
        for model, cell in stood.items():
            cells.setdefault(model, {})[title] = cell
    return grid(["MRR", *columns], [[model, *(of.get(title, "") for title in columns)] for model, of in cells.items()])


def parts(folder: Path, report: Report, names: list[str]) -> str:
    """Tables of table.md, chosen by name, without the title of the first and with all headings a level lower."""
    text = (folder / "table.md").read_text(encoding="utf-8")
    sections = {title.split("\n", 1)[0]: title for title in re.split(r"^## ", text, flags=re.MULTILINE) if title}
    titles = [one["title"].replace("_", r"\_") for name in names for one in report["tables"] if one["name"] == name]
    first, *others = (sections[title] for title in titles)
    return "\n".join([first.split("\n", 1)[1], *(f"### {other}" for other in others)]).rstrip() + "\n\n"


FORMS: dict[str, Callable[[Report, list[str]], str]] = {"scores": scores, "tests": tests, "curve": curve}
TOGETHER = ("verdicts", "collections", "pairs")  # tables of several reports


def filled(text: str, tables: Path, missing: set[str], used: set[str]) -> str:
    """A page with every table anew whose report is there; adds to the names of reports that are missing and used."""

    def replace(found: re.Match[str]) -> str:
        head, form, arguments, before, end = found.groups()
        name, *rest = arguments.split()
        names = arguments.split() if form in TOGETHER else [name]
        absent = {one for one in names if not (tables / one / "table.json").is_file()}
        missing.update(absent)
        used.update(set(names) - absent)
        if absent and (form not in TOGETHER or len(absent) == len(names)):
            return found[0]
        reports = {
            one: json.loads((tables / one / "table.json").read_text(encoding="utf-8"))
            for one in names
            if one not in absent
        }
        if form == "verdicts":
            earlier = [line for line in before.splitlines() if line[2:].split(" |")[0] in absent]
            return head + verdicts(reports, earlier) + end
        if form == "collections":
            return head + collections(reports, names, before) + end
        if form == "pairs":
            return head + pairs(reports) + end
        if form == "report":
            texts = [(tables / name / file).read_text(encoding="utf-8").rstrip() for file in ("table.md", "cost.md")]
            return head + "\n" + "\n\n".join(texts) + "\n\n" + end
        if form == "file":
            return head + "\n" + (tables / name / rest[0]).read_text(encoding="utf-8").strip() + "\n\n" + end
        if form == "table":
            return head + parts(tables / name, reports[name], rest) + end
        return head + FORMS[form](reports[name], rest) + end

    return PART.sub(replace, text)


def main() -> None:
    """Fill the named pages, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path)
    parser.add_argument("pages", nargs="*")
    parser.add_argument("--date", default=str(date.today()), help="when the runs were made")
    given = parser.parse_args()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs" / "results").glob("*.md"))):
        before, missing, used = path.read_text(encoding="utf-8"), set[str](), set[str]()
        skipped = given.pages and path.stem not in given.pages
        after = before if skipped else filled(before, given.tables, missing, used)
        if after != before:
            commits = {line for name in used for line in (given.tables / name / "commits.txt").read_text().split()}
            line = (
                f"<!-- measured -->{given.date}, 2 CPU cores shared with other work, no GPU, one thread; "
                f"{'commit' if len(commits) == 1 else 'commits'} {', '.join(sorted(commits))}."
            )
            path.write_text(MEASURED.sub(line, after), encoding="utf-8")
            print(f"{path.name}: filled" + (f", but for {', '.join(sorted(missing))}" if missing else ""))


if __name__ == "__main__":
    main()
