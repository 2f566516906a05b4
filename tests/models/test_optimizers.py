"""Every optimizer against torch's own, and schedules against their formulas."""

import math

import pytest
import torch
from hydra import compose, initialize_config_dir

from dcdt.config import config_folder, parse, register_resolvers
from dcdt.config.registry import OPTIMIZERS, look_up
from dcdt.models.config import OptimizerConfig
from dcdt.models.optimizers import make_schedule
from dcdt.utils.errors import UserError

N_STEPS = 20


def config_of(*changes):
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return parse(compose("config", overrides=["data=files", "data.path=/x", *changes])).optimizer


def test_the_default_is_adamw_without_a_warm_up():
    config = config_of()
    assert (config.name, config.lr, config.weight_decay) == ("adamw", 1e-3, 0.01)
    assert (config.schedule, config.warmup_steps) == ("cosine", 0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_of_conf_steps_as_torch_does(name):
    config = config_of(f"optimizer={name}", "optimizer.weight_decay=0.1")
    values = {"lr": config.lr, "weight_decay": 0.1}
    expected = {
        "adamw": lambda weight: torch.optim.AdamW([weight], **values),
        "nadam": lambda weight: torch.optim.NAdam([weight], **values, decoupled_weight_decay=True),
        "sgd": lambda weight: torch.optim.SGD([weight], **values, momentum=0.9, nesterov=True),
    }[name]
    results = []
    for make in (lambda weight: look_up(OPTIMIZERS, name)([{"params": [weight]}], config), expected):
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        optimizer = make(weight)
        for _ in range(5):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            optimizer.step()
        results.append(weight.detach())
    torch.testing.assert_close(*results)
    assert not torch.equal(results[0], torch.tensor([1.0, -2.0]))


def rates(**changes):
    """The learning rate of every step, of 1 at most."""
    config = OptimizerConfig(**{"lr": 1.0, "weight_decay": 0.0, "schedule": "constant", **changes})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = make_schedule(optimizer, config, N_STEPS)
    steps = []
    for _ in range(N_STEPS):
        steps.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return steps


@pytest.mark.parametrize("warmup", [0, 4, 0.2])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_schedule_rises_to_the_rate_and_falls_to_0(schedule, warmup):
    n = round(warmup * N_STEPS) if warmup < 1 else warmup
    fall = {
        "constant": lambda part: 1.0,
        "linear": lambda part: 1 - part,
        "cosine": lambda part: (1 + math.cos(math.pi * part)) / 2,
    }[schedule]
    expected = [(step + 1) / (n + 1) for step in range(n)] + [fall(step / (N_STEPS - n)) for step in range(N_STEPS - n)]
    assert rates(schedule=schedule, warmup_steps=warmup) == pytest.approx(expected)


def test_a_warm_up_of_all_steps_is_refused():
    with pytest.raises(UserError, match=r"optimizer.warmup_steps is 20: 20 of the 20 steps of training\.\nGive fewer"):
        rates(warmup_steps=20)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["optimizer.warmup_steps=-1"], "optimizer.warmup_steps is -1.0; it must be a whole number of at least 0"),
        (["optimizer.warmup_steps=1.5"], "or a fraction below 1"),
        (["optimizer=sgd", "optimizer.momentum=1"], "optimizer.momentum is 1.0; it must be at least 0 and below 1"),
        (["optimizer=sgd", "optimizer.momentum=0"], "optimizer.nesterov=true needs optimizer.momentum above 0"),
        (["optimizer=nadam", "optimizer.momentum_decay=-1"], "optimizer.momentum_decay is -1.0"),
        (
            ["+optimizer.momentum=0.9"],
            "unknown setting optimizer.momentum; optimizer has lr, weight_decay, schedule, warmup_steps",
        ),
        (["optimizer.name=os:system"], "optimizer.name is 'os:system'; choose one of adamw, nadam, sgd"),
    ],
)
def test_values_out_of_range_are_named(changes, reason):
    with pytest.raises(UserError) as caught:
        config_of(*changes)
    assert reason in str(caught.value) and len(str(caught.value).splitlines()) <= 2
