import dataclasses
import functools
import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from support import prepare, slow_rows_but

from dcdt.config import Settings, config_folder, model_option, model_presets, parse, register_resolvers, validate
from dcdt.config.registry import GROUPS, LOSSES, MODELS, SAMPLERS, SINGLE, look_up
from dcdt.embeddings.config import EmbedJob, take_embed_job
from dcdt.samplers.pool import training_pool
from dcdt.training.build import add_inputs, make_model
from dcdt.utils.errors import UserError

SCHEMAS = {group: {name: entry.schema for name, entry in table.items()} for group, table in GROUPS.items()}
CONF = config_folder()
FILES = sorted(CONF.rglob("*.yaml"))
BASES = {"trainer/default"}  # what other options start from, no option itself
OPTIONS = [
    f"{path.parent.name}={path.stem}"
    for path in FILES
    if path.parent.name in SCHEMAS and f"{path.parent.name}/{path.stem}" not in BASES
]


@pytest.fixture(scope="module", autouse=True)
def hydra():
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@functools.cache
def composed(*overrides):
    """The configuration of these overrides; a tenth of a second each. Not to be changed."""
    return compose("config", overrides=["data.path=/x", "data.cache=/y", *overrides])


def settings_of(*overrides):
    return parse(composed(*overrides))


@pytest.fixture(scope="module")
def main_job(hydra):
    config = compose("config")
    OmegaConf.set_struct(config, False)
    return config


def changed(config, override):
    """The configuration with one more value, as a composition would give it, but at once."""
    return OmegaConf.merge(config, OmegaConf.from_dotlist([override]))


def test_the_main_job(main_job):
    settings = parse(main_job)
    assert settings.image_embedder is None
    chosen = {group: getattr(settings, group).name for group in SCHEMAS if group != "image_embedder"}
    assert chosen == {
        "model": "dcdt",
        "loss": "contrastive",
        "sampler": "hard",
        "data": "linear_algebra",
        "split": "query",
        "embedder": "local",
        "trainer": "auto",
        "optimizer": "adamw",
        "logger": "wandb",
    }
    assert Path(settings.data.path).parts[-2:] == ("data", "linear_algebra")
    assert Path(settings.data.cache) == Path(settings.data.path) / "embeddings"
    assert (settings.seed, settings.split.index, settings.primary_metric, settings.ks) == (0, 0, "val/mrr", [1, 5, 10])
    assert settings.experiment_name is None


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_parses(option):
    group, name = option.split("=")
    settings = settings_of(option, *(["image_embedder.folder=model"] if group == "image_embedder" else []))
    assert isinstance(settings, Settings)
    kind = getattr(settings, group).name
    assert name == kind or name.startswith(f"{kind}_")  # hard_30 is a variant of hard


@pytest.mark.parametrize("option", OPTIONS)
def test_a_file_of_conf_and_its_schema_have_the_same_keys(option):
    """A key that only the schema has is one that older runs lack, with a default."""
    group = option.split("=")[0]
    values = composed(option)[group]
    fields = dataclasses.fields(SCHEMAS[group][values.name])
    required = {field.name for field in fields if not has_default(field)}
    assert required <= set(values) <= {field.name for field in fields}


def has_default(field):
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def test_the_embedding_command_takes_the_same_configuration(main_job):
    job, rest = take_embed_job(compose("embed"))
    assert parse(rest) == parse(main_job)
    assert job == EmbedJob()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["dry_run=maybe"], "embed.dry_run"),
        (["import.vectors=a.npy", "verify=true"], "three jobs; ask for one at a time"),
        (["+import.what=1"], "embed.importing.what"),
    ],
)
def test_embedding_jobs_out_of_range_are_named(overrides, reason):
    with pytest.raises(UserError, match=re.escape(reason)):
        take_embed_job(compose("embed", overrides=overrides))


def test_every_name_of_a_schema_is_an_option():
    assert {f"{group}={name}" for group, schemas in SCHEMAS.items() for name in schemas} <= set(OPTIONS)


