"""The whole configuration: which schema each name has, and the checks across them."""

from dataclasses import MISSING as NO_DEFAULT
from dataclasses import asdict, dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dcdt.config.checks import at_least, one_of
from dcdt.config.inputs import EMBEDDERS, DataConfig, EmbedderConfig, EmbedJob, SplitConfig
from dcdt.config.models import MODELS, ModelConfig
from dcdt.config.options import model_option
from dcdt.config.reading import typed
from dcdt.config.reporting import CallbacksConfig, LoggerConfig, SweepConfig
from dcdt.config.training import (
    LOSSES,
    OPTIMIZERS,
    SAMPLERS,
    LossConfig,
    OptimizerConfig,
    SamplerConfig,
    TrainerConfig,
)
from dcdt.utils.errors import UserError
from dcdt.utils.text import join_names

SCHEMAS: dict[str, dict[str, type]] = {
    "model": MODELS,
    "loss": LOSSES,
    "sampler": SAMPLERS,
    "data": {"linear_algebra": DataConfig, "files": DataConfig},
    "split": dict.fromkeys(("query", "folds", "video", "time", "paper"), SplitConfig),
    "embedder": EMBEDDERS,
    "optimizer": OPTIMIZERS,
    "trainer": dict.fromkeys(("auto", "cpu", "gpu", "ddp"), TrainerConfig),
    "logger": dict.fromkeys(("wandb", "csv", "none"), LoggerConfig),
}


SINGLE: dict[str, type] = {"callbacks": CallbacksConfig, "sweep": SweepConfig}


@dataclass
class Settings:
    """One checked configuration, every part an instance of its schema."""

    model: ModelConfig
    loss: LossConfig
    sampler: SamplerConfig
    data: DataConfig
    split: SplitConfig
    embedder: EmbedderConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    optimizer: OptimizerConfig
    callbacks: CallbacksConfig
    sweep: SweepConfig
    seed: int
    trials: int
    batch_size: int
    primary_metric: str
    ks: list[int]
    outputs: str
    experiment_name: str | None = None
    resume: str | None = None

    @property
    def option(self) -> str:
        """Name of the option of conf/model that the model is, or is nearest to; `model.name` is its class."""
        return model_option(asdict(self.model))

    @property
    def fields(self) -> list[str]:
        """Fields whose vectors the model reads; title and text where it reads none."""
        return list(getattr(self.model, "fields", ("title", "text")))


def take_embed_job(config: DictConfig) -> tuple[EmbedJob, DictConfig]:
    """The part of a configuration that only `dcdt.embed` knows, and the rest.

    Raises:
        UserError: a value of it is of another type or unknown.
    """
    own = {"dry_run": "dry_run", "verify": "verify", "import": "importing"}
    rest = OmegaConf.create({key: value for key, value in config.items_ex(resolve=False) if key not in own})
    given = OmegaConf.create({own[key]: config[key] for key in own if key in config})
    return typed(EmbedJob, given, "embed"), rest


OLD_NAMES = {"optimizer": "adamw"}  # of groups that older configurations do not name
METRICS = ("mrr", "map", "recall", "precision", "hit", "ndcg")


def parse(config: DictConfig) -> Settings:
    """Check a composed configuration against its schemas.

    Raises:
        UserError: a value is missing, has another type, is out of its range, or is not in the schema.
    """
    try:
        config = DictConfig(OmegaConf.to_container(config, resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {str(error).splitlines()[0]}") from error
    values: dict[str, Any] = {}
    for group, schemas in SCHEMAS.items():
        chosen = config.get(group)
        name = chosen.get("name", OLD_NAMES.get(group)) if isinstance(chosen, DictConfig) else None
        one_of(f"{group}.name", name, tuple(schemas))
        values[group] = typed(schemas[str(name)], chosen, group)
    for key, schema in SINGLE.items():
        part = config.get(key, DictConfig({}) if key == "sweep" else None)  # older configurations have no sweep
        if not isinstance(part, DictConfig):
            raise UserError(f"{key} is {part!r}; give its values as {key}.NAME=VALUE.")
        values[key] = typed(schema, part, key)
    plain = {item.name for item in fields(Settings)} - values.keys()
    unknown = {str(key) for key in config} - plain - values.keys()
    if unknown:
        raise UserError(f"unknown setting {join_names(sorted(unknown))}; see python -m dcdt.run --help.")
    given = {item.name for item in fields(Settings) if item.default is not NO_DEFAULT}
    lacking = sorted(plain - given - config.keys())
    if lacking:
        raise UserError(f"{lacking[0]} is not set; give it as {lacking[0]}=VALUE.")
    for key in plain - (given - config.keys()):  # an older configuration may lack what has a default
        value = config[key]
        values[key] = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    settings = Settings(**values)
    _check_plain(settings)
    if settings.split.part == "sealed" and settings.experiment_name != "final":
        raise UserError(
            "split.part is 'sealed': only experiment=final scores the sealed quarter, once for a release.\n"
            "Choose split.part=open to compare and tune, or all where nothing is compared any more."
        )
    return settings


def _check_plain(settings: Settings) -> None:
    for name in ("batch_size", "trials"):
        if not isinstance(getattr(settings, name), int):
            raise UserError(f"{name} is {getattr(settings, name)!r}; it must be a whole number of at least 1.")
        at_least(name, getattr(settings, name), 1)
    if not isinstance(settings.outputs, str) or not settings.outputs:
        raise UserError(f"outputs is {settings.outputs!r}; it must name a folder.")
    if isinstance(settings.seed, bool) or not isinstance(settings.seed, int) or not 0 <= settings.seed < 2**32:
        raise UserError(f"seed is {settings.seed!r}; it must be a whole number from 0 to {2**32 - 1}.")
    if (
        not isinstance(settings.ks, list)
        or not settings.ks
        or any(isinstance(k, bool) or not isinstance(k, int) or k < 1 for k in settings.ks)
    ):
        raise UserError(f"ks is {settings.ks}; it must be a list of whole numbers of at least 1, such as [1,5,10].")
    known = [f"val/{name}{suffix}" for name in METRICS for suffix in _suffixes(name, settings.ks)]
    one_of("primary_metric", settings.primary_metric, tuple(known))


def _suffixes(metric: str, ks: list[int]) -> list[str]:
    return [""] if metric in ("mrr", "map") else [f"@{k}" for k in ks]
