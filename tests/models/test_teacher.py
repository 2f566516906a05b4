"""A loss whose teacher is another model: what it says of the training queries."""

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from support import prepare

from baselines.bm25 import BM25
from dcdt.config import config_folder, parse, register_resolvers
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.models.query_batch import query_batch
from dcdt.samplers.catalogue import CatalogueSampler
from dcdt.samplers.pool import training_pool
from dcdt.training.build import make_model
from dcdt.utils.errors import UserError


@pytest.fixture(scope="module")
def made(small):
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        yield prepare(small, SplitConfig("query", 0, 10, "all"))


def taught(made, *overrides):
    chosen = ["data.path=/x", "experiment=residual", "sampler=catalogue", "optimizer.schedule=constant", *overrides]
    settings = parse(compose("config", chosen))
    model = make_model(settings, made.tables)
    sampler = CatalogueSampler(settings.sampler, training_pool(made.collection, made.split), made.tables)
    made.data = RankingDataModule(made.collection, made.split, made.pairs, sampler, 16, 0)
    model.prepare(made.data)
    model.record_loss = lambda *given: None
    return model, settings


def test_bm25_teaches_its_z_scores_in_units_of_the_frozen_cosine(made):
    model, settings = taught(made, "loss=margin_mse_bm25")
    bm25 = BM25(settings.loss.teacher, made.tables)
    bm25.prepare(made.data)
    rows = torch.cat([torch.from_numpy(np.unique(made.split.pairs[:, 0]))[:4], made.data.sides["val"].queries[:3]])
    scores = bm25.score(query_batch(made.collection, made.tables, rows)).double().numpy()
    columns = torch.tensor([3, 0, 11])
    found = model._teacher_similarities(rows, columns)
    each = model._teacher_similarities(rows, columns.expand(7, 3))
    assert torch.equal(found, each)
    for at, row in enumerate(rows.tolist()):
        cosine = np.array(
            [float(torch.cosine_similarity(made.tables.queries[row], v, dim=0)) for v in made.tables.frozen]
        )
        wanted = (scores[at] - scores[at].mean()) / scores[at].std() * cosine.std()
        np.testing.assert_allclose(found[at], wanted[columns], atol=1e-5)


def test_a_teacher_is_what_the_towers_learn_from(made):
    frozen, _ = taught(made, "loss=margin_mse")
    told, _ = taught(made, "loss=margin_mse_bm25")
    batch = made.data.sampler.batch(made.data.sampler.pairs[:16])
    for model, learns in ((frozen, False), (told, True)):
        loss = model.training_step(batch, 0)
        loss.backward()
        assert (loss.item() > 1e-6) == learns
        assert (model.towers[0].outer.weight.grad.abs().max().item() > 1e-6) == learns
    assert not any(name.startswith("_teacher_scores") for name in told.state_dict())


def test_a_teacher_that_is_trained_or_reads_other_fields_is_refused(made):
    with pytest.raises(UserError, match="loss=margin_mse takes models that need no epochs; dcdt is trained"):
        taught(made, "loss=margin_mse", "model@loss.teacher=dcdt")
    with pytest.raises(UserError, match="zero_shot reads 'tags', the model itself only title, text"):
        taught(made, "loss=margin_mse", "model@loss.teacher=zero_shot", "loss.teacher.fields=[title,tags]")
    with pytest.raises(UserError, match=r"loss\.teacher\.k1 is -1"):
        parse(compose("config", ["data.path=/x", "loss=margin_mse_bm25", "loss.teacher.k1=-1"]))