@pytest.fixture(scope="module")
def made(small):
    return prepare(small, settings_of("split.part=all").split)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_instantiates(made, name):
    settings = settings_of(f"model={name}", *(["model.max_gigabytes=0"] if name == "dcdt_encoder" else []))
    add_inputs(made.tables, settings, made.collection, progress=False)
    made.tables.images = made.tables  # which image reads
    model = make_model(settings, made.tables)
    assert isinstance(model, look_up(MODELS, name))
    assert isinstance(model.trained_by_epochs, bool)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_instantiates_and_is_called_alike(name):
    loss = look_up(LOSSES, name)(settings_of(f"loss={name}").loss)
    assert loss.measure in ("distance", "similarity")
    assert isinstance(loss.needs_teacher, bool)
    measured, label = torch.rand(3, 5), torch.zeros(3, 5).index_fill_(1, torch.tensor(0), 1)
    found = loss(measured, label, torch.ones(3, 5), torch.rand(3, 5))
    assert found.shape in ((3,), (3, 5))
    assert found.isfinite().all()


ANOTHER = [
    (["model=dcdt_residual", "model.rank=0"], "model.rank is 0; it must be a whole number from 1 to 65,536"),
    (
        ["model=dcdt", "model.width=1000000000"],
        "model.width is 1000000000; it must be a whole number from 1 to 65,536",
    ),
    (["trainer.max_epochs=1000000000000"], "trainer.max_epochs is 1000000000000; at most 2,147,483,647 is read"),
    (["embedder=local", "embedder.layer_weights=[1,{a: 1}]"], "layer_weights"),
    (["model=dcdt_residual", "model.shared=some"], "model.shared is 'some'; choose one of all, fields, none"),
    (["model=dcdt_residual", "model.dropout=1"], "model.dropout is 1.0"),
    (["model=dcdt_residual", "model.attention=keys"], "model.attention is 'keys'; choose one of none, query"),
    (["model=dcdt_residual", "model.fusion=mean"], "model.fusion is 'mean'; choose one of sum, concat"),
    (["model=dcdt_residual", "model.attention=query", "model.fusion=concat"], "model.fusion is 'concat'"),
    (
        ["model=dcdt", "model.attention=candidates"],
        "model.fusion is 'concat'; choose one of sum, which attention=candidates goes with",
    ),
    (["model=dcdt_residual", "model.fields=[]"], "model.fields is []"),
    (["loss=infonce", "loss.positives=all"], "loss.positives is 'all'; choose one of each, any"),
    (["loss=infonce", "loss.temperature=0"], "loss.temperature is 0.0; it must be at least 0.01"),
    (["loss=infonce", "loss.temperature=nan"], "loss.temperature is nan"),
    (["loss=triplet", "loss.margin=0"], "loss.margin is 0.0; it must be above 0"),
    (["loss=triplet", "loss.margin=2.1"], "loss.margin is 2.1"),
    (["sampler=window", "sampler.negatives=0"], "sampler.negatives is 0"),
    (["sampler=window", "sampler.start=-1"], "sampler.start is -1; it must be a number of at least 0"),
    (["sampler=window", "sampler.size=0"], "sampler.size is 0"),
    (["sampler=window", "sampler.guard=1.01"], "sampler.guard is 1.01; it must be above 0 and at most 1"),
    (["sampler=dynamic_hard", "sampler.pool_fraction=2"], "sampler.pool_fraction is 2.0"),
    (["sampler=dynamic_hard", "sampler.warm_up=-1"], "sampler.warm_up is -1"),
    (["sampler=dynamic_hard", "sampler.every=0"], "sampler.every is 0; it must be a number of at least 1"),
    (["sampler=mixed", "sampler.negatives=1"], "sampler.negatives is 1; it must be a number of at least 2"),
    (["sampler=mixed", "sampler.hard_share=1"], "sampler.hard_share is 1.0; it must be above 0 and below 1"),
]


