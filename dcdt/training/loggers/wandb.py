"""Weights & Biases: one run a job, closed on every path, mirrored from what the run's folder holds."""

import logging
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import wandb
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dcdt.config import model_option, validate
from dcdt.models.recommender import Recommender
from dcdt.runs.folder import RunFolder
from dcdt.runs.reader import first_line
from dcdt.runs.sweep import own_choices
from dcdt.training.callbacks.history import History
from dcdt.training.callbacks.samples import COLUMNS, sample_table, score_spread
from dcdt.training.config import LoggerConfig
from dcdt.training.loggers.base import RunLogger
from dcdt.training.loggers.wandb_key import mode_of, offline_subject
from dcdt.training.loggers.wandb_lineage import checkpoint_artifact, data_artifacts, log_lineage, results_artifact
from dcdt.training.loggers.wandb_media import figures_of
from dcdt.training.loggers.wandb_run import start_run
from dcdt.training.loggers.wandb_summary import summary_of, val_mrr_chart, variant_of
from dcdt.training.outcome import Outcome
from dcdt.utils.errors import UserError
from dcdt.utils.files import read_json, write_json

log = logging.getLogger("dcdt")


class WandbRun(RunLogger):
    """A W&B run beside the run's folder; jobs of a sweep share one directory and one group.

    `wandb.json` in the folder holds the run's id, and the run's configuration holds the folder.

    Args:
        config: as composed; its resolved form becomes the run's configuration.
        folder: of the run.
        overrides: the choices of this job of a sweep; None for a single run.

    Raises:
        UserError: a setting of the logger is wrong.
    """

    def __init__(self, config: DictConfig, folder: RunFolder, overrides: Sequence[str] | None) -> None:
        self.options = validate(LoggerConfig, config.logger, "logger")
        self.config, self.folder, self.overrides = config, folder, overrides
        self.option = model_option(OmegaConf.select(config, "model"))
        self.simulated: list[str] = []
        self.run: wandb.Run | None = None
        self.start_attempted = self.sends_history_again = False

    def start(self, simulated: list[str], resuming: bool) -> None:
        """Open the run on W&B, or resume that of an earlier attempt.

        Args:
            simulated: files of the collection that are simulated; a column of the results names them.
            resuming: whether the training resumes from the state of an earlier process.

        Raises:
            UserError: logger.mode=online without a key.
        """
        self.start_attempted, self.simulated = True, simulated
        mode, config, path = mode_of(self.options.mode), self.config, self.folder.path
        identity = read_json(self.folder.files.wandb).get("id") if resuming else None
        self.sends_history_again = resuming and mode == "offline"  # to another file of the same run
        is_first = not (path.parent / "wandb").exists()
        sweep = path.parent.name if self.overrides is not None else None
        own = own_choices(self.overrides or [], path.parent)
        run, mode = start_run(
            path.parent,
            mode,
            self.options.mode == "online",
            console=sweep is None,  # the jobs of a sweep may share a terminal
            machine=True,
            id=identity,
            resume="allow" if identity and mode == "online" else None,
            project=self.options.project,
            entity=self.options.entity,
            name=", ".join(own) or path.name,
            group=sweep,
            job_type=self.option,
            tags=[tag for tag in (config.get("experiment_name"), Path(config.data.path).name) if tag],
            config={
                **cast(dict[str, Any], OmegaConf.to_container(config, resolve=True)),
                "variant": variant_of(config, own),
                "fold": OmegaConf.select(config, "split.index"),
                "folder": str(path.resolve()),
            },
        )
        self.run = run
        files = Path(run.dir).parent
        wandb_run = {"id": run.id, "name": run.name, "project": run.project, "mode": mode, "files": str(files)}
        write_json(self.folder.files.wandb, {**wandb_run, "variant": run.config["variant"]})
        run.define_metric("epoch", hidden=True, summary="none")
        for name in ("train/*", "val/*", "scores/*", "lr"):  # the summary is that of the best epoch, made at the end
            run.define_metric(name, step_metric="epoch", summary="none")
        run.define_metric(config.primary_metric, step_metric="epoch", summary="max")
        if mode == "offline" and (sweep is None or is_first):
            wandb_folder = shlex.quote(str(path.parent / "wandb"))
            subject = offline_subject("this run" if sweep is None else "this sweep", self.options.mode)
            unsent = shlex.quote(str(files)) if sweep is None else f"{wandb_folder}/offline-run-*"
            log.warning(
                "W&B: %s stays offline. Browse: wandb leet %s   Send: wandb sync %s", subject, wandb_folder, unsent
            )

    def callbacks(self, history: History) -> list[L.Callback]:
        """A callback that logs each epoch as it ends."""
        return [EpochLogger(self, history)]

    def curves(self, history: list[dict[str, float]]) -> None:
        """Log the history of a whole training, one step an epoch."""
        assert self.run is not None
        for row in history:
            self.run.log(row, step=int(row["epoch"]))

    def finish(self, outcome: Outcome) -> None:
        """Log the final tables and figures, the best epoch's values and the test metrics."""
        assert self.run is not None
        label, metrics, data = [", ".join(self.simulated)] if self.simulated else [], outcome.metrics, outcome.data
        rows = [
            [name, value, metrics[f"zero_shot/{name}"], *label]
            for name, value in metrics.items()
            if not name.startswith("zero_shot/") and f"zero_shot/{name}" in metrics
        ]
        columns: list[str | int] = ["metric", self.option, "zero_shot", *(["simulated"] if label else [])]
        media: dict[str, Any] = {"results": wandb.Table(columns, rows)}
        scores, side = outcome.results["val"].scores, data.sides["val"]
        if scores is not None and self.options.samples:
            samples = sample_table(side, scores, data.collection, self.options.samples)
            media["samples/best"] = wandb.Table(list(COLUMNS), samples)
        media |= {f"figures/{name}": wandb.Image(figure) for name, figure in figures_of(outcome).items()}
        if outcome.history:
            media["figures/val_mrr"] = val_mrr_chart(outcome, self.option)
        else:  # a model without epochs is a level line beside those of the other runs
            for epoch in (0, outcome.settings.trainer.max_epochs - 1):
                level = {name: metrics[name] for name in outcome.model.logged_metrics}
                self.run.log({"epoch": epoch, **level}, step=epoch)
        self.run.log(media)
        self.run.summary.update(summary_of(outcome))
        if self.options.artifacts:
            writes = [checkpoint_artifact(self.folder), results_artifact(self.folder)]
            log_lineage(self.run, data_artifacts(self.folder), writes)

    def close(self, status: str, reason: str = "") -> None:
        """Close the run with the exit code of its status; a job of a sweep that never opened one gets one now."""
        if not self.start_attempted and self.overrides is not None and status != "interrupted":
            try:
                self.start([], resuming=False)
            except UserError:  # a mistake in the logger cannot be logged
                return
        if self.run is not None:
            self.run.summary["status"] = status
            if status in ("failed", "not_applicable"):
                self.run.summary["error"] = first_line(reason)
            self.run.finish(exit_code=0 if status in ("finished", "not_applicable") else 1)
            self.run = None


