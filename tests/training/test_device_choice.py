"""Which devices a run takes, on machines with other devices than this one."""

import os

import pytest
import torch

from dcdt.training import devices
from dcdt.training.config import TrainerConfig
from dcdt.training.distributed import needs_processes
from dcdt.training.rank import adopt_srun
from dcdt.utils.errors import UserError

LEFT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """No variable of a launcher before or after a test, and no GPU kept."""
    for name in [*LEFT, *(name for name in os.environ if name.startswith("SLURM_"))]:
        monkeypatch.setenv(name, "")  # so that it is restored, whatever the test sets
        monkeypatch.delenv(name)
    monkeypatch.setattr(devices, "CLAIMED", {})
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many GPUs of NVIDIA, or an Apple GPU."""

    def build(n=0, mps=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return build


def trainer(**values):
    defaults = {"name": "ddp", "accelerator": "auto", "devices": 1, "precision": "32-true", "strategy": "ddp"}
    return TrainerConfig(**{**defaults, "max_epochs": 1, "validate_every": 1, "threads": 0, **values})


@pytest.mark.parametrize(
    ("gpus", "values", "kind", "count", "number"),
    [
        (0, {}, "cpu", 1, 1),
        (0, {"devices": "auto"}, "cpu", 1, 1),
        (0, {"devices": 2}, "cpu", 2, 1),
        (4, {"devices": "auto"}, "cuda", 4, 1),
        (4, {"devices": [3, 2]}, "cuda", 2, 2),
        (4, {"devices": "0,1", "accelerator": "gpu"}, "cuda", 2, 1),
        (4, {"devices": 2, "accelerator": "cpu"}, "cpu", 2, 1),
    ],
)
def test_devices_are_counted_and_numbered(machine, monkeypatch, gpus, values, kind, count, number):
    machine(gpus)
    config = trainer(**values)
    devices.check_devices(config)
    monkeypatch.setenv("LOCAL_RANK", "1")
    found = devices.device_type(config), devices.device_count(config), devices.device_number(config)
    assert found == (kind, count, number)


@pytest.mark.parametrize(
    ("gpus", "mps", "values", "reason"),
    [
        (0, False, {"accelerator": "gpu"}, "this machine has no GPU"),
        (0, False, {"accelerator": "cuda"}, "this machine has no GPU"),
        (1, False, {"devices": 2}, "trainer.devices is 2; this machine has 1 GPU, numbered from 0"),
        (2, False, {"devices": [2]}, "this machine has 2 GPUs"),
        (0, False, {"devices": [0, 1]}, "which numbers GPUs; on cpu give a number"),
        (0, False, {"precision": "16-mixed"}, "'16-mixed', which needs a GPU; choose bf16-mixed or 32-true"),
        (4, False, {"devices": "auto", "strategy": "auto"}, "trainer.devices is auto, which is 4 GPUs"),
        (0, True, {"devices": 1}, "an Apple GPU trains alone"),
        (0, True, {"strategy": "ddp", "precision": "32-true"}, "an Apple GPU trains alone"),
    ],
)
def test_what_a_machine_lacks_is_named(machine, gpus, mps, values, reason):
    machine(gpus, mps)
    with pytest.raises(UserError) as caught:
        devices.check_devices(trainer(**values))
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_jobs_on_one_machine_share_its_gpus_evenly(machine, monkeypatch):
    machine(2)
    seen, held = [], []
    for _ in range(4):  # processes
        devices.claim_gpus(trainer())
        seen.append(os.environ.pop("CUDA_VISIBLE_DEVICES"))
        held.append(dict(devices.CLAIMED))
        devices.claim_gpus(trainer())  # the next job of the same process
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
        devices.CLAIMED.clear()
    assert seen == ["0", "1", "0", "1"]
    os.close(held[1]["1"])  # the second process ends
    devices.claim_gpus(trainer())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_jobs_choose_among_the_gpus_that_are_theirs(machine, monkeypatch):
    machine(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    devices.claim_gpus(trainer(devices=2))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,6"


@pytest.mark.parametrize(
    ("gpus", "values"),
    [
        (0, {}),
        (1, {}),
        (2, {"accelerator": "cpu"}),
        (2, {"devices": "auto"}),
        (2, {"devices": [1]}),
        (2, {"devices": 2}),
    ],
)
def test_without_a_choice_nothing_changes(machine, gpus, values):
    machine(gpus)
    devices.claim_gpus(trainer(**values))
    assert "CUDA_VISIBLE_DEVICES" not in os.environ and not devices.CLAIMED


STEP = {"STEP_NUM_TASKS": "4", "PROCID": "3", "LOCALID": "1", "NODEID": "1", "JOB_ID": "1234", "STEP_ID": "2"}


def slurm(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    adopt_srun()
    return {name: os.environ[name] for name in LEFT if name in os.environ}


def test_srun_is_known_as_torchrun_is(machine, monkeypatch):
    machine(0)
    found = slurm(monkeypatch, **STEP, STEP_NUM_NODES="2", STEP_NODELIST="node[07-08],other", NTASKS="4")
    port = {"MASTER_PORT": str(15_000 + 7 * 1234 + 2)}
    ranks = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "GROUP_RANK": "1", "MASTER_ADDR": "node07"}
    assert found == {**ranks, **port}
    settings = type("Settings", (), {"trainer": trainer(devices=2, num_nodes=2)})
    assert not needs_processes(settings)
    devices.check_devices(settings.trainer)
    with pytest.raises(UserError, match=r"4 processes were started, but trainer.devices=2 and trainer.num_nodes=1"):
        devices.check_devices(trainer(devices=2))


def test_the_processes_of_one_machine_meet_on_it_and_a_given_address_stays(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "1")
    found = slurm(monkeypatch, **STEP, STEP_NUM_NODES="1", STEP_NODELIST="node07")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("127.0.0.1", "1")


@pytest.mark.parametrize("step", [{}, {"STEP_NUM_TASKS": "1"}])
def test_a_process_in_an_allocation_without_srun_stands_alone(machine, monkeypatch, step):
    machine(0)
    assert slurm(monkeypatch, NTASKS="2", PROCID="0", LOCALID="0", NTASKS_PER_NODE="2", **step) == {}
    assert needs_processes(type("Settings", (), {"trainer": trainer(devices=2)}))