@pytest.mark.parametrize(("overrides", "reason"), slow_rows_but(ANOTHER[:8], ANOTHER))
def test_a_value_out_of_range_of_another_option_is_named(overrides, reason):
    with pytest.raises(UserError) as caught:
        settings_of(*overrides)
    assert reason in str(caught.value)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_instantiates(made, name):
    pool = training_pool(made.collection, made.split)
    sampler = look_up(SAMPLERS, name)(settings_of(f"sampler={name}").sampler, pool, made.tables)
    drawn = sampler.draw(torch.Generator())
    rows = torch.cat([sampler.pairs, drawn], dim=1)
    batch = sampler.batch(rows[:8])
    explicit = {"query", "video", "negatives", "distinct", "position"}
    shared = {"query", "columns", "label", "weight", "n_positives"}
    assert batch.keys() in (explicit, shared)
    assert drawn.shape[1] == getattr(sampler, "negatives", 0)
    assert isinstance(sampler.should_refresh(0), bool)
    assert all(isinstance(value, int | float) for value in sampler.statistics().values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_file_says_first_what_choosing_it_means(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    said = next(line for line in lines if not line.startswith("# @package"))
    assert said.startswith("# ")
    assert len(said.split()) >= 3
    assert len(lines) > 1


def paper(settings):
    """The paper to the letter, as the specification completes it."""
    assert (settings.model.name, settings.model.fields) == ("dcdt", ["title", "text"])
    assert (settings.model.width, settings.model.dropout) == (256, 0.2)
    assert (settings.model.attention, settings.model.fusion) == ("none", "concat")
    assert (settings.loss.name, settings.loss.margin, settings.loss.squared) == ("contrastive", 1.0, False)
    sampler = settings.sampler
    assert (sampler.name, sampler.negatives, sampler.pool_fraction, sampler.pool_limit) == ("hard", 4, 0.3, 200)
    optimizer = settings.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.schedule) == (1e-3, 0.01, "cosine")
    assert (settings.batch_size, settings.trainer.max_epochs, settings.trainer.validate_every) == (16, 200, 1)
    assert (settings.callbacks.patience, settings.primary_metric) == (15, "val/mrr")
    assert (settings.split.name, settings.split.part, settings.split.n_folds) == ("paper", "all", 10)


def best(settings):
    """BM25 fused with the ridge towers, the weight on all judged queries; one set for all collections."""
    model = settings.model
    assert (model.name, model.first.name, model.second.name) == ("hybrid", "bm25", "dcdt_ridge")
    assert (model.fusion, model.tune_on) == ("convex", "judged")
    assert (model.second.whiten, model.second.penalty) == ("soft", None)
    assert settings.split.name == "query"


def residual(settings):
    """Towers that start as the identity, with what they are trained by."""
    model = settings.model
    assert (model.name, model.rank, model.shared, model.dropout) == ("dcdt_residual", 64, "all", 0)
    assert (model.attention, model.fusion) == ("none", "sum")
    assert (settings.sampler.name, settings.loss.name, settings.loss.positives) == ("catalogue", "infonce", "each")
    assert (settings.loss.temperature, settings.loss.learn_temperature) == (0.05, False)
    optimizer = settings.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.schedule) == (3e-4, 0.01, "linear")
    assert (settings.batch_size, settings.trainer.max_epochs, settings.split.name) == (64, 20, "query")


def two_stage_joint(settings):
    """The joint network over the recalled videos, trained by a listwise softmax of z-scores."""
    model = settings.model
    assert (model.name, model.recall.name, model.lexical, model.depth) == ("two_stage_joint", "hybrid", None, 50)
    assert (model.rank, model.width, model.dropout) == (16, 16, 0.5)
    assert (settings.sampler.name, settings.loss.name, settings.loss.temperature) == ("catalogue", "infonce", 1)
    optimizer = settings.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.schedule) == (3e-4, 1.0, "linear")
    assert (settings.batch_size, settings.trainer.max_epochs, settings.split.name) == (32, 20, "query")


def encoder(settings):
    """The last layers of the encoder by a softmax over the batch, with warm-up."""
    assert getattr(settings.model, "second", settings.model).name == "dcdt_encoder"
    assert (settings.sampler.name, settings.loss.name, settings.batch_size) == ("in_batch", "infonce", 32)
    assert (settings.optimizer.lr, settings.optimizer.schedule, settings.optimizer.warmup_steps) == (
        1e-4,
        "linear",
        0.1,
    )


