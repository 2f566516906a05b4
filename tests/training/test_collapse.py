import warnings
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

from dcdt.training.callbacks.collapse import CollapseAlarm, mean_pairwise_cosine

TRAINER = SimpleNamespace(sanity_checking=False, current_epoch=4)


SPREAD = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))


def module(vectors=SPREAD, silent=(), decoupled=True):
    names = list(silent)
    return SimpleNamespace(decoupled=decoupled, video_vectors=lambda: vectors, silent_towers=lambda: names)


def warned(alarm, *modules, trainer=TRAINER):
    """What the alarm says over these validations."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for part in modules:
            alarm.on_validation_end(trainer, part)
    return [str(warning.message) for warning in caught]


def around(cosine, n=30):
    """Unit vectors whose pairwise cosine is about `cosine`."""
    noise = torch.nn.functional.normalize(torch.randn(n, 256, generator=torch.Generator().manual_seed(1)), dim=-1)
    centre = torch.zeros(256)
    centre[0] = 1
    return cosine**0.5 * centre + (1 - cosine) ** 0.5 * noise


@pytest.mark.parametrize("n", [2, 3, 17])
def test_mean_pairwise_cosine_by_brute_force(n):
    vectors = torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) * torch.arange(1, n + 1)[:, None]
    cosines = [torch.cosine_similarity(a, b, dim=0) for a, b in combinations(vectors, 2)]
    assert mean_pairwise_cosine(vectors) == pytest.approx(torch.stack(cosines).mean().item(), abs=1e-6)


def test_mean_pairwise_cosine_at_its_ends():
    assert mean_pairwise_cosine(torch.ones(5, 3)) == pytest.approx(1)
    assert mean_pairwise_cosine(torch.eye(4)) == pytest.approx(0)
    assert mean_pairwise_cosine(torch.tensor([[1.0, 0], [-1, 0]])) == pytest.approx(-1)
    assert mean_pairwise_cosine(torch.zeros(4, 3)) == 0
    assert mean_pairwise_cosine(torch.ones(1, 3)) == 0


def test_collapsed_vectors_are_reported_once():
    alarm = CollapseAlarm(0.99)
    [message] = warned(alarm, module(), module(around(0.9999)), module(around(1.0)))
    assert "epoch 4: the video vectors have collapsed: their mean pairwise cosine is 1.000 (alarm at 0.99)" in message


@pytest.mark.parametrize(("limit", "alarms"), [(0.99, 0), (0.9, 1)])
def test_the_limit_decides(limit, alarms):
    assert len(warned(CollapseAlarm(limit), module(around(0.95)))) == alarms


def test_a_silent_tower_is_reported_once():
    alarm = CollapseAlarm(0.99)
    messages = warned(alarm, module(silent=["title"]), module(silent=["title", "query"]))
    assert len(messages) == 2
    assert "the tower of 'title' outputs only zeros" in messages[0]
    assert "the tower of 'query' outputs only zeros" in messages[1]


def test_it_is_quiet_about_joint_models_and_sanity_checks():
    joint = SimpleNamespace(decoupled=False)
    assert warned(CollapseAlarm(0.99), joint) == []
    sanity = SimpleNamespace(sanity_checking=True, current_epoch=0)
    assert warned(CollapseAlarm(0.99), module(torch.ones(3, 3)), trainer=sanity) == []
