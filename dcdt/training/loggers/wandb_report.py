"""A report on W&B: one run with its tables, tests and figures, and a run for each row, which a workspace sorts."""

import csv
import io
import logging
import shlex
from pathlib import Path
from typing import Any

import wandb

from dcdt.reporting.cells import Number
from dcdt.reporting.render import csv_wide
from dcdt.reporting.table_types import Table
from dcdt.reporting.tables import Report
from dcdt.runs.folder import RunFiles, RunFolder
from dcdt.runs.reader import Run
from dcdt.training.loggers.wandb_key import mode_of, offline_subject
from dcdt.training.loggers.wandb_lineage import log_lineage, results_artifact
from dcdt.training.loggers.wandb_run import start_run
from dcdt.training.loggers.wandb_workspace import Place
from dcdt.utils.files import read_json, refuse_outside_links

log = logging.getLogger("dcdt")
RUN_KEYS = ("outputs", "logger", "callbacks", "resume", "sweep", "seed")  # configuration of a run alone, not of its row


def log_report(report: Report, folder: Path, figures: dict[str, Path]) -> Place | None:
    """Send a report to the group of the sweep's runs, into their directory: a run `report`, and one for each row.

    A report that is made again is another run: nothing can be added to one that is closed or offline.

    Args:
        report: the tables of the runs.
        folder: the sweep's folder (or a run's).
        figures: PNG files by name; those that do not exist are left out.

    Returns:
        Where the runs are on W&B; None if they stay offline.

    Raises:
        UserError: W&B refuses.
    """
    refuse_outside_links(folder / "wandb", folder, deep=False)  # wandb itself links its debug logs
    runs = [run for variant in report.variants for run in variant.runs]
    logger, group = report.best.runs[0].config["logger"], folder.resolve().name
    common = {"project": logger.get("project") or "dcdt", "entity": logger.get("entity"), "group": group}
    values = row_values(report)
    tables = {f"tables/{table.name}": table for table in (*report.tables, report.failures, report.cost) if table.rows}
    images = {f"figures/{name}": wandb.Image(str(path)) for name, path in figures.items() if path.is_file()}
    summary = {f"{label}/{key}": value for label, row in values.items() for key, value in row.items()}
    summarised = [report.metric, "difference", "p"]
    summary = {key: value for key, value in summary.items() if _stem(key) in summarised} | {"best": report.best.label}
    mode, sent, entity = mode_of_report(runs), dict[str, str](), str(common["entity"] or "")
    for variant in (variant for variant in report.variants if variant.runs):
        config = {key: value for key, value in variant.runs[0].config.items() if key not in RUN_KEYS}
        config["split"] = {key: value for key, value in config["split"].items() if key != "index"}
        name = read_json(RunFiles(variant.runs[0].folder).wandb).get("variant", variant.label)  # as its folds have it
        config |= {"variant": name, "folds": variant.folds, "primary_metric": report.metric}
        run_options = {"name": variant.label, "job_type": "variant", "config": config}
        run, mode = _send(folder, mode, {}, values[variant.label], [], **run_options, **common)
        sent[variant.label], entity = run.id, run.entity
    logged = [RunFolder(run.folder) for run in runs if run.config["logger"].get("artifacts")]
    _, mode = _send(  # last, so that the newest run is the report
        folder,
        mode,
        {name: _table(table) for name, table in tables.items()} | images,
        summary,
        [results_artifact(run) for run in logged if run.files.wandb.is_file()],
        name=f"report_{group}",
        job_type="report",
        notes="\n".join([report.tables[0].caption, *report.tables[0].notes]),
        config={"facts": report.metadata, "primary_metric": report.metric},
        **common,
    )
    if mode == "offline":
        files, subject = shlex.quote(str(folder / "wandb")), offline_subject("the report", logger.get("mode"))
        log.warning(
            "W&B: %s stays offline. Browse: wandb leet %s   Send: wandb sync %s/offline-run-*", subject, files, files
        )
        return None
    return Place(entity, common["project"], group, sent)


def row_values(report: Report) -> dict[str, dict[str, Any]]:
    """Mean, interval and number of queries of each row, and its difference to zero_shot (else the best) with its p."""
    against = (report.reference or report.best).label
    rows = {}
    for row in report.tables[0].rows:
        values: dict[str, Any] = {"n": int(str(row.cells["n"]))} if "n" in row.cells else {}
        for key, cell in row.cells.items():
            if isinstance(cell, Number) and not key.startswith("reported_"):
                values |= _ends(key, cell)
        for one in report.comparisons:
            if (one.model, one.reference) == (row.name, against):
                values |= _ends("difference", one.difference)
                values |= {"p": one.adjusted, "verdict": one.verdict, "against": against}
        rows[row.name] = values
    return rows


def _ends(key: str, cell: Number) -> dict[str, float]:
    ends = {key: cell.value, f"{key}_low": cell.low, f"{key}_high": cell.high}
    return {name: value for name, value in ends.items() if value == value}


def _stem(key: str) -> str:
    return key.rpartition("/")[2].removesuffix("_low").removesuffix("_high")


def mode_of_report(runs: list[Run]) -> Any:  # noqa: ANN401 - wandb's literal
    """The mode of a report: offline where a run is, so that both are in one folder; else as for a new run."""
    modes = {run.config["logger"].get("mode") for run in runs}
    modes |= {read_json(RunFiles(run.folder).wandb).get("mode") for run in runs}
    return "offline" if "offline" in modes else mode_of("auto")


def _send(
    folder: Path,
    mode: Any,  # noqa: ANN401 - wandb's literal
    media: dict[str, Any],
    summary: dict[str, Any],
    reads: list[wandb.Artifact],
    **init_options: Any,  # noqa: ANN401 - wandb's
) -> tuple[wandb.Run, Any]:
    """Log one run from start to end; returns it, closed, and its mode."""
    run, mode = start_run(folder, mode, False, console=False, machine=False, **init_options)
    try:
        if media:
            run.log(media)
        run.summary.update(summary)
        log_lineage(run, reads, [])
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish(exit_code=0)
    return run, mode


def _table(table: Table) -> wandb.Table:
    """A table with a column for each value and for the ends of its interval, as in the CSV file."""
    head, *rows = csv.reader(io.StringIO(csv_wide(table)))
    columns = [_numbers([row[i] for row in rows]) for i in range(len(head))]
    return wandb.Table(list(head), [list(row) for row in zip(*columns, strict=True)])


def _numbers(texts: list[str]) -> list[Any]:
    """A column of numbers where every text in it is one, else of texts; empty ones are missing."""
    try:
        return [float(text) if text else None for text in texts]
    except ValueError:
        return [text or None for text in texts]