EXPERIMENTS = {
    **{"paper": paper, "best": best, "residual": residual, "two_stage_joint": two_stage_joint},
    **{"encoder": encoder, "hybrid_encoder": encoder},
}
SEARCHES = {"search"}  # what Optuna draws from is no list of choices


SWEEPS = {  # the choices that an experiment compares, beside the ten folds
    "ablation_attention": {"model": ["zero_shot", "dcdt", "dcdt_attention", "dcdt_candidates"]},
    "ablation_fusion": {"model": ["zero_shot", "dcdt", "dcdt_sum"]},
    "ablation_loss": {
        "model": ["zero_shot", "dcdt"],
        "loss.squared": ["False", "True"],
        "loss.margin": ["0.5", "1.0", "1.4"],
    },
    "ablation_modality": {
        "model": ["zero_shot", "dcdt"],
        "model.fields": ["[title]", "[text]", "[title,text]", "[title,text,tags]"],
    },
    "ablation_sampler": {
        "model": ["zero_shot", "dcdt"],
        "sampler": ["random", "hard_10", "hard_30", "hard_50", "hard_100"],
    },
    "ablation_transcript": {
        "model": [
            *("zero_shot", "zero_shot_transcript", "bm25", "bm25_transcript", "bm25_passages", "hybrid_passages"),
            *("hybrid_transcript", "hybrid_towers", "hybrid_towers_transcript", "dcdt_ridge", "dcdt_ridge_transcript"),
        ]
    },
    "comparison": {
        "model": [
            *("zero_shot", "zero_shot_whitened", "bm25", "hybrid", "collaborative"),
            *("single_tower", "dcdt", "dcdt_ridge", "hybrid_towers"),
        ]
    },
    "federated": {
        "model": [
            *("zero_shot", "dcdt_ridge", "federated", "federated_local"),
            *("federated_epsilon_8", "federated_epsilon_3", "federated_epsilon_1"),
        ]
    },
    "learning_curve": {
        "model": ["zero_shot", "dcdt_ridge", "hybrid_towers"],
        "split.train_queries": ["16", "32", "64", "128", "256", "null"],
    },
    "two_stage": {"model": ["hybrid_towers", "two_stage", "dcdt_ridge", "two_stage_ridge"]},
    "final": {
        "model": [
            *("zero_shot", "zero_shot_whitened", "bm25", "hybrid", "dcdt_ridge", "hybrid_towers", "two_stage", "dcdt")
        ]
    },
}


@pytest.mark.parametrize("option", model_presets())
def test_the_options_of_a_model_are_read_as_hydra_reads_them_and_name_it(option):
    settings = settings_of(f"model={option}")
    assert model_presets()[option] == OmegaConf.to_container(composed(f"model={option}").model)
    assert settings.option == option


@pytest.mark.parametrize(
    ("model", "option"),
    [
        ({"name": "hybrid", "second": {"name": "dcdt_ridge"}}, "hybrid_towers"),
        ({"name": "dcdt", "width": 8, "attention": "query"}, "dcdt_attention"),
        ({"name": "dcdt", "width": 8, "key_of_later": 1}, "dcdt"),
        ({"name": "tower"}, "tower"),
        ({}, "model"),
        (None, "model"),
    ],
)
def test_a_model_that_is_no_option_has_the_name_of_the_nearest(model, option):
    assert model_option(model) == option


def test_the_folder_of_a_run_is_named_by_its_option():
    config = compose("config", ["model=hybrid_towers", "model.k=50", "outputs=/x"], return_hydra_config=True)
    assert re.fullmatch(r"/x/[\d_-]+_hybrid_towers_linear_algebra_\w+", config.hydra.run.dir)


def test_a_configuration_of_before_the_report_is_read():
    config = OmegaConf.to_container(compose("config", overrides=["data.path=/x", "data.cache=/y"]))
    del config["sweep"]
    assert parse(DictConfig(config)).sweep.report
    with pytest.raises(UserError, match=r"sweep\.report is 'maybe'; it must be true or false"):
        settings_of("sweep.report=maybe")


