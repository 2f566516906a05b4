import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import prepare, quiet_trainer

from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.losses.config import ContrastiveConfig
from dcdt.losses.contrastive import ContrastiveLoss
from dcdt.models.config import DCDTConfig, OptimizerConfig
from dcdt.models.dual_tower import DualTower
from dcdt.samplers.config import DynamicHardSamplerConfig
from dcdt.samplers.dynamic_hard import DynamicHardSampler
from dcdt.samplers.pool import training_pool
from dcdt.training.callbacks.best import BestWeights
from dcdt.training.callbacks.history import History
from dcdt.training.callbacks.last import LastState, random_state, set_random_state


@pytest.fixture(scope="module")
def made(small):
    return prepare(small, SplitConfig("query", 0, 10, "all"))


def fit(made, path, seconds, start=None, epochs=6, every=1):
    """Weights, history and best epoch of a training that draws from every part: dropout, mining, schedule."""
    config = DynamicHardSamplerConfig("dynamic_hard", 4, 0.3, 100, 1, 3)
    sampler = DynamicHardSampler(config, training_pool(made.collection, made.split), made.tables)
    data = RankingDataModule(made.collection, made.split, made.pairs, sampler, 16, 0, (1, 5))
    torch.manual_seed(0 if start is None else 1)
    loss = ContrastiveLoss(ContrastiveConfig("contrastive", 1.0, squared=False))
    model = DualTower(
        DCDTConfig("dcdt", ["title", "text"], 16, 0.2, "none", "concat"),
        made.tables,
        loss,
        OptimizerConfig(0.03, 0.01, "cosine"),
    )
    history, best, last = History(), BestWeights("val/mrr"), LastState(path, seconds)
    trainer = quiet_trainer(max_epochs=epochs, callbacks=[history, best, last], check_val_every_n_epoch=every)
    trainer.fit(model, datamodule=data, ckpt_path=start, weights_only=True)
    return model.state_dict(), history.rows, best.epoch, best.value, last


@pytest.mark.parametrize("every", [1, 2])
def test_training_goes_on_as_if_it_had_not_stopped(made, tmp_path, every):
    path = tmp_path / "last.ckpt"
    whole = fit(made, path, 0, every=every)
    state = torch.load(path, weights_only=True)
    assert state["epoch"] == 4  # the last epoch leaves none: the run is over
    assert "hard" in state["RankingDataModule"] and len(state["callbacks"]) == 3
    resumed = fit(made, tmp_path / "other.ckpt", None, start=path, every=every)
    assert whole[1:4] == resumed[1:4]
    assert len(whole[1]) == 6
    assert all(torch.equal(whole[0][name], resumed[0][name]) for name in whole[0])
    assert not (tmp_path / "other.ckpt").exists()
    assert resumed[4].earlier_seconds > 0


def test_the_clock_decides(made, tmp_path):
    fit(made, tmp_path / "last.ckpt", 3600)
    assert list(tmp_path.iterdir()) == []


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_sources_of_randomness_go_on_where_they_were(seed, odd):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global one is what is kept
    torch.manual_seed(seed)
    if odd:  # the second half of a pair of normal numbers is kept for the next call
        random.gauss(0, 1)
        np.random.standard_normal()  # noqa: NPY002
    state = random_state()

    def drawn():
        normal = np.random.standard_normal(3).tolist()  # noqa: NPY002
        return [random.gauss(0, 1), random.random(), *normal, *torch.rand(3).tolist()]

    first = drawn()
    set_random_state(state)
    assert drawn() == first


def test_a_state_that_is_a_view_is_set_as_it_is():
    torch.manual_seed(1)
    other = random_state()
    torch.manual_seed(2)
    mine = random_state()
    wanted = torch.rand(3)
    torch.manual_seed(3)
    set_random_state({name: torch.stack([other[name], part])[1] for name, part in mine.items()})
    assert torch.equal(torch.rand(3), wanted)
