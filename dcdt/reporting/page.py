"""The self-contained HTML page of a report: tables, tests, figures, queries, failures, cost and runs."""

import os
import re
from dataclasses import replace
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import quote

from dcdt.reporting.cells import Number
from dcdt.reporting.disagreements import Disagreement, disagreements
from dcdt.reporting.figures import make_figures, score_panels, svg
from dcdt.reporting.render import interval_and_spread
from dcdt.reporting.table_types import Cell, Row, Table, metric_name
from dcdt.reporting.tables import Report
from dcdt.reporting.variants import Variant
from dcdt.utils.text import pluralize

FIGURES = {
    "loss": "Training loss, mean over the folds and seeds still training, with one standard deviation either way, "
    "and the mean validation loss (dash-dotted), if it was logged. It can step where some runs stop early, and ends "
    "where half of them have.",
    "differences": "Difference to {against} in {metric} with its 95 % interval by units. Shaded: the "
    "margin of non-inferiority.",
    "scores": "Scores of the test pairs. Every model has its own scale, so scores are given in standard deviations "
    "from the mean of the run's own test pairs; what lies beyond four is counted in the last bar.",
    "learning": "Difference to {against} in {metric} by the number of training queries, with 95 % intervals by "
    "units. Shaded: the margin of non-inferiority.",
}


def page(report: Report, out: Path, pair: tuple[Variant, Variant] | None) -> str:
    """Render the page.

    Args:
        report: tables and numbers.
        out: the folder it will be written to, from which runs are linked.
        pair: the two models whose queries are compared; None if there is only one.
    """
    main, tests, *others = report.tables if report.comparisons else [report.tables[0], None, *report.tables[1:]]
    assert main is not None
    sections = {
        "Comparison": "".join(map(_table, _ranking_and_rest(main))),
        "Tests": _table(tests) if tests else "<p>One model alone: there is nothing to test.</p>",
        "Figures": _figures(report),
        "Breakdowns": "".join(f"<h3>{escape(table.title)}</h3>{_table(table)}" for table in others if table),
        "Where two models differ most": _queries(*pair, report.metric) if pair else "",
        "Jobs without a result": _table(report.failures) if report.failures.rows else "",
        "What was compared": _metadata_list(report),
        "Cost": _table(report.cost),
        "Runs": _runs(report, out),
    }
    sections = {title: body for title, body in sections.items() if body}
    return Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{report.metadata['collection']}: {pluralize(len(report.variants), 'model')} compared"),
        lead=_lead(report),
        nav="".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in sections),
        sections="\n".join(
            f'<section aria-labelledby="{_anchor(title)}"><h2 id="{_anchor(title)}">{title}</h2>\n{body}</section>'
            for title, body in sections.items()
        ),
    )


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _lead(report: Report) -> str:
    """Summarise the result in a sentence or two."""
    cell = next(row.cells[report.metric] for row in report.tables[0].rows if row.name == report.best.label)
    assert isinstance(cell, Number)
    name = metric_name(report.metric)
    value = " ".join(_cell_texts(cell)[:2])
    text = f"<strong>{escape(report.best.label)}</strong> has the highest {name}, {escape(value)}."
    if report.reference is None:
        return f"{text} No zero_shot run is among them."
    verdicts: dict[str, list[str]] = {}
    for comparison in report.comparisons:
        if comparison.reference == report.reference.label:
            verdicts.setdefault(comparison.verdict, []).append(comparison.model)
    clauses = []
    for verdict, models in sorted(verdicts.items()):
        is_short = len(models) < 4 and not any("," in model for model in models)
        clauses.append(f"{verdict}: {escape(', '.join(models)) if is_short else pluralize(len(models), 'model')}")
    return f"{text} Against {escape(report.reference.label)}, {'; '.join(clauses)}." if clauses else text


def _metadata_list(report: Report) -> str:
    runs = [run for variant in report.variants for run in variant.runs]
    metadata = dict(report.metadata)
    commits = {(str(run.provenance.get("commit"))[:10], bool(run.provenance.get("dirty"))) for run in runs}
    code_versions = sorted(commit + (" with changes" if dirty else "") for commit, dirty in commits if commit != "None")
    if code_versions:
        metadata["code"] = ", ".join(code_versions)
    metadata["embeddings"] = str(runs[0].provenance.get("embeddings", ""))
    items = (f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in metadata.items())
    return f"<dl>{''.join(items)}</dl>"


def _ranking_and_rest(table: Table) -> list[Table]:
    """Divide the main table, which is too wide for a page: ranking metrics; those of pairs, and what was reported."""
    rest = {key: name for key, name in table.columns.items() if key.startswith(("pair_", "reported_"))}
    first = {key: name for key, name in table.columns.items() if key not in rest}
    pairs = replace(table, title=f"{table.title}: pairs", columns=rest)
    return [replace(table, columns=first, caption="", notes=[]), pairs] if rest else [table]


def _table(table: Table) -> str:
    heads = "".join(
        f'<th scope="col" class="{_class(table, key)}">{escape(heading)}</th>' for key, heading in table.columns.items()
    )
    rows = "".join(_row(table, row) for row in table.rows)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table>'
        f'<thead><tr><th scope="col">{escape(table.stub)}</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        + (f'<p class="caption">{escape(table.caption)}</p>' if table.caption else "")
        + (f'<ul class="caption">{notes}</ul>' if notes else "")
    )


