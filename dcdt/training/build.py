"""Build the parts of a run from its settings, one function a part."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from dcdt.config import Settings, vector_fields
from dcdt.config.registry import MODELS, SAMPLERS, look_up
from dcdt.data.datamodule import RankingDataModule, check_cutoffs
from dcdt.data.pairs import load_pairs
from dcdt.data.splits import Split
from dcdt.data.tables import Tables
from dcdt.data.types import Collection
from dcdt.embeddings import tables as vector_tables
from dcdt.embeddings.providers import space_of
from dcdt.embeddings.states import load_tokens
from dcdt.embeddings.tables import FROZEN_FIELDS
from dcdt.models import hyperparameters
from dcdt.models.ranking import SideResult
from dcdt.models.recommender import Recommender
from dcdt.samplers.pool import training_pool
from dcdt.training import extras
from dcdt.training.callbacks.divergence import DivergenceCheck
from dcdt.training.devices import check_devices, device_count, device_number, device_type, world_size
from dcdt.training.rank import global_rank
from dcdt.utils.errors import UserError
from dcdt.utils.precision import HALF_DTYPES, at_least_float32

SINGLE_THREAD_BATCH = 256  # largest batch for which one CPU thread is fastest


def prepare(settings: Settings) -> None:
    """Check the devices, seed every random generator, and silence Lightning's hints that do not apply.

    Raises:
        UserError: this machine lacks a device, or the device cannot do what the configuration needs.
    """
    check_devices(settings.trainer)
    if settings.trainer.extra:
        extras.make_trainer(_trainer_arguments(settings), settings.trainer.extra)  # which checks them as well
    extras.make_callbacks(settings.callbacks.extra)  # which checks them, before anything is embedded
    profiled = (settings.trainer.extra or {}).get("profiler") is not None  # whose table is logged as information
    logging.getLogger("lightning.pytorch").setLevel(logging.INFO if profiled else logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", ".*sync_dist=True.*")  # what is logged is the same in all processes
    warnings.filterwarnings("ignore", ".*recommended to use single device strategy.*")
    warnings.filterwarnings("ignore", ".*use `Trainer\\(devices=1, num_nodes=1\\)`.*")
    warnings.filterwarnings("ignore", ".*is not an instance of `DataLoader`.*")
    L.seed_everything(settings.seed, workers=True, verbose=False)


def set_threads(settings: Settings) -> None:
    """Set the CPU threads of training: `trainer.threads`, else one for small batches and all cores for large ones."""
    is_small = settings.batch_size <= SINGLE_THREAD_BATCH and not look_up(MODELS, settings.model.name).reads_tokens
    n = 1 if is_small else os.cpu_count() or 1
    torch.set_num_threads(settings.trainer.threads or max(1, n // device_count(settings.trainer)))


def mining_device(settings: Settings) -> torch.device:
    """The device that mines hard negatives before training: the GPU that will train, else the CPU."""
    gpu = device_type(settings.trainer) == "cuda"
    return torch.device("cuda", device_number(settings.trainer)) if gpu else torch.device("cpu")


def space(settings: Settings) -> str:
    """Name of the embedding space of a run."""
    return space_of(settings.embedder).folder


def load_tables(settings: Settings, collection: Collection) -> Tables:
    """The frozen vectors of the model's fields, embedded first where they are missing."""
    trainer = settings.trainer
    models = [settings.model, getattr(settings.loss, "teacher", None)]
    names = [model.name for model in models if model is not None]
    halves = all(look_up(MODELS, name).supports_half_precision for name in names)  # else float32
    tables = vector_tables.load_tables(
        collection,
        vector_fields(settings.model),
        settings.embedder,
        settings.data.cache,
        settings.callbacks.progress,
        getattr(torch, trainer.embedding_dtype) if halves else torch.float32,
        halves and trainer.mapped,
    )
    add_inputs(tables, settings, collection, settings.callbacks.progress)
    return tables


def add_inputs(tables: Tables, settings: Settings, collection: Collection, progress: bool) -> None:
    """Add the tokens of all texts to tables, where the model or its second part reads them, and the pictures."""
    if settings.reads_images:
        tables.images = vector_tables.load_images(collection, settings.image_embedder, settings.data.cache, progress)
    if look_up(MODELS, settings.model.name).reads_tokens:
        model: Any = getattr(settings.model, "second", settings.model)
        tables.tokens = load_tokens(
            collection,
            model.fields,
            settings.embedder,
            settings.data.cache,
            model.trainable_layers,
            model.max_gigabytes,
            progress,
            settings.trainer.mapped,
        )


