import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hydra import compose
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support import slow_rows_but

from dcdt.config import parse
from dcdt.config.registry import MODELS, search_space
from dcdt.training.tuner import overrides, search
from dcdt.utils.errors import Diverged
from dcdt.utils.files import write_json

pytestmark = pytest.mark.usefixtures("hydra")


def composed(name, *changes):
    return compose("config", overrides=["data=files", "data.path=/x", f"model={name}", *changes])


SPACES = {name: search_space(name) for name in MODELS if search_space(name)}


@given(st.sampled_from(sorted(MODELS)), st.integers(1, 12), st.integers(0, 9))
def test_trials_differ_and_the_first_changes_nothing(name, trials, seed):
    drawn = overrides(name, trials, seed)
    assert drawn[0] == {}
    assert len({str(changes) for changes in drawn}) == len(drawn)
    space = SPACES.get(name, {})
    assert len(drawn) == (min(trials, 1 + math.prod(map(len, space.values()))) if space else 1)
    assert overrides(name, trials, seed) == drawn


LOSSES = {"contrastive": "loss.temperature", "infonce": "loss.margin", "triplet": "loss.temperature"}  # and not theirs


PAIRS = [(name, loss) for name in SPACES for loss in LOSSES]
FAST = [
    pair for pair in PAIRS if pair[0] == "dcdt" or (pair[0] in ("dcdt_ridge", "hybrid") and pair[1] == "contrastive")
]


@pytest.mark.parametrize(
    ("name", "loss"), [pair if pair in FAST else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS]
)
def test_every_value_of_a_space_is_a_valid_configuration_and_none_is_drawn_twice(name, loss):
    config = composed(name, "trials=100000", f"loss={loss}")
    drawn = overrides(name, 100_000, 0, config)
    seen = [parse(config)]
    for changes in drawn[1:40]:
        changed = config.copy()
        for key, value in changes.items():
            OmegaConf.update(changed, key, value)
        seen.append(parse(changed))
    assert all(one != other for at, one in enumerate(seen) for other in seen[:at])
    for key, values in SPACES[name].items():
        if key == LOSSES[loss]:
            assert not any(key in changes for changes in drawn)
        else:
            assert {changes[key] for changes in drawn[1:]} == set(values)


def test_a_hybrid_with_item_item_tunes_both_parts():
    config = composed("hybrid_history")
    keys = {key for changes in overrides("hybrid", 100_000, 0, config) for key in changes}
    assert keys == {"model.fusion", "model.first.neighbours", "model.second.epochs", "model.second.dropout"}


READ = [
    ("als", {"factors", "regularization", "alpha"}),
    ("bpr", {"factors", "regularization", "learning_rate"}),
    ("cosine", {"neighbours"}),
    ("tfidf", {"neighbours"}),
    ("bm25", {"neighbours"}),
    ("ease", {"l2", "decay"}),
    ("slim", {"l1", "l2", "decay"}),
    ("popularity", set()),
]


@pytest.mark.parametrize(("kind", "read"), slow_rows_but(READ[:2], READ))
def test_collaborative_tunes_what_its_kind_reads(kind, read):
    config = composed("collaborative", f"model.kind={kind}")
    drawn = overrides("collaborative", 100_000, 0, config)
    assert {key for changes in drawn for key in changes} == {f"model.{name}" for name in read}
    for changes in drawn[1:]:
        changed = config.copy()
        for key, value in changes.items():
            OmegaConf.update(changed, key, value)
        assert parse(changed) != parse(config)


@pytest.mark.slow
def test_what_is_tuned_does_not_depend_on_what_is_installed():
    code = "{}from dcdt.config.registry import MODELS, search_space as s; print({{m: s(m) for m in MODELS}})"
    hide = "import importlib.util as u; u.find_spec = lambda *_: None; "
    found = [subprocess.run([sys.executable, "-c", code.format(part)], capture_output=True) for part in ("", hide)]
    assert found[0].stdout == found[1].stdout != b""


def searched(values, **changes):
    """The search over trials whose validation gives these values."""
    config = composed("dcdt", f"trials={len(values)}")
    tried = []

    def train(settings, at):
        tried.append(settings)
        if isinstance(values[at], Exception):
            raise values[at]
        return SimpleNamespace(value=values[len(tried) - 1], at=at)

    return *search(parse(config), config, train), tried


def test_the_best_trial_wins_and_all_are_reported():
    outcome, chosen, trials, tried = searched([0.2, 0.5, 0.4])
    assert outcome.at == 1
    assert chosen == tried[1] != tried[0]
    assert [trial["val/mrr"] for trial in trials] == [0.2, 0.5, 0.4]
    assert trials[0]["changes"] == {}


def test_the_first_of_equal_trials_wins():
    outcome, chosen, _, tried = searched([0.5, 0.5, 0.5])
    assert (outcome.at, chosen) == (0, tried[0])


def test_trials_share_everything_but_the_space():
    _, _, trials, tried = searched([0.1] * 4)
    for trial, settings in zip(trials, tried, strict=True):
        assert set(trial["changes"]) <= set(SPACES["dcdt"])
        assert (settings.seed, settings.split, settings.model.width) == (0, tried[0].split, 256)


def test_a_trial_that_diverges_is_the_worst_and_the_others_go_on(tmp_path):
    error = Diverged.in_epoch(0, "the scores are NaN", 1e4)
    outcome, chosen, trials, tried = searched([error, 0.2, error, 0.1])
    assert (outcome.at, chosen) == (1, tried[1])
    assert [trial["val/mrr"] for trial in trials] == [float("-inf"), 0.2, float("-inf"), 0.1]
    write_json(tmp_path / "tuning.json", {"trials": trials})
    written = json.loads((tmp_path / "tuning.json").read_text())["trials"][0]
    assert written == {"changes": {}, "val/mrr": None, "error": str(error)}
    assert "(1e4)" in str(error)


def test_where_every_trial_diverges_the_run_fails():
    with pytest.raises(Diverged, match="epoch 0"):
        searched([Diverged.in_epoch(epoch, "the scores are NaN", 1.0) for epoch in (0, 1)])
