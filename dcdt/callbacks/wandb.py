"""Weights & Biases: one run a job, closed on every path, mirrored from what the run's folder holds."""

import csv
import io
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import wandb
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dcdt.callbacks.history import History
from dcdt.callbacks.logger import RunLogger
from dcdt.callbacks.samples import COLUMNS, sample_table, score_spread
from dcdt.callbacks.wandb_key import mode_of, named
from dcdt.callbacks.wandb_media import figures_of, write_vectors
from dcdt.config import LoggerConfig, typed
from dcdt.errors import UserError
from dcdt.files import read_json, write_json
from dcdt.models.recommender import Recommender
from dcdt.outcome import Outcome
from dcdt.redact import redacted_values
from dcdt.reporting.render import csv_wide
from dcdt.reporting.structure import Table
from dcdt.reporting.tables import Report
from dcdt.sweep import differing

log = logging.getLogger("dcdt")
ANSWER_SECONDS = 30  # W&B is waited for at the start of a run


class WandbRun(RunLogger):
    """A W&B run beside the run's folder; jobs of a sweep share one directory and one group.

    The run's id stands in `wandb.json` of the folder, and the folder in the run's configuration.

    Args:
        config: as composed; its resolved form becomes the run's configuration.
        folder: the run's folder.
        overrides: the choices of this job of a sweep; None for a single run.

    Raises:
        UserError: a setting of the logger is wrong.
    """

    def __init__(self, config: DictConfig, folder: Path, overrides: Sequence[str] | None) -> None:
        self.chosen = typed(LoggerConfig, config.logger, "logger")
        self.config, self.folder, self.overrides = config, folder, overrides
        self.simulated: list[str] = []
        self.run: wandb.Run | None = None
        self.tried = self.again = False

    def start(self, simulated: list[str], resuming: bool) -> None:
        """Open the run, or go on with that of an earlier attempt.

        Args:
            simulated: what is simulated in that on which the figures rest; a column of the results says so.
            resuming: whether the training goes on where an earlier process left it.

        Raises:
            UserError: logger.mode=online without a key.
        """
        self.tried, self.simulated = True, simulated
        mode, config, known = mode_of(self.chosen.mode), self.config, self.folder / "wandb.json"
        identity = read_json(known).get("id") if resuming else None
        self.again = resuming and mode == "offline"  # another file of the same run: what came before is sent again
        first = not (self.folder.parent / "wandb").exists()
        sweep = self.folder.parent.name if self.overrides is not None else None
        name = ", ".join(differing(self.overrides or [], self.folder.parent))
        run, mode = _start(
            self.folder.parent,
            mode,
            self.chosen.mode == "online",
            id=identity,
            resume="allow" if identity and mode == "online" else None,
            project=self.chosen.project,
            entity=self.chosen.entity,
            name=name or self.folder.name,
            group=sweep,
            job_type=OmegaConf.select(config, "model.name"),
            tags=[tag for tag in (config.get("experiment_name"), Path(config.data.path).name) if tag],
            config={
                **redacted_values(OmegaConf.to_container(config, resolve=True)),
                "folder": str(self.folder.resolve()),
            },
        )
        self.run = run
        files = Path(run.dir).parent
        write_json(known, {"id": run.id, "name": run.name, "project": run.project, "mode": mode, "files": str(files)})
        run.define_metric("epoch", hidden=True)
        for part in ("train/*", "val/*"):  # the summary is that of the best epoch, written at the end
            run.define_metric(part, step_metric="epoch", summary="none")
        run.define_metric(config.primary_metric, step_metric="epoch", summary="max")
        if mode == "offline" and (sweep is None or first):
            place = self.folder.parent / "wandb"
            log.warning(
                "W&B: %s stays offline. Browse: wandb leet %s   Send: wandb sync %s", named("this run"), place, files
            )

    def callbacks(self, history: History) -> list[L.Callback]:
        """Sends each epoch as it ends."""
        return [Mirror(self, history)]

    def curves(self, history: list[dict[str, float]]) -> None:
        """Send the history of the chosen trial, one step an epoch."""
        assert self.run is not None
        for row in history:
            self.run.log(row, step=int(row["epoch"]))

    def finish(self, outcome: Outcome) -> None:
        """Send the final tables and figures, the best epoch's values and the test metrics, once."""
        assert self.run is not None
        label, metrics, data = [", ".join(self.simulated)] if self.simulated else [], outcome.metrics, outcome.data
        rows = [
            [name, value, metrics[f"zero_shot/{name}"], *label]
            for name, value in metrics.items()
            if not name.startswith("zero_shot/") and f"zero_shot/{name}" in metrics
        ]
        columns: list[str | int] = ["metric", str(self.run.job_type), "zero_shot", *(["simulated"] if label else [])]
        shown: dict[str, Any] = {"results": wandb.Table(columns, rows)}
        scores, side = outcome.results["val"].scores, data.sides["val"]
        if scores is not None and self.chosen.samples:
            best = sample_table(side, scores, data.collection, self.chosen.samples)
            shown["samples/best"] = wandb.Table(list(COLUMNS), best)
        shown |= {f"figures/{name}": wandb.Image(figure) for name, figure in figures_of(outcome).items()}
        self.run.log(shown)
        row = next((row for row in outcome.history if row["epoch"] == outcome.epoch), {})
        self.run.summary.update({**row, **metrics, "best_epoch": outcome.epoch})
        if self.chosen.artifacts:
            self._send(outcome)

    def close(self, status: str) -> None:
        """Close the run with the exit code of its status; a job of a sweep that never opened one gets one now."""
        if not self.tried and self.overrides is not None and status != "done already":
            try:
                self.start([], resuming=False)
            except UserError:  # of the logger itself: it cannot be logged
                return
        if self.run is not None:
            self.run.summary["status"] = status
            self.run.finish(exit_code=0 if status in ("finished", "not_applicable") else 1)
            self.run = None

    def _send(self, outcome: Outcome) -> None:
        """The best checkpoint, and the vectors of the videos where the model has them, as artifacts."""
        assert self.run is not None
        best = wandb.Artifact(f"checkpoint-{self.run.id}", "checkpoint", metadata={"epoch": outcome.epoch})
        for file in ("checkpoints/best.ckpt", "config.yaml"):
            best.add_file(str(outcome.folder / file))
        self.run.log_artifact(best)
        if outcome.model.decoupled:
            with tempfile.TemporaryDirectory() as place:
                vectors = wandb.Artifact(f"videos-{self.run.id}", "embeddings")
                vectors.add_file(str(write_vectors(outcome, Path(place))))
                self.run.log_artifact(vectors)


