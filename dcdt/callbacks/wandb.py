"""Weights & Biases: one run a job, closed on every path, mirrored from what the run's folder holds."""

import csv
import io
import logging
import netrc
import os
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import wandb
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from dcdt.config import Settings
from dcdt.errors import UserError
from dcdt.reporting.render import csv_wide
from dcdt.reporting.structure import Table
from dcdt.reporting.tables import Report
from dcdt.setup import RunLogger

log = logging.getLogger("dcdt")


class WandbRun(RunLogger):
    """Opens a W&B run beside the run's folder; jobs of a sweep share one directory and one group.

    Args:
        settings: the run's settings.
        config: the configuration as composed; its resolved form becomes the run's config.
        folder: the run's folder.
        simulated: what is simulated in that on which the figures rest; a column of the results says so.

    Raises:
        UserError: logger.mode=online without a key.
    """

    def __init__(self, settings: Settings, config: DictConfig, folder: Path, simulated: list[str]) -> None:
        chosen, self.simulated = settings.logger, simulated
        mode = _mode(chosen.mode)
        sweep = folder.parent if (folder.parent / "multirun.yaml").exists() else None  # which Hydra writes for a sweep
        first = not (folder.parent / "wandb").exists()
        self.run = _start(
            folder.parent,
            mode,
            project=chosen.project,
            entity=chosen.entity,
            name=folder.name,
            group=sweep.name if sweep else None,
            job_type=settings.model.name,
            tags=[tag for tag in (settings.experiment_name, Path(settings.data.path).name) if tag],
            config=cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)),
        )
        if mode == "offline" and (sweep is None or first):
            log.warning(
                "W&B: %s stays offline. Browse: wandb leet %s   Send: wandb sync %s",
                _named("this run"),
                folder.parent / "wandb",
                Path(self.run.dir).parent,
            )
        self.lightning = WandbLogger(experiment=self.run)

    def curves(self, history: list[dict[str, float]]) -> None:
        """Send the history of the chosen trial, one step an epoch."""
        for row in history:
            self.run.log(row, step=int(row["epoch"]))

    def finish(self, metrics: dict[str, float], figures: dict[str, Any]) -> None:
        """Log the final table, the figures and the summary, and close the run."""
        label = [", ".join(self.simulated)] if self.simulated else []
        rows = [
            [name, value, metrics[f"zero_shot/{name}"], *label]
            for name, value in metrics.items()
            if not name.startswith("zero_shot/") and f"zero_shot/{name}" in metrics
        ]
        images = {f"figures/{name}": wandb.Image(figure) for name, figure in figures.items()}
        columns: list[str | int] = ["metric", str(self.run.job_type), "zero_shot", *(["simulated"] if label else [])]
        self.run.log({"results": wandb.Table(columns, rows), **images})
        self.run.summary.update(metrics)
        self.run.finish(exit_code=0)

    def fail(self) -> None:
        """Close the run as failed."""
        self.run.finish(exit_code=1)


def log_report(report: Report, folder: Path, figures: dict[str, Path]) -> None:
    """One summary run (job type `report`) with the tables and figures, in the directory and group of the sweep's runs.

    Args:
        report: what was found.
        folder: the sweep's folder (or a run's).
        figures: PNG files by name; those that do not exist are left out.
    """
    logger = report.best.runs[0].config["logger"]
    mode = "offline" if logger.get("mode") == "offline" else _mode("auto")  # as was chosen for the runs
    run = _start(
        folder,
        mode,
        project=logger.get("project") or "dcdt",
        entity=logger.get("entity"),
        name=f"report_{folder.resolve().name}",
        group=folder.resolve().name,
        job_type="report",
        config={"facts": report.facts, "primary_metric": report.metric},
    )
    try:
        images = {f"figures/{name}": wandb.Image(str(path)) for name, path in figures.items() if path.is_file()}
        tables = {f"tables/{table.name}": _table(table) for table in (*report.tables, report.failures, report.cost)}
        run.log({**tables, **images})
        run.summary.update({"best": report.best.label})
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish(exit_code=0)
    if mode == "offline":
        log.warning("W&B: %s stays offline. Send: wandb sync %s", _named("the report"), Path(run.dir).parent)


def _start(folder: Path, mode: Any, **facts: Any) -> wandb.Run:  # noqa: ANN401 - as wandb.init takes them
    """A quiet run with its files in `folder/wandb`; one that is still open is closed first."""
    return wandb.init(
        dir=folder,
        mode=mode,
        save_code=False,
        reinit="finish_previous",
        settings=wandb.Settings(silent=True, console="off", x_save_requirements=False, x_disable_stats=True),
        **facts,
    )


def _named(what: str) -> str:
    """What stays offline, and why where nobody chose it."""
    return what if has_key() else f"no key configured, so {what}"


def _table(table: Table) -> wandb.Table:
    """A table with a column for each value and for the ends of its interval, as in the CSV file."""
    head, *rows = csv.reader(io.StringIO(csv_wide(table)))
    columns = [_numbers([row[at] for row in rows]) for at in range(len(head))]
    return wandb.Table(list(head), [list(row) for row in zip(*columns, strict=True)])


def _numbers(texts: list[str]) -> list[Any]:
    """A column of numbers where every text in it is one, else of texts; empty ones are missing."""
    try:
        return [float(text) if text else None for text in texts]
    except ValueError:
        return [text or None for text in texts]


def _mode(wanted: str) -> Any:  # noqa: ANN401 - wandb's literal
    """`online` where a key is configured, else `offline`; $WANDB_MODE is obeyed."""
    if wanted == "auto":
        return os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    if wanted == "online" and not has_key():
        raise UserError(
            "logger.mode=online: no W&B key is configured.\nRun `wandb login`, or choose logger.mode=offline."
        )
    return wanted


def has_key() -> bool:
    """Whether a W&B key is in the environment or in the netrc file, where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = os.environ.get("NETRC") or Path.home() / (".netrc" if os.name != "nt" else "_netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
