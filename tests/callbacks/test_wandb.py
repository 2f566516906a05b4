import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from dcdt.callbacks import wandb as module
from dcdt.callbacks import wandb_key
from dcdt.errors import UserError
from dcdt.reporting.structure import Table


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """No key anywhere."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


ORDER = """
import sys
from pathlib import Path
from omegaconf import OmegaConf
from dcdt.callbacks.logger import choose_logger
from dcdt.errors import UserError
try:
    choose_logger(OmegaConf.create({"logger": {"name": "wandb"}}), Path(), None)
except UserError:
    pass  # the settings are none; all imports come before they are read
loaded = list(sys.modules)
print(*sorted(["wandb.sdk.launch", "torch"], key=loaded.index))
"""


def test_what_a_run_of_wandb_imports_comes_before_torch():
    told = subprocess.run([sys.executable, "-c", ORDER], capture_output=True, text=True)
    assert told.stdout.split() == ["wandb.sdk.launch", "torch"], told.stderr


def test_without_a_key_a_run_is_offline():
    assert not wandb_key.has_key()
    assert module.mode_of("auto") == "offline"
    assert module.mode_of("offline") == "offline"


def test_online_without_a_key_is_an_error():
    with pytest.raises(UserError, match=r"no W&B key is configured\.\nRun `wandb login`"):
        module.mode_of("online")


def test_a_key_in_the_environment_is_used(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert (module.mode_of("auto"), module.mode_of("online"), module.mode_of("offline")) == (
        "online",
        "online",
        "offline",
    )


@pytest.mark.parametrize(("host", "found"), [("api.wandb.ai", True), ("example.org", False)])
def test_a_key_in_netrc_is_used(bare, host, found):
    bare.write_text(f"machine {host}\n  login user\n  password {'x' * 40}\n")
    bare.chmod(0o600)
    assert wandb_key.has_key() == found


def test_a_key_of_another_server_is_used_there(bare, monkeypatch):
    bare.write_text(f"machine wandb.example.org login user password {'x' * 40}\n")
    bare.chmod(0o600)
    assert not wandb_key.has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_key.has_key()


def test_a_broken_netrc_is_no_key(bare):
    bare.write_text("machine")
    assert not wandb_key.has_key()


def test_the_mode_of_the_environment_is_obeyed(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert module.mode_of("auto") == "disabled"


def test_what_stays_offline_gives_the_missing_key_as_reason_only_without_one(monkeypatch):
    assert module.named("the report") == "no key configured, so the report"
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert module.named("the report") == "the report"


@pytest.mark.parametrize(("chosen", "expected"), [("auto", "online"), ("offline", "offline")])
def test_a_report_on_runs_that_were_kept_offline_stays_offline(monkeypatch, tmp_path, chosen, expected):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    modes = []
    opened = lambda folder, mode, insist, **facts: modes.append(mode) or (MagicMock(), mode)  # noqa: E731
    monkeypatch.setattr(module, "_start", opened)
    run = SimpleNamespace(config={"logger": {"name": "wandb", "mode": chosen}})
    best = SimpleNamespace(runs=[run], label="dcdt")
    empty = Table("empty", "", {"mrr": "MRR"}, [])
    report = SimpleNamespace(best=best, facts={}, metric="mrr", tables=[], failures=empty, cost=empty)
    module.log_report(report, tmp_path, {})
    assert modes == [expected]


@pytest.mark.slow
def test_where_wandb_does_not_answer_a_run_stays_offline_unless_the_user_insists(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(module, "ANSWER_SECONDS", 2)
    run, mode = module._start(tmp_path, "online", False, project="p")
    run.finish()
    assert mode == "offline" and list((tmp_path / "wandb").glob("offline-run-*"))
    with pytest.raises(UserError, match=r"W&B cannot be used .*\nChoose logger.mode=offline, or logger=csv"):
        module._start(tmp_path, "online", True, project="p")