def test_every_experiment_has_a_test():
    assert {path.stem for path in (CONF / "experiment").glob("*.yaml")} == {*EXPERIMENTS, *SWEEPS, *SEARCHES}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_what_it_says(name):
    settings = settings_of(f"experiment={name}")
    EXPERIMENTS[name](settings)
    assert settings.experiment_name == name


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_compares_what_it_says_on_ten_folds(name):
    config = compose("config", overrides=[f"experiment={name}"], return_hydra_config=True)
    params = [f"{key}={value}" for key, value in config.hydra.sweeper.params.items()]
    choices = {
        override.get_key_element(): list(override.sweep_string_iterator())
        for override in OverridesParser.create().parse_overrides(params)
        if override.is_sweep_override()
    }
    assert choices.pop("split.index") == [str(index) for index in range(10)]
    assert choices == SWEEPS[name]
    for choice in [f"{key}={value}" for key, values in choices.items() for value in values]:
        settings = settings_of(f"experiment={name}", choice)
        assert (settings.experiment_name, settings.split.name, settings.split.n_folds) == (name, "folds", 10)


def test_what_stops_training_is_the_primary_metric_unless_it_is_named():
    assert settings_of("primary_metric=val/map").monitor == "val/map"
    assert settings_of("callbacks.monitor=val/loss").monitor == "val/loss"
    assert settings_of("callbacks.monitor=val/ndcg@10").monitor == "val/ndcg@10"
    with pytest.raises(UserError, match=r"callbacks.checkpoint_by=monitor needs one; callbacks.monitor is 'none'"):
        settings_of("callbacks.monitor=none", "callbacks.checkpoint_by=monitor")