class Mirror(L.Callback):
    """Sends each epoch's row of the history, with how the scores are spread and, now and then, sample queries.

    Args:
        to: the run.
        history: whose last row is that of this epoch.
    """

    def __init__(self, to: WandbRun, history: History) -> None:
        self.to, self.history = to, history
        self._scores: Tensor | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Send again what an earlier process sent to another file; look at gradients where asked to."""
        assert self.to.run is not None
        if self.to.again:
            self.to.curves(self.history.rows)
        if self.to.chosen.watch != "none":
            self.to.run.watch(module, log=cast(Any, self.to.chosen.watch), log_freq=self.to.chosen.watch_steps)

    def on_validation_end(self, trainer: L.Trainer, module: Recommender) -> None:  # type: ignore[override]
        """Keep the scores of the first queries until the epoch ends."""
        self._scores = module.first_scores

    def on_train_epoch_end(self, trainer: L.Trainer, module: Recommender) -> None:  # type: ignore[override]
        """Send everything of the epoch at once."""
        assert self.to.run is not None
        row: dict[str, Any] = dict(self.history.rows[-1])
        if self._scores is not None:
            data, chosen, epoch = module.data, self.to.chosen, trainer.current_epoch
            spread = score_spread(data.sides["val"], self._scores, data.collection.positive_grade)
            row |= {f"scores/{name}": wandb.Histogram(np_histogram=found) for name, found in spread.items()}
            if chosen.samples and chosen.samples_every and (epoch + 1) % chosen.samples_every == 0:
                rows = sample_table(data.sides["val"], self._scores, data.collection, chosen.samples)
                row["samples/val"] = wandb.Table(["epoch", *COLUMNS], [[epoch, *part] for part in rows])
        self.to.run.log(row, step=trainer.current_epoch)
        self._scores = None

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Look no more."""
        if self.to.run is not None and self.to.chosen.watch != "none":
            self.to.run.unwatch(module)


def log_report(report: Report, folder: Path, figures: dict[str, Path]) -> None:
    """One summary run (job type `report`) with the tables and figures, in the directory and group of the sweep's runs.

    Args:
        report: what was found.
        folder: the sweep's folder (or a run's).
        figures: PNG files by name; those that do not exist are left out.
    """
    logger = report.best.runs[0].config["logger"]
    mode = "offline" if logger.get("mode") == "offline" else mode_of("auto")  # as was chosen for the runs
    run, mode = _start(
        folder,
        mode,
        False,
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
        log.warning("W&B: %s stays offline. Send: wandb sync %s", named("the report"), Path(run.dir).parent)


def _start(folder: Path, mode: Any, insist: bool, **facts: Any) -> tuple[wandb.Run, Any]:  # noqa: ANN401 - wandb's
    """A quiet run with its files in `folder/wandb`, and its mode; one that is still open is closed first.

    Where W&B does not answer the run stays offline, unless the user insists.

    Raises:
        UserError: W&B does not answer, or refuses, and the user insists.
    """
    settings = wandb.Settings(silent=True, console="off", x_save_requirements=False, x_disable_stats=True)
    settings.init_timeout = settings.login_timeout = ANSWER_SECONDS
    try:
        found = wandb.init(dir=folder, mode=mode, save_code=False, reinit="finish_previous", settings=settings, **facts)
        return found, mode
    except wandb.errors.Error as error:
        reason = str(error).splitlines()[0]
        if insist or mode == "offline":
            raise UserError(f"W&B cannot be used ({reason}).\nChoose logger.mode=offline, or logger=csv.") from error
    log.warning("W&B cannot be used (%s): the run stays offline.", reason)
    return _start(folder, "offline", insist, **{**facts, "resume": None})


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
