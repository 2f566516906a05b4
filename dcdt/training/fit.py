"""Train and test one trial, and save its checkpoint and history."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from dcdt.config import Settings
from dcdt.config.registry import MODELS, look_up
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.tables import Tables
from dcdt.models.ranking import SideResult
from dcdt.models.recommender import Recommender
from dcdt.runs.folder import RunFolder
from dcdt.training import build
from dcdt.training.callbacks.best import BestWeights
from dcdt.training.callbacks.collapse import CollapseAlarm
from dcdt.training.callbacks.history import History, write_history
from dcdt.training.callbacks.last import LastState
from dcdt.training.callbacks.progress import EpochProgress
from dcdt.training.checkpoint import cpu_weights, read_state, state_errors, write_state
from dcdt.training.extras import make_callbacks
from dcdt.training.loggers.base import RunLogger
from dcdt.utils.errors import NotApplicable
from dcdt.utils.files import write_json


@dataclass
class Trained:
    """One trained configuration.

    Attributes:
        model: with the weights of its best validation.
        trainer: that trained it, ready to test it.
        history: loss and validation per epoch.
        epoch: of the best validation; -1: before training; 0 where nothing is trained.
        value: the primary metric of that validation.
        seconds: of training.
    """

    model: Recommender
    trainer: L.Trainer
    history: list[dict[str, float]]
    epoch: int
    value: float
    seconds: float


def train(
    settings: Settings,
    tables: Tables,
    data: RankingDataModule,
    logger: RunLogger,
    state: Path,
    prepare: Callable[..., None] | None = None,
) -> Trained:
    """Train one configuration (or prepare a model that needs no training) and validate it.

    Where `state` holds what an earlier attempt left, training resumes from it; where that attempt had ended, its result
    is returned.

    Args:
        settings: the configuration.
        tables: the frozen vectors.
        data: the batches and sides.
        logger: receives each epoch.
        state: file of the training in progress.
        prepare: called with model and data in place of the model's own `prepare`.
    """
    by_monitor = settings.callbacks.checkpoint_by == "monitor"
    history, best = History(), BestWeights(settings.primary_metric, settings.monitor if by_monitor else None)
    last = LastState(state, settings.callbacks.checkpoint_seconds)
    by_epochs = look_up(MODELS, settings.model.name).trained_by_epochs
    trainer = build.make_trainer(settings, _callbacks(settings, history, best, logger, last) if by_epochs else [])
    tables.to(trainer.strategy.root_device)  # where they stay: models are made, prepared and tested on that device
    model = build.make_model(settings, tables)
    if model.needs_question and not data.collection.has_questions:
        raise NotApplicable(f"the collection has no questions, which {settings.model.name} ranks for")
    if settings.trainer.compile:
        model.compile_step()
    build.set_threads(settings)
    earlier = read_state(state)
    started = time.perf_counter()
    (prepare or Recommender.prepare)(model, data)
    if "ended" in earlier:
        with state_errors(state):
            ended = dict(earlier["ended"])
            model.load_state_dict(ended.pop("weights"))
            return Trained(model, trainer, **ended)
    if model.trained_by_epochs:
        if model.starts_useful and not earlier:
            trainer.validate(model, datamodule=data, verbose=False)  # a candidate for the best weights as well
        with state_errors(state, last) if earlier else contextlib.nullcontext():
            trainer.fit(model, datamodule=data, ckpt_path=state if earlier else None, weights_only=True)
        if settings.callbacks.extra and best.weights:
            _validate_final(model, trainer, best, data)
        value = best.value
    else:
        value = trainer.validate(model, datamodule=data, verbose=False)[0][settings.primary_metric]
    epoch = best.epoch if model.starts_useful else max(best.epoch, 0)
    seconds = last.earlier_seconds + time.perf_counter() - started
    if settings.trainer.extra:  # which may limit batches: every query is tested
        trainer = build.make_trainer(settings, [])
    trained = Trained(model, trainer, history.rows, epoch, value, seconds)
    if settings.trials > 1 and model.trained_by_epochs and settings.callbacks.checkpoint_seconds is not None:
        _save_trial(trained, state)
    return trained


def _callbacks(
    settings: Settings, history: History, best: BestWeights, logger: RunLogger, last: LastState
) -> list[L.Callback]:
    """The callbacks of a training in order; `last` must see an epoch after all others."""
    chosen = settings.callbacks
    callbacks: list[L.Callback] = [history, best, CollapseAlarm(chosen.collapse_cosine)]
    strict = not settings.trainer.extra  # which may end training before the first validation
    if settings.monitor != "none":
        mode = "min" if settings.monitor == "val/loss" else "max"
        callbacks.append(EarlyStopping(settings.monitor, patience=chosen.patience, mode=mode, strict=strict))
    if chosen.progress:
        callbacks.append(EpochProgress(settings.primary_metric))
    return [*callbacks, *logger.callbacks(history), *make_callbacks(chosen.extra), last]


def _validate_final(model: Recommender, trainer: L.Trainer, best: BestWeights, data: RankingDataModule) -> None:
    """Validate the weights with which training ended, which a callback (SWA) may have changed, as a candidate."""
    best.outside_epoch = trainer.current_epoch - 1
    model.load_state_dict(best.final_weights)
    trainer.validate(model, datamodule=data, verbose=False)
    model.load_state_dict(best.weights)


def _save_trial(trained: Trained, path: Path) -> None:
    """Write the result of a trial, so that a run interrupted in a later one need not train it again."""
    values = {name: getattr(trained, name) for name in ("history", "epoch", "value", "seconds")}
    write_state({"ended": {"weights": cpu_weights(trained.model), **values}}, path)


def save(trained: Trained, settings: Settings, trials: list[dict[str, Any]], folder: RunFolder) -> None:
    """Write the best checkpoint, history.csv (unless logger=none) and, for several trials, tuning.json.

    The checkpoint has the keys that `load_from_checkpoint` reads, and the best validation.
    """
    checkpoint = {
        "pytorch-lightning_version": L.__version__,
        "hyper_parameters": dict(trained.model.hparams),
        "state_dict": cpu_weights(trained.model),
        "epoch": trained.epoch,
        settings.primary_metric: trained.value,
    }
    write_state(checkpoint, folder.files.checkpoint)
    if settings.logger.name != "none":
        write_history(folder.files.history, trained.history)
    if len(trials) > 1:
        write_json(folder.files.tuning, {"trials": trials, "chosen": asdict(settings)})


def test(trained: Trained, data: RankingDataModule) -> tuple[dict[str, SideResult], float]:
    """Results of a trained model on every side, and the seconds that they took."""
    model = trained.model
    started = time.perf_counter()
    trained.trainer.test(model, datamodule=data, verbose=False)
    seconds = time.perf_counter() - started
    model.to(model.tables.device)  # Lightning has moved it to the CPU, away from its vectors
    return model.results, seconds


def cost(trained: Trained, test_seconds: float) -> dict[str, float]:
    """Parameters, training time (of the best trial) and milliseconds a query, all sides together."""
    model = trained.model
    queries = sum(len(result.queries) for result in model.results.values())
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training_seconds": trained.seconds,
        "epochs": len(trained.history),
        "best_epoch": trained.epoch,
        "ms_per_query": 1000 * test_seconds / queries,
        "decoupled": model.decoupled,
    }
