"""Average the weights of towers that have no closed form by Flower's FedAvg or FedAdam, in its simulation.

    python benchmarks/studies/flower.py SWEEP [--folds 0,1,...] [--fits fedavg,fedadam] [KEY=VALUE ...]

Flower (flwr 1.42) pins older packages than this project and needs an environment of its own (docs/federation.md). Reads
`experiment=federated` and the settings that follow, and writes one run a fold and fit into the folder SWEEP, where
`dcdt.report` reads them beside the other rows of the experiment.

Each school is a SuperNode: a ClientApp that trains the model of `model.model` on the school's own queries for
`trainer.max_epochs` epochs a round, with our LightningModule and DataModule, and sends weights. The ServerApp averages
them as Flower does. The round with the best validation, as the schools report it weighted by their queries, is tested.
"""

import argparse
import logging
import os
from functools import cache
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # before Flower is imported
os.environ.setdefault("RAY_worker_niceness", "0")  # Ray lets all else go first, 15 by default
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")  # on a machine with other work

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg
from flwr.simulation import run_simulation
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save
from torch import Tensor

from dcdt.config import Settings, config_folder, parse, register_resolvers
from dcdt.data.beir import load_collection
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.splits import make_split
from dcdt.models.recommender import Recommender
from dcdt.runs.folder import RunFolder
from dcdt.training import build, experiment
from dcdt.training.loggers.base import RunLogger

logging.getLogger("flwr").setLevel(logging.WARNING)  # it prints the whole configuration each time
ETA = 0.01  # FedAdam's step, of the server; its default of 0.1 moves a tower that starts as the identity far away
STRATEGIES = {"fedavg": FedAvg, "fedadam": lambda: FedAdam(eta=ETA)}
client = ClientApp()


@cache
def load_school(text: str, number: int) -> tuple[Settings, RankingDataModule, Recommender]:
    """Load what the school of a node trains with: its own queries alone, and a new model."""
    torch.set_num_threads(1)
    config = OmegaConf.create(text)
    config.model = config.model.model
    settings = parse(config)
    collection = load_collection(settings.data.path)
    split = make_split(collection, settings.split)
    split = split.where(np.array(split.schools) == school_names(split.schools)[number])
    build.prepare(settings)
    tables = build.load_tables(settings, collection)
    return settings, build.make_datamodule(settings, collection, split, tables), build.make_model(settings, tables)


def school_names(schools: list[str]) -> list[str]:
    """Names of the schools, in the order of their nodes."""
    return sorted(set(schools))


def school_of(message: Message, context: Context) -> tuple[Settings, RankingDataModule, Recommender]:
    """Load the school of a node, with the weights of a message."""
    school = load_school(str(message.content["config"]["config"]), int(context.node_config["partition-id"]))
    model = school[2]  # whose loss has a temperature that stays as it is
    model.load_state_dict({**model.state_dict(), **message.content["arrays"].to_torch_state_dict()})
    return school


@client.train()
def train(message: Message, context: Context) -> Message:
    """Train on the school's queries, and send the weights."""
    settings, data, model = school_of(message, context)
    data.seed = settings.seed + int(message.content["config"]["server-round"])  # else each round draws the same batches
    trainer = build.make_trainer(settings, [])
    trainer.fit(model, datamodule=data)
    metrics = MetricRecord({"num-examples": len(data.split.pairs)})
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("loss.")}
    content = RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics})
    return Message(content=content, reply_to=message)


@client.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Send the mean reciprocal rank of the school's validation queries."""
    settings, data, model = school_of(message, context)
    values = build.make_trainer(settings, []).validate(model, datamodule=data, verbose=False)[0]
    metrics = MetricRecord({"num-examples": len(data.split.val.queries), "mrr": float(values[settings.primary_metric])})
    return Message(content=RecordDict({"metrics": metrics}), reply_to=message)


def federate(config: DictConfig, initial: dict[str, Tensor], n_schools: int) -> tuple[dict[str, Tensor], int, float]:
    """Run the rounds; returns the weights of the round with the best validation, the round and that validation."""
    rounds, server, result = dict[int, ArrayRecord](), ServerApp(), list[dict[int, float]]()
    text = OmegaConf.to_yaml(config, resolve=True)

    def keep(number: int, arrays: ArrayRecord) -> None:
        rounds[number] = arrays

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = STRATEGIES[str(config.model.fit)]()
        done = strategy.start(
            grid,
            ArrayRecord(initial),
            num_rounds=int(config.model.rounds),
            train_config=ConfigRecord({"config": text}),
            evaluate_config=ConfigRecord({"config": text}),
            evaluate_fn=keep,
        )
        result.append({number: float(one["mrr"]) for number, one in done.evaluate_metrics_clientapp.items()})

    resources = {
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        "init_args": {"num_cpus": 1},
    }  # one after the other
    run_simulation(server, client, n_schools, backend_config=resources)
    validation = result[0] if result else {}
    if not validation:
        raise SystemExit("no school answered; Flower's messages above say why.")
    best = max(validation, key=lambda number: (validation[number], -number))
    return rounds[best].to_torch_state_dict(), best, validation[best]


def run(sweep: Path, overrides: list[str]) -> None:
    """Make one run."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        config = compose("config", overrides=overrides)
    settings = parse(config)
    folder = RunFolder(sweep / f"{settings.model.fit}_{settings.split.index}")
    if folder.read_status().get("status") == "finished":
        return
    split = make_split(load_collection(settings.data.path), settings.split)

    def prepare(model: Recommender, data: RankingDataModule) -> None:
        merged = model.merged
        weights, best, value = federate(config, merged.state_dict(), len(school_names(split.schools)))
        merged.load_state_dict(weights)
        n_bytes = settings.model.rounds * len(save(merged.state_dict()))
        model.figures = {"federated/rounds": settings.model.rounds, "federated/bytes": n_bytes}
        model._is_prepared = True
        print(f"{folder.path.name}: round {best} of {settings.model.rounds}, validation {value:.4f}")

    experiment.run(settings, config, folder, RunLogger(), prepare=prepare)


def main() -> None:
    """Run every fold and fit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--folds", default="0,1,2,3,4,5,6,7,8,9")
    parser.add_argument("--fits", default="fedavg,fedadam")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_intermixed_args()
    register_resolvers()
    fixed = ["experiment=federated", "model=federated_averaging", "logger=none", "trainer=cpu", "trainer.max_epochs=1"]
    for fold in options.folds.split(","):
        for fit in options.fits.split(","):
            run(options.sweep, [*fixed, *options.settings, f"split.index={fold}", f"model.fit={fit}"])


if __name__ == "__main__":
    import flower  # by its name, so that Ray's workers import what they run

    flower.main()