def test_an_experiment_can_be_changed_on_the_command_line():
    settings = settings_of("experiment=paper", "split=folds", "loss.margin=0.5", "seed=3")
    assert (settings.split.name, settings.loss.margin, settings.seed) == ("folds", 0.5, 3)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.width=0", "model.width is 0; it must be a whole number from 1 to 65,536"),
        ("ks=5", "ks is 5; it must be a list"),
        ("optimizer=null", "optimizer.name is None; choose one of adamw, nadam, sgd"),
        ("batch_size=2.5", "batch_size is 2.5; it must be a whole number"),
        ("optimizer.lr=nan", "optimizer.lr is nan"),
        ("outputs=null", "outputs is None; it must name a folder"),
        ("trainer.devices=2", "trainer.devices is 2"),
        ("model.dropout=1", "model.dropout is 1.0; it must be at least 0 and below 1"),
        ("model.dropout=-0.1", "model.dropout is -0.1"),
        ("model.dropout=nan", "model.dropout is nan"),
        ("model.attention=keys", "model.attention is 'keys'; choose one of none, query"),
        ("model.fusion=mean", "model.fusion is 'mean'; choose one of concat, sum"),
        ("model.fields=[]", "model.fields is []; it must name at least one field"),
        ("model.fields=[text,text]", "model.fields is ['text', 'text']"),
        ("loss.margin=0", "loss.margin is 0.0; it must be above 0 and at most 2"),
        ("loss.margin=2.01", "loss.margin is 2.01"),
        ("loss.margin=nan", "loss.margin is nan"),
        ("sampler.negatives=0", "sampler.negatives is 0; it must be a number of at least 1"),
        ("sampler.pool_fraction=0", "sampler.pool_fraction is 0.0; it must be above 0 and at most 1"),
        ("sampler.pool_fraction=1.1", "sampler.pool_fraction is 1.1"),
        ("sampler.pool_limit=0", "sampler.pool_limit is 0"),
        ("split.n_folds=0", "split.n_folds is 0; it must be a number of at least 1"),
        ("split.part=sealed", "only experiment=final scores the sealed quarter"),
        ("split.part=closed", "split.part is 'closed'; choose one of open, sealed, all"),
        ("embedder.batch_tokens=0", "embedder.batch_tokens is 0"),
        ("embedder.max_tokens=1", "embedder.max_tokens is 1; it must be a whole number from 2 to 1,000,000"),
        ("embedder.layer_weights=[]", "embedder.layer_weights is []"),
        ("embedder.layer_weights=[0,0]", "embedder.layer_weights is [0.0, 0.0]"),
        ("embedder.layer_weights=[1,-1]", "embedder.layer_weights is [1.0, -1.0]"),
        ("optimizer.lr=0", "optimizer.lr is 0.0"),
        ("optimizer.lr=-1", "optimizer.lr is -1.0"),
        ("optimizer.weight_decay=-1", "optimizer.weight_decay is -1.0; it must be a number of at least 0"),
        ("optimizer.schedule=step", "optimizer.schedule is 'step'; choose one of cosine, linear, constant"),
        ("trainer.devices=0", "trainer.devices is 0"),
        ("trainer.devices=[0,0]", "trainer.devices is [0, 0]; it must be auto, a whole number"),
        ("trainer.devices=[]", "trainer.devices is []"),
        ("trainer.devices=[0,1]", "trainer.devices is [0, 1] and trainer.num_nodes 1; trainer=auto takes one device"),
        ("trainer.devices=true", "trainer.devices is True"),
        ("trainer.devices=some", "trainer.devices is 'some'"),
        ("trainer.accelerator=npu", "trainer.accelerator is 'npu'; choose one of auto, cpu, gpu, cuda, mps"),
        ("trainer.precision=16-true", "trainer.precision is '16-true'; choose one of 32-true, bf16-mixed"),
        ("trainer.precision=8", "trainer.precision is '8'"),
        ("trainer.max_epochs=0", "trainer.max_epochs is 0"),
        ("trainer.validate_every=0", "trainer.validate_every is 0"),
        ("trainer.threads=-1", "trainer.threads is -1; it must be a whole number from 0 to 1,024"),
        ("logger.mode=on", "logger.mode"),
        ("callbacks.patience=0", "callbacks.patience is 0"),
        (
            "callbacks.monitor=val/recall@7",
            "callbacks.monitor is 'val/recall@7'; choose one of val/mrr, val/map, val/rec",
        ),
        ("callbacks.monitor=train/loss", "val/ndcg@10, val/loss, none, or null"),
        ("callbacks.checkpoint_by=last", "callbacks.checkpoint_by is 'last'; choose one of primary_metric, monitor"),
        ("callbacks.collapse_cosine=0", "callbacks.collapse_cosine is 0.0"),
        ("callbacks.collapse_cosine=1.1", "callbacks.collapse_cosine is 1.1"),
        ("batch_size=0", "batch_size is 0; it must be a number of at least 1"),
        ("batch_size=null", "batch_size is None"),
        ("trials=0", "trials is 0"),
        ("seed=-1", "seed is -1; it must be a whole number from 0 to 4294967295"),
        ("seed=4294967296", "seed is 4294967296"),
        ("seed=true", "seed is True"),
        ("seed=null", "seed is None"),
        ("ks=[]", "ks is []; it must be a list of whole numbers of at least 1"),
        ("ks=[0,1]", "ks is [0, 1]"),
        ("ks=[1.5]", "ks is [1.5]"),
        (
            "primary_metric=val/recall@7",
            "primary_metric is 'val/recall@7'; choose one of val/mrr, val/map, val/recall@1",
        ),
        ("primary_metric=test/mrr", "primary_metric is 'test/mrr'"),
        ("model.name=tower", "model.name is 'tower'; choose one of dcdt"),
        ("model.width=wide", "model.width is 'wide'; it must be a whole number from 1 to 65,536"),
        ("trainer.max_epochs=1.5", "trainer.max_epochs is 1.5; it must be a whole number of at least 1"),
        ("loss.squared=maybe", "loss.squared is 'maybe'; it must be true or false"),
        ("model.fields=title", "model.fields"),
        ("model.heads=4", "unknown setting model.heads; model has fields, width, dropout, attention, fusion"),
        ("optimizer.momentum=0.9", "unknown setting optimizer.momentum; optimizer has lr, weight_decay, schedule"),
        ("extra=1", "unknown setting extra"),
        ("seed=${nowhere}", "the configuration cannot be resolved"),
    ],
)
def test_a_value_out_of_range_is_named(main_job, override, reason):
    with pytest.raises(UserError) as caught:
        parse(changed(main_job, override))
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("overrides", "devices", "precision"),
    [
        (["trainer=ddp", "trainer.devices=auto", "trainer.precision=16"], "auto", "16-mixed"),
        (["trainer=ddp", "trainer.devices=[1,3]", "trainer.precision=bf16"], [1, 3], "bf16-mixed"),
        (["trainer=ddp", "trainer.devices='1,3'"], [1, 3], "32-true"),
        (["trainer=gpu", "trainer.devices=[2]", "trainer.precision=32"], [2], "32-true"),
        (["trainer=gpu", "trainer.devices=-1"], "auto", "bf16-mixed"),
    ],
)
def test_devices_and_precision_are_what_lightning_takes(overrides, devices, precision):
    trainer = settings_of(*overrides).trainer
    assert (trainer.devices, trainer.precision) == (devices, precision)


