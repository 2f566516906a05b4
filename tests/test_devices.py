"""Every model on a device that is not the CPU: the CPU's results, no mixed devices, and hardly a wait."""

import json
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from models.test_history import make_folder as make_histories
from separate_device import NAME, reads, separate
from support import make_collection, prepare, slow_but

from dcdt.config import config_folder, parse, register_resolvers
from dcdt.config.registry import SAMPLERS, look_up
from dcdt.data import datamodule
from dcdt.data.beir import load_collection
from dcdt.data.datamodule import RankingDataModule
from dcdt.models import history, history_tower
from dcdt.models.recommender import Recommender
from dcdt.runs.folder import RunFolder
from dcdt.samplers.pool import training_pool
from dcdt.training import build, fit
from dcdt.training.experiment import run
from dcdt.training.loggers import choose_logger
from dcdt.training.loggers.base import RunLogger

TRAINED = ("dcdt", "dcdt_residual", "single_tower")
LOSSES = ("contrastive", "infonce", "triplet", "margin_mse", "margin_mse_bm25")
SAMPLED = ("random", "hard", "dynamic_hard", "window", "mixed", "in_batch", "catalogue")
FITTED = (
    *("zero_shot", "zero_shot_whitened", "bm25", "dcdt_ridge", "hybrid", "hybrid_towers", "two_stage"),
    "two_stage_ridge",
)
WIDTH = 48  # numbers of a vector that are read: closed forms take seconds over 1536
HISTORY = ("dcdt_history", "dcdt_hierarchical", "zero_shot_history", "collaborative", "hybrid_history", "hybrid_ease")
SMALL = ("trainer.max_epochs=2", "batch_size=16", "ks=[1,5]", "callbacks.progress=false", "logger=none")
SAME = "model.dropout=0.0"  # each device drops outputs of its own: it encodes other rows, or the same ones more often
WIDTHS = {
    "dcdt": ("model.width=8", SAME),
    "dcdt_residual": ("model.rank=4", SAME),
    "single_tower": ("model.width=8", SAME),
    "dcdt_attention": (SAME,),
}
JOINT = ("model=two_stage_joint", "model.depth=5", "model.rank=4", "model.width=8")
JOINT += ("model.penalty=0.1", "model.recall.second.penalty=1.0")  # two_stage chooses them
HELD_OUT = [("model.fusion=rrf",), ("model.attention=query", "model=dcdt", SAME), JOINT]  # ranked among some candidates


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_collection(tmp_path_factory.mktemp("devices") / "c", n_videos=24, n_queries=60, twins=2)


@lru_cache
def configured(*overrides):
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return parse(compose("config", overrides=["trainer=cpu", *SMALL, *overrides]))


class CountReads(L.Callback):
    """Names of the reads during the training of each epoch and in each chunk of an evaluation."""

    def __init__(self):
        self.training, self.chunks = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.start = len(reads) if batch_idx == 0 else self.start

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.training.append(reads[self.start :])

    def on_validation_batch_start(self, *_):
        self.chunk = len(reads)

    def on_validation_batch_end(self, *_):
        self.chunks.append(reads[self.chunk :])

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start
    on_test_batch_end = on_predict_batch_end = on_validation_batch_end


class Cut(L.Callback):
    """Cuts a training off as its third epoch begins."""

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            raise RuntimeError("cut off")


def on_device(make_trainer, accelerator, device, first=(), last=()):
    """`setup.make_trainer` for a device: Lightning's strategy for a single device knows its own devices only."""

    def make(settings, callbacks):
        trainer_config = replace(settings.trainer)
        trainer_config.accelerator = accelerator  # of a test, which the schema does not know
        trainer = make_trainer(replace(settings, trainer=trainer_config), [*first, *callbacks, *last])
        trainer.strategy._root_device = device
        if settings.trainer.precision == "bf16-mixed":
            trainer.strategy.precision_plugin.device = device.type
        return trainer

    return make