def _row(table: Table, row: Row) -> str:
    """Render a row; its note is below its name, or replaces the cells if it has no result."""
    model, *choices = (re.sub(r"([_,=])", r"\1<wbr>", escape(piece)) for piece in row.name.split(", "))
    name = model + "".join(f"<span>{choice}</span>" for choice in choices)
    cells = [_cell(table, key, row.cells.get(key, "")) for key in table.columns]
    if row.without_result:
        width = len(table.measured)
        note = f'<td class="none" colspan="{width}"><span>{escape(row.note)}</span></td>'
        return f'<tr><th scope="row">{name}</th>{note}{"".join(cells[width:])}</tr>'
    note = f"<small>{escape(row.note)}</small>" if row.note else ""
    return f'<tr><th scope="row">{name}{note}</th>{"".join(cells)}</tr>'


def _cell(table: Table, key: str, cell: Cell) -> str:
    style = _class(table, key)
    if not isinstance(cell, Number):
        text = escape(cell)
        if key == "verdict":
            text = f'<span class="verdict {text.split()[0] if text else ""}">{text}</span>'
        return f'<td class="{style}">{text}</td>'
    value, *rest = _cell_texts(cell)
    small = f"<small>{'<br>'.join(escape(extra) for extra in rest)}</small>" if rest else ""
    return f'<td class="{style}{" best" if cell.best else ""}"><b>{escape(value)}</b>{small}</td>'


def _cell_texts(cell: Number) -> list[str]:
    return [piece.replace("-", "\N{MINUS SIGN}") for piece in (cell.text(), *interval_and_spread(cell))]


def _class(table: Table, key: str) -> str:
    if key == "reason":
        return "note"
    numeric = key in ("n", "units") or any(isinstance(row.cells.get(key), Number) for row in table.rows)
    classes = ["num"] if numeric else []
    classes += ["reported"] if key.startswith("reported_") else []
    classes += ["long"] if len(table.columns.get(key, "")) > 24 else []
    return " ".join(classes)


def _figures(report: Report) -> str:
    against = (report.reference or report.best).label
    captions = {name: text.format(against=against, metric=metric_name(report.metric)) for name, text in FIGURES.items()}
    titles = {"loss": "Loss", "differences": f"Differences to {against}", "learning": "Learning curves"}
    sections = []
    for name, figure in make_figures(report).items():
        if name in titles:
            drawing = svg(figure, name, escape(captions[name]))
            caption = f"<figcaption>{escape(captions[name])}</figcaption>"
            sections.append(f'<h3>{escape(titles[name])}</h3><figure class="single">{drawing}{caption}</figure>')
    panels = [
        f"<figure>{svg(figure, f'scores-{i}', escape(f'Scores of {label}'))}</figure>"
        for i, (label, figure) in enumerate(score_panels(report).items())
    ]
    if panels:
        caption = f'<p class="caption">{escape(captions["scores"])}</p>'
        sections.append(f'<h3>Matching scores</h3><div class="panels">{"".join(panels)}</div>{caption}')
    if not any(run.history for variant in report.variants for run in variant.runs):
        sections.append('<p class="caption">No loss curves: nothing was trained, or the runs had logger=none.</p>')
    return "".join(sections)


def _queries(one: Variant, other: Variant, metric: str) -> str:
    results, note = disagreements(one, other, metric)
    intro = (
        f"The test queries whose {metric_name(metric)} differs most between {one.label} and {other.label}, with the "
        "first five videos of each (of its first run that tested the query); a tick marks a positive."
    )
    if not results:
        intro = f"{one.label} and {other.label} score the same on every query."
    items = "".join(_query(item, (one.label, other.label), metric) for item in results)
    return f"<p>{escape(intro)} {escape(note)}</p>" + (f'<ol class="queries">{items}</ol>' if items else "")


def _query(item: Disagreement, labels: tuple[str, str], metric: str) -> str:
    details = ", ".join(detail for detail in (item.kind, item.warm) if detail)
    sides = []
    for label, value, top in zip(labels, item.values, item.tops, strict=True):
        videos = "".join(f"<li{' class=hit' if hit else ''}>{escape(title)}</li>" for title, hit in top)
        head = f"<h4><span>{escape(label)}</span><span>{metric_name(metric)} {value:.3f}</span></h4>"
        sides.append(f"<div>{head}<ol>{videos}</ol></div>")
    return (
        f'<li><h3>{escape(item.query)}</h3><p class="about">{escape(details)}</p>'
        f'<div class="sides">{"".join(sides)}</div></li>'
    )


def _runs(report: Report, out: Path) -> str:
    sections = []
    for variant in report.variants:
        runs = sorted(
            (*variant.runs, *variant.missing, *variant.retried), key=lambda run: (run.fold, run.seed, str(run.folder))
        )
        links = "".join(
            f'<li><a href="{escape(_link(run.folder, out))}">fold {run.fold}, seed {run.seed}</a>'
            f"{'' if run in variant.runs else f' ({run.status})'}</li>"
            for run in runs
        )
        title = f"{escape(variant.label)}: {pluralize(len(runs), 'run')}"
        sections.append(f'<details><summary>{title}</summary><ul class="runs">{links}</ul></details>')
    return "".join(sections)


def _link(folder: Path, out: Path) -> str:
    """Return the relative address of a run's folder; an absolute one on another drive."""
    try:
        return quote(Path(os.path.relpath(folder.resolve(), out.resolve())).as_posix()) + "/"
    except ValueError:
        return folder.resolve().as_uri() + "/"