def test_files_need_a_path():
    with pytest.raises(UserError, match=r"data\.path is not set; give it as data\.path=VALUE"):
        parse(compose("config", overrides=["data=files"]))


def test_more_folds_than_one():
    with pytest.raises(UserError, match=r"split.n_folds is 1; it must be a number of at least 2"):
        settings_of("split=folds", "split.n_folds=1")
    assert settings_of("split=time", "split.n_folds=1").split.n_folds == 1


@pytest.mark.parametrize(
    ("override", "place", "key"),
    [
        ("seed=0", None, "seed"),
        ("split.index=0", "split", "index"),
        ("model.dropout=0", "model", "dropout"),
        ("optimizer.weight_decay=0", "optimizer", "weight_decay"),
        ("trainer.threads=0", "trainer", "threads"),
        ("loss.squared=false", "loss", "squared"),
        ("callbacks.progress=false", "callbacks", "progress"),
    ],
)
def test_nothing_is_a_value_too(main_job, override, place, key):
    settings = parse(changed(main_job, override))
    value = getattr(getattr(settings, place) if place else settings, key)
    assert value == 0
    assert value is not None


@pytest.mark.parametrize("value", [0, 1, 2**32 - 1])
def test_a_seed_is_kept_as_given(main_job, value):
    assert parse(changed(main_job, f"seed={value}")).seed == value


def test_a_stored_configuration_without_a_value_names_it(main_job):
    config = main_job.copy()
    del config["seed"]
    with pytest.raises(UserError, match="seed is not set"):
        parse(config)


@pytest.mark.parametrize(
    ("group", "schema"),
    [(group, schema) for group, schemas in SCHEMAS.items() for schema in dict.fromkeys(schemas.values())]
    + [(group, entry.schema) for group, entry in SINGLE.items() if group != "sweep"],  # which older ones lack
)
def test_what_is_missing_is_named(group, schema):
    with pytest.raises(UserError, match=rf"{group}\.\w+ is not set; give it as {group}\.\w+=VALUE"):
        validate(schema, DictConfig({}), group)


def test_vectors_of_other_collections_are_kept_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("DCDT_CACHE", "/somewhere")
    monkeypatch.setenv("DCDT_OUTPUTS", "/elsewhere")
    settings = parse(compose("config", overrides=["data=files", "data.path=/x"]))
    assert (settings.data.cache, settings.outputs) == ("/somewhere", "/elsewhere")
    monkeypatch.delenv("DCDT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    settings = parse(compose("config", overrides=["data=files", "data.path=/x"]))
    assert settings.data.cache == "/cache/dcdt/embeddings"


def test_a_configuration_read_back_is_the_same(tmp_path):
    config = compose("config", overrides=["experiment=paper", "seed=7"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    assert parse(OmegaConf.load(tmp_path / "config.yaml")) == parse(config)


def test_a_group_that_is_a_list_is_refused_in_words(main_job):
    config = main_job.copy()
    config.loss = ["contrastive"]
    with pytest.raises(UserError, match=r"loss\.name is None"):
        parse(config)