def outcome(settings, folder, state, accelerator, monkeypatch, dtype=torch.float32, cut=False):
    """What a run of these settings ends with, and what it waited for; with `cut` it is cut off once and resumed."""
    device = torch.device("cpu") if accelerator == "cpu" else torch.device(NAME, 0)
    made = prepare(folder, settings.split, settings.fields, settings.model.name not in HISTORY, WIDTH)
    tables = made.tables.to(dtype=dtype)
    pool = training_pool(made.collection, made.split, device)
    sampler = look_up(SAMPLERS, settings.sampler.name)(settings.sampler, pool, tables)
    data = RankingDataModule(
        made.collection, made.split, made.pairs, sampler, settings.batch_size, settings.seed, settings.ks
    )
    counter, cuts = CountReads(), [Cut()] if cut else []
    with monkeypatch.context() as patched:
        patched.setattr(build, "make_trainer", on_device(build.make_trainer, accelerator, device, cuts, [counter]))
        if cut:
            with pytest.raises(RuntimeError, match="cut off"):
                fit.train(settings, tables, data, RunLogger(), state)
            cuts.clear()
            assert state.is_file()
        trained = fit.train(settings, tables, data, RunLogger(), state)
    reference = build.reference_results(tables, trained.trainer, data)
    trained.trainer.test(trained.model, datamodule=data, verbose=False)
    predicted = trained.trainer.predict(trained.model, datamodule=data)
    assert tables.device == device  # where Lightning, which moves models, has left them
    return SimpleNamespace(
        history=trained.history,
        value=trained.value,
        statistics=trained.model.statistics(),
        sides={name: vars(side) for name, side in trained.model.results.items()},
        reference={name: side.metrics for name, side in reference.items()},
        predicted=[tuple(part.cpu() for part in chunk) for chunk in predicted],
        counter=counter,
    )