class EpochLogger(L.Callback):
    """Logs each epoch's row of the history, its speed, the spread of its scores and, at intervals, samples.

    Args:
        logger: of the run.
        history: whose last row is that of this epoch.
    """

    def __init__(self, logger: WandbRun, history: History) -> None:
        self.logger, self.history = logger, history
        self._scores: Tensor | None = None
        self._samples = 0
        self._started = self._trained = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Log the epochs of an earlier process again where they are in another file; watch gradients if configured."""
        assert self.logger.run is not None
        if self.logger.sends_history_again:
            self.logger.curves(self.history.rows)
        if self.logger.options.watch != "none":
            self.logger.run.watch(
                module, log=cast(Any, self.logger.options.watch), log_freq=self.logger.options.watch_steps
            )

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start the clock."""
        self._samples, self._started, self._trained = 0, time.perf_counter(), 0.0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        outputs: Any,  # noqa: ANN401 - Lightning's signature
        batch: dict[str, Tensor],
        batch_index: int,
    ) -> None:
        """Count pairs of a query and a video by a shape, without waiting for the device."""
        self._samples += len(batch["query"]) * trainer.world_size
        self._trained = time.perf_counter() - self._started

    def on_validation_end(self, trainer: L.Trainer, module: Recommender) -> None:  # type: ignore[override]
        """Store the scores of the first queries until the epoch ends."""
        self._scores = module.first_scores

    def on_train_epoch_end(self, trainer: L.Trainer, module: Recommender) -> None:  # type: ignore[override]
        """Log everything of the epoch in one step."""
        assert self.logger.run is not None
        row: dict[str, Any] = {**self.history.rows[-1], "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        row["speed/epoch_seconds"] = time.perf_counter() - self._started
        row["speed/samples_per_second"] = self._samples / max(self._trained, 1e-9)
        if module.device.type == "cuda":
            row["speed/gpu_memory_gb"] = torch.cuda.max_memory_allocated(module.device) / 1e9
        if self._scores is not None:
            data, options, epoch = module.data, self.logger.options, trainer.current_epoch
            spread = score_spread(data.sides["val"], self._scores, data.collection.positive_grade)
            row |= {f"scores/{name}": wandb.Histogram(np_histogram=counts) for name, counts in spread.items()}
            if options.samples and options.samples_every and (epoch + 1) % options.samples_every == 0:
                samples = sample_table(data.sides["val"], self._scores, data.collection, options.samples)
                row["samples/val"] = wandb.Table(["epoch", *COLUMNS], [[epoch, *sample] for sample in samples])
        self.logger.run.log(row, step=trainer.current_epoch)
        self._scores = None

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Stop watching gradients."""
        if self.logger.run is not None and self.logger.options.watch != "none":
            self.logger.run.unwatch(module)