def make_datamodule(settings: Settings, collection: Collection, split: Split, tables: Tables) -> RankingDataModule:
    """The DataModule of a run: pair file, sampler (where the model is trained) and sides."""
    check_cutoffs(split, settings.ks)  # before anything is written
    folder = Path(settings.outputs) / "pairs"
    queries, videos = at_least_float32(tables.queries).numpy(), at_least_float32(tables.frozen).numpy()
    pairs = {}  # the pair protocol labels pairs of a question and a video
    if collection.has_questions:
        pairs = load_pairs(folder, collection, split, queries, videos, space(settings))
    sampler = None
    if look_up(MODELS, settings.model.name).trained_by_epochs:
        pool = training_pool(collection, split, mining_device(settings))
        sampler = look_up(SAMPLERS, settings.sampler.name)(settings.sampler, pool, tables)
    return RankingDataModule(collection, split, pairs, sampler, settings.batch_size, settings.seed, settings.ks)


def make_model(settings: Settings, tables: Tables) -> Recommender:
    """The model, initialised from the run's seed whatever was drawn before.

    Raises:
        UserError: it does not log the loss that is to stop its training.
    """
    L.seed_everything(settings.seed, workers=True, verbose=False)
    model: Recommender = hyperparameters.build(settings.model, settings.loss, settings.optimizer, tables)
    model.to(tables.device)
    if settings.monitor == "val/loss" and model.trained_by_epochs and not model.validates_loss:
        raise UserError(
            f"callbacks.monitor is 'val/loss', which model={settings.option} does not compute.\n"
            f"Choose a metric of validation, such as {settings.primary_metric}."
        )
    k = settings.ks[-1]
    model.logged_metrics = {settings.primary_metric, settings.monitor, "val/mrr", f"val/ndcg@{k}", f"val/recall@{k}"}
    return model


def make_trainer(settings: Settings, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's Trainer without what takes long beside a training of seconds: sanity steps, bars, checkpoints.

    Args:
        settings: of the run.
        callbacks: of a training; without any it is a trainer to validate and test, which takes no `trainer.extra`.

    Raises:
        UserError: `trainer.extra` holds an argument that cannot be passed on.
    """
    own = {**_trainer_arguments(settings), "callbacks": [DivergenceCheck(), *callbacks] if callbacks else []}
    return extras.make_trainer(own, (settings.trainer.extra or {}) if callbacks else {})


def _trainer_arguments(settings: Settings) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that a run sets itself; callbacks are added to them."""
    config = settings.trainer
    return {
        "accelerator": config.accelerator,
        "devices": config.devices,
        "num_nodes": config.num_nodes,
        "strategy": config.strategy if world_size(config) > 1 else "auto",
        "plugins": [LightningEnvironment() if global_rank() is None else TorchElasticEnvironment()],  # also in Slurm
        "precision": config.precision,
        "max_epochs": config.max_epochs,
        "check_val_every_n_epoch": config.validate_every,
        "callbacks": [],
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 0,  # nothing by step: once an epoch is enough
        "use_distributed_sampler": False,
    }


def reference_results(tables: Tables, trainer: L.Trainer, data: RankingDataModule) -> dict[str, SideResult]:
    """Zero-shot on the same sides, for the table of every run, from the loaded vectors.

    In a collection without questions it ranks by the mean of what the learner watched before.
    """
    history = "none" if data.collection.has_questions else "mean"
    make_config, fields = MODELS["zero_shot"].schema, list(FROZEN_FIELDS)
    if not set(FROZEN_FIELDS) <= set(tables.fields) or tables.frozen.dtype in HALF_DTYPES:  # the sum alone is loaded
        fields = ["frozen"]
        tables = Tables(tables.queries, tables.frozen.unsqueeze(0), tables.frozen, fields)
    config = make_config("zero_shot", fields, "none", history)
    model: Recommender = look_up(MODELS, "zero_shot")(config, tables.select_fields(fields)).to(tables.device)
    model.prepare(data)
    trainer.test(model, datamodule=data, verbose=False)
    return model.results