def check(settings, folder, tmp_path, monkeypatch, waits=False, **options):
    """Run on both devices: the results are the CPU's, nothing mixes devices, and the CPU hardly waits.

    In training it may wait if `waits`, as where passages are drawn.
    """
    monkeypatch.setattr(datamodule, "MAX_CHUNK_SCORES", 24 * 7)  # chunks of seven queries
    expected = outcome(settings, folder, tmp_path / "cpu", "cpu", monkeypatch, **options)
    with separate():
        found = outcome(settings, folder, tmp_path / "device", NAME, monkeypatch, **options)
    for name in ("history", "value", "statistics", "sides", "reference", "predicted"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
    assert waits or not any(found.counter.training), found.counter.training
    assert len(found.counter.chunks) > 5
    assert max(map(len, found.counter.chunks)) <= 1, found.counter.chunks


@pytest.fixture(autouse=True)
def few_penalties(monkeypatch):
    """Three penalties to choose from, since each is many operations and all of them run the same code."""
    for module, penalties in (("two_stage", (0.01, 0.1)), ("ridge_towers", (1.0, 30.0))):
        monkeypatch.setattr(f"dcdt.models.{module}.PENALTIES", (*penalties, float("inf")))


def combinations():
    """Every model with every loss and sampler; each of them at least once among the fast tests."""
    for i, loss in enumerate(LOSSES):
        for j, sampler in enumerate(SAMPLED):
            for k, model in enumerate(TRAINED):
                fast = j % len(LOSSES) == i and j % len(TRAINED) == k
                yield pytest.param(model, loss, sampler, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize(("model", "loss", "sampler"), combinations())
def test_every_trained_model_loss_and_sampler(small, tmp_path, monkeypatch, model, loss, sampler):
    few = ("sampler.warm_up=1", "sampler.every=1") if sampler == "dynamic_hard" else ()
    settings = configured(f"model={model}", f"loss={loss}", f"sampler={sampler}", *few, *WIDTHS[model])
    check(settings, small, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES[:3])
def test_the_joint_head(small, tmp_path, monkeypatch, loss):
    check(configured(*JOINT, f"loss={loss}"), small, tmp_path, monkeypatch)


SPOKEN = [
    ("model=zero_shot_transcript", "model.passages=softmax"),
    ("model=dcdt_ridge_transcript",),
    ("model=dcdt", "model.fields=[title,text,transcript]", "model.passages=softmax", *WIDTHS["dcdt"]),
    ("model=dcdt_residual", "model.fields=[transcript]", "sampler=catalogue", *WIDTHS["dcdt_residual"]),
]


@pytest.mark.parametrize("overrides", slow_but(SPOKEN[2:3], SPOKEN))
def test_passages(tmp_path, monkeypatch, overrides):
    folder = make_collection(tmp_path / "c", n_videos=24, n_queries=60, spoken=20)
    check(configured(*overrides), folder, tmp_path, monkeypatch, waits="model=dcdt" in overrides[0])


# All videos are candidates, or the held-out ones.
@pytest.mark.parametrize("split", slow_but(["query"], ["query", "video"]))
@pytest.mark.parametrize("model", slow_but(["zero_shot", "dcdt_ridge", "hybrid"], FITTED))
def test_every_model_without_epochs(small, tmp_path, monkeypatch, model, split):
    check(configured(f"model={model}", f"split={split}", "ks=[1,2]"), small, tmp_path, monkeypatch)


@pytest.mark.parametrize("overrides", slow_but(HELD_OUT[:1], HELD_OUT))
def test_some_candidates(small, tmp_path, monkeypatch, overrides):
    model = () if any(part.startswith("model=") for part in overrides) else ("model=hybrid",)
    check(configured(*model, *overrides, "split=video", "ks=[1,2]"), small, tmp_path, monkeypatch)


@pytest.mark.parametrize("asked", slow_but([True], [True, False]))
@pytest.mark.parametrize("model", slow_but(HISTORY[:1], HISTORY))
def test_every_model_of_learners(tmp_path, monkeypatch, model, asked):
    folder = make_histories(tmp_path / "c", asked=asked)
    split = ("split=query",) if asked else ("split=time",)
    settings = configured(f"model={model}", *split)
    check(settings, folder, tmp_path, monkeypatch)


def test_the_tower_over_histories_waits_once_an_epoch(tmp_path, monkeypatch):
    waits, fit_tower = [], history.fit_tower

    def counted(*arguments, **options):
        before = len(reads)
        losses = fit_tower(*arguments, **options)
        waits.append((len(reads) - before, len(losses)))
        return losses

    monkeypatch.setattr(history, "fit_tower", counted)
    monkeypatch.setattr(history_tower, "BATCH_SIZE", 32)
    with separate():
        settings = configured("model=dcdt_history", "split=query")
        outcome(settings, make_histories(tmp_path / "c"), tmp_path / "device", NAME, monkeypatch)
    [(n_reads, n_epochs)] = waits
    assert n_reads == n_epochs > 1


@pytest.mark.parametrize("precision", slow_but(["bf16-mixed"], ["32-true", "bf16-mixed"]))
@pytest.mark.parametrize("dtype", slow_but([torch.float16], [torch.float16, torch.bfloat16]))
@pytest.mark.parametrize("model", slow_but(["dcdt_residual"], ["dcdt", "dcdt_residual"]))
def test_tables_of_half_precision(small, tmp_path, monkeypatch, model, dtype, precision):
    settings = configured(f"model={model}", f"trainer.precision={precision}", *WIDTHS[model])
    check(settings, small, tmp_path, monkeypatch, dtype=dtype)


@pytest.mark.parametrize("loss", slow_but(["infonce"], LOSSES))
@pytest.mark.parametrize("model", slow_but(["dcdt_attention"], ["dcdt_attention", *TRAINED]))
def test_towers_in_bf16(small, tmp_path, monkeypatch, model, loss):
    settings = configured(f"model={model}", f"loss={loss}", "trainer.precision=bf16-mixed", *WIDTHS.get(model, ()))
    check(settings, small, tmp_path, monkeypatch)


@pytest.mark.parametrize("sampler", slow_but(["dynamic_hard"], ["dynamic_hard", "catalogue"]))
def test_a_resumed_training_ends_as_an_uninterrupted_one(small, tmp_path, monkeypatch, sampler):
    settings = configured(
        *(
            "model=dcdt_residual",
            "loss=infonce",
            "loss.learn_temperature=true",
            f"sampler={sampler}",
            "trainer.max_epochs=4",
        ),
        *("callbacks.checkpoint_seconds=0", *WIDTHS["dcdt_residual"]),
    )
    expected = outcome(settings, small, tmp_path / "cpu", "cpu", monkeypatch)
    with separate():
        found = outcome(settings, small, tmp_path / "device", NAME, monkeypatch, cut=True)
    for name in ("history", "value", "statistics", "sides"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_whole_run_with_its_files_and_its_logger(small, tmp_path, monkeypatch):
    def whole(folder, accelerator):
        device = torch.device("cpu") if accelerator == "cpu" else torch.device(NAME, 0)
        register_resolvers()
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            fixed = (*SMALL[:-1], "trainer=cpu", "trainer.embedding_dtype=float16", "data=files", f"data.path={small}")
            own = (*WIDTHS["dcdt"], f"outputs={tmp_path}", "logger.mode=offline", "logger.samples_every=1")
            config = compose("config", overrides=[*fixed, *own, "sampler=dynamic_hard", "sampler.warm_up=1"])
        with monkeypatch.context() as patched:
            patched.setattr(build, "make_trainer", on_device(build.make_trainer, accelerator, device))
            patched.setattr(build, "mining_device", lambda settings: device)
            logger = choose_logger(config, RunFolder(folder), None)
            run(parse(config), config, RunFolder(folder), logger)
            logger.close("finished")
        return json.loads((folder / "metrics.json").read_text())

    for folder in ("cpu", "device"):
        (tmp_path / folder).mkdir()
    expected = whole(tmp_path / "cpu", "cpu")
    with separate():
        found = whole(tmp_path / "device", NAME)
    assert found == pytest.approx(expected, abs=1e-5, nan_ok=True)
    pictures = [sorted(path.name.split("_")[0] for path in (tmp_path).glob("wandb/*/files/media/images/figures/*.png"))]
    assert len(pictures[0]) >= 6 and len(pictures[0]) % 2 == 0  # as many of the one as of the other


def test_scores_above_the_limit_are_not_kept(small, tmp_path, monkeypatch):
    monkeypatch.setattr("dcdt.models.ranking.MAX_STORED_SCORES", 0)
    sizes, end = [], Recommender.on_test_epoch_end

    def counted(self):
        sizes.extend(
            parts[3].untyped_storage().nbytes() for chunks in self._collector._chunks.values() for parts in chunks
        )
        end(self)

    monkeypatch.setattr(Recommender, "on_test_epoch_end", counted)
    outcome(configured("model=zero_shot"), small, tmp_path / "cpu", "cpu", monkeypatch)
    assert sizes and not any(sizes)


@pytest.mark.parametrize(("teacher", "dtype"), [("bm25", torch.float16), ("dcdt_ridge", torch.float32)])
def test_a_teacher_gets_vectors_that_it_can_read(small, teacher, dtype):
    chosen = ("loss=margin_mse", f"model@loss.teacher={teacher}", "trainer.embedding_dtype=float16")
    settings = configured("model=dcdt", *chosen, "data=files", f"data.path={small}")
    assert build.load_tables(settings, load_collection(settings.data.path)).videos.dtype == dtype


def test_ties_are_ordered_once_a_run(small, tmp_path, monkeypatch):
    calls, tie_order = [], datamodule.tie_order
    monkeypatch.setattr(datamodule, "tie_order", lambda ids: calls.append(len(ids)) or tie_order(ids))
    outcome(configured("model=hybrid_towers"), small, tmp_path / "cpu", "cpu", monkeypatch)
    assert len(calls) == 1


def test_a_batch_that_lightning_moves_is_seen(small, tmp_path, monkeypatch):
    monkeypatch.delattr(RankingDataModule, "transfer_batch_to_device")  # positions on the device, judgments on the CPU
    with pytest.raises(RuntimeError, match="expected all tensors to be on the same device"):
        check(configured("model=zero_shot"), small, tmp_path, monkeypatch)
