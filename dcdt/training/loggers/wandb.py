"""Weights & Biases: one run a job, closed on every path, mirrored from what the run's folder holds."""

import logging
import tempfile
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
from dcdt.runs.reader import first_line
from dcdt.runs.sweep import differing
from dcdt.training.callbacks.history import History
from dcdt.training.callbacks.samples import COLUMNS, sample_table, score_spread
from dcdt.training.config import LoggerConfig
from dcdt.training.loggers.base import RunLogger
from dcdt.training.loggers.wandb_key import mode_of, named
from dcdt.training.loggers.wandb_media import figures_of, write_vectors
from dcdt.training.loggers.wandb_summary import beside_zero_shot, summary_of, variant_of
from dcdt.training.outcome import Outcome
from dcdt.utils.errors import UserError
from dcdt.utils.files import read_json, write_json
from dcdt.utils.redaction import redact, redact_values

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
        self.chosen = validate(LoggerConfig, config.logger, "logger")
        self.config, self.folder, self.overrides = config, folder, overrides
        self.option = model_option(OmegaConf.select(config, "model"))
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
        own = differing(self.overrides or [], self.folder.parent)
        run, mode = start_run(
            self.folder.parent,
            mode,
            self.chosen.mode == "online",
            console=sweep is None,  # the jobs of a sweep may share a terminal
            machine=True,
            id=identity,
            resume="allow" if identity and mode == "online" else None,
            project=self.chosen.project,
            entity=self.chosen.entity,
            name=", ".join(own) or self.folder.name,
            group=sweep,
            job_type=self.option,
            tags=[tag for tag in (config.get("experiment_name"), Path(config.data.path).name) if tag],
            config={
                **redact_values(OmegaConf.to_container(config, resolve=True)),
                "variant": variant_of(config, own),
                "fold": OmegaConf.select(config, "split.index"),
                "folder": str(self.folder.resolve()),
            },
        )
        self.run = run
        files = Path(run.dir).parent
        facts = {"id": run.id, "name": run.name, "project": run.project, "mode": mode, "files": str(files)}
        write_json(known, {**facts, "variant": run.config["variant"]})
        run.define_metric("epoch", hidden=True, summary="none")
        for part in ("train/*", "val/*", "scores/*", "lr"):  # the summary is that of the best epoch, made at the end
            run.define_metric(part, step_metric="epoch", summary="none")
        run.define_metric(config.primary_metric, step_metric="epoch", summary="max")
        if mode == "offline" and (sweep is None or first):
            place = self.folder.parent / "wandb"
            what = named("this run" if sweep is None else "this sweep", self.chosen.mode)
            sent = files if sweep is None else f"{place}/offline-run-*"
            log.warning("W&B: %s stays offline. Browse: wandb leet %s   Send: wandb sync %s", what, place, sent)

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
        columns: list[str | int] = ["metric", self.option, "zero_shot", *(["simulated"] if label else [])]
        shown: dict[str, Any] = {"results": wandb.Table(columns, rows)}
        scores, side = outcome.results["val"].scores, data.sides["val"]
        if scores is not None and self.chosen.samples:
            best = sample_table(side, scores, data.collection, self.chosen.samples)
            shown["samples/best"] = wandb.Table(list(COLUMNS), best)
        shown |= {f"figures/{name}": wandb.Image(figure) for name, figure in figures_of(outcome).items()}
        if outcome.history:
            shown["figures/val_mrr"] = beside_zero_shot(outcome, self.option)
        else:  # a model without epochs is a level line beside those of the other runs
            for epoch in (0, outcome.settings.trainer.max_epochs - 1):
                level = {name: metrics[name] for name in outcome.model.watched}
                self.run.log({"epoch": epoch, **level}, step=epoch)
        self.run.log(shown)
        self.run.summary.update(summary_of(outcome))
        if self.chosen.artifacts:
            self._send(outcome)

    def close(self, status: str, reason: str = "") -> None:
        """Close the run with the exit code of its status; a job of a sweep that never opened one gets one now."""
        if not self.tried and self.overrides is not None and status != "done already":
            try:
                self.start([], resuming=False)
            except UserError:  # of the logger itself: it cannot be logged
                return
        if self.run is not None:
            self.run.summary["status"] = status
            if status in ("failed", "not_applicable"):
                self.run.summary["error"] = redact(first_line(reason))
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
    """Sends each epoch's row of the history, with what it cost, how the scores are spread and, now and then, samples.

    Args:
        to: the run.
        history: whose last row is that of this epoch.
    """

    def __init__(self, to: WandbRun, history: History) -> None:
        self.to, self.history = to, history
        self._scores: Tensor | None = None
        self._samples = 0
        self._started = self._trained = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Send again what an earlier process sent to another file; look at gradients where asked to."""
        assert self.to.run is not None
        if self.to.again:
            self.to.curves(self.history.rows)
        if self.to.chosen.watch != "none":
            self.to.run.watch(module, log=cast(Any, self.to.chosen.watch), log_freq=self.to.chosen.watch_steps)

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
        """Count pairs of a query and a video by a shape, which waits for no device."""
        self._samples += len(batch["query"]) * trainer.world_size
        self._trained = time.perf_counter() - self._started

    def on_validation_end(self, trainer: L.Trainer, module: Recommender) -> None:  # type: ignore[override]
        """Keep the scores of the first queries until the epoch ends."""
        self._scores = module.first_scores

    def on_train_epoch_end(self, trainer: L.Trainer, module: Recommender) -> None:  # type: ignore[override]
        """Send everything of the epoch at once."""
        assert self.to.run is not None
        row: dict[str, Any] = {**self.history.rows[-1], "lr": trainer.optimizers[0].param_groups[0]["lr"]}
        row["speed/epoch_seconds"] = time.perf_counter() - self._started
        row["speed/samples_per_second"] = self._samples / max(self._trained, 1e-9)
        if module.device.type == "cuda":
            row["speed/gpu_memory_gb"] = torch.cuda.max_memory_allocated(module.device) / 1e9
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


def start_run(
    folder: Path,
    mode: Any,  # noqa: ANN401 - wandb's literal
    insist: bool,
    console: bool,
    machine: bool,
    **facts: Any,  # noqa: ANN401 - wandb's
) -> tuple[wandb.Run, Any]:
    """A quiet run with its files in `folder/wandb`, and its mode; one that is still open is closed first.

    Where W&B does not answer the run stays offline, unless the user insists.

    Args:
        folder: above `wandb`.
        mode: online, offline or disabled.
        insist: whether the user asked for online.
        console: whether what this process prints is part of the run.
        machine: whether the use of processor, memory and GPU is.
        facts: for `wandb.init`.

    Raises:
        UserError: W&B does not answer, or refuses, and the user insists.
    """
    settings = wandb.Settings(
        silent=True, console="wrap" if console else "off", x_save_requirements=False, x_disable_stats=not machine
    )
    settings.init_timeout = settings.login_timeout = ANSWER_SECONDS
    try:
        found = wandb.init(dir=folder, mode=mode, save_code=False, reinit="finish_previous", settings=settings, **facts)
        return found, mode
    except wandb.errors.Error as error:
        reason = str(error).splitlines()[0]
        if insist or mode == "offline":
            raise UserError(f"W&B cannot be used ({reason}).\nChoose logger.mode=offline, or logger=csv.") from error
    log.warning("W&B cannot be used (%s): the run stays offline.", reason)
    return start_run(folder, "offline", insist, console, machine, **{**facts, "resume": None})
