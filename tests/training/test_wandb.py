import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from reporting.run_folders import write_comparison

from dcdt.config import config_folder, register_resolvers
from dcdt.reporting.tables import make_report
from dcdt.runs.reader import read_runs
from dcdt.training.loggers import wandb as module
from dcdt.training.loggers import wandb_key, wandb_report, wandb_run, wandb_summary
from dcdt.utils.errors import UserError


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
from dcdt.runs.folder import RunFolder
from dcdt.training.loggers import choose_logger
from dcdt.utils.errors import UserError
try:
    choose_logger(OmegaConf.create({"logger": {"name": "wandb"}}), RunFolder(Path()), None)
except UserError:
    pass  # the settings are none; all imports come before they are read
loaded = list(sys.modules)
print(*sorted(["wandb.sdk.launch", "torch"], key=loaded.index))
"""


@pytest.mark.slow
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
    assert module.offline_subject("the report", "auto") == "no key configured, so the report"
    assert (
        module.offline_subject("the report", "offline") == "the report"
    )  # it was chosen, so the key is not the reason
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert module.offline_subject("the report", None) == "the report"


@pytest.mark.parametrize(
    ("chosen", "logged", "expected"),
    [
        ("auto", None, "online"),
        ("auto", "online", "online"),
        ("auto", "offline", "offline"),
        ("offline", "offline", "offline"),
    ],
)
def test_a_report_on_runs_that_stayed_offline_stays_offline(monkeypatch, tmp_path, chosen, logged, expected):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    if logged:
        (tmp_path / "wandb.json").write_text(json.dumps({"mode": logged}))
    run = SimpleNamespace(config={"logger": {"name": "wandb", "mode": chosen}}, folder=tmp_path)
    csv = SimpleNamespace(config={"logger": {"name": "csv"}}, folder=tmp_path / "other")
    assert wandb_report.mode_of_report([csv, run]) == expected


def inspected(folder):
    """Every offline run of a folder as `wandb leet inspect` reads it, by its job type, and the tables of its files."""
    found = {}
    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json"]
        lines = subprocess.run([*command, file], capture_output=True, text=True, check=True).stdout.splitlines()
        [run] = [record["run"] for line in lines if "run" in (record := json.loads(line))]
        text = subprocess.run([*command, "--summary", file], capture_output=True, text=True, check=True).stdout
        shown = json.loads(text)
        files = {name: file.parent / "files" / value["path"] for name, value in tables_in(shown["summary"])}
        tables = {name: json.loads(path.read_text()) for name, path in files.items()}
        found.setdefault(run.get("job_type"), []).append((run, shown, tables))
    return found


def tables_in(summary):
    return [(key, value) for key, value in summary.items() if str(value).startswith("{'_latest") and "ncols" in value]


@pytest.mark.slow
def test_a_report_is_a_run_with_its_tables_and_a_run_a_row(tmp_path):
    report = make_report(read_runs([write_comparison(tmp_path / "runs")]))
    wandb_report.log_report(report, tmp_path, {})
    runs = inspected(tmp_path)
    [(run, shown, tables)] = runs["report"]
    assert run["run_group"] == tmp_path.name and "95 % interval by units" in run["notes"]
    names = {f"tables/{table.name}" for table in report.tables} | {"tables/cost"}  # none of the empty ones
    assert tables.keys() == names and all(table["data"] for table in tables.values())
    [main] = [table for table in report.tables if table.name == "main"]
    columns, rows = tables["tables/main"]["columns"], tables["tables/main"]["data"]
    assert [row[0] for row in rows] == [row.name for row in main.rows] == ["dcdt", "zero_shot", "bm25"]
    cell, at = main.rows[0].cells["mrr"], columns.index("mrr")
    assert columns[at : at + 3] == ["mrr", "mrr_low", "mrr_high"]
    assert rows[0][at : at + 3] == pytest.approx([cell.value, cell.low, cell.high], abs=1e-6)
    [test] = [one for one in report.comparisons if (one.model, one.reference) == ("bm25", "zero_shot")]
    expected = {"mrr": report.tables[0].rows[2].cells["mrr"].value, "difference": test.difference.value}
    expected |= {"difference_low": test.difference.low, "difference_high": test.difference.high, "p": test.adjusted}
    assert {name: shown["summary"][f"bm25/{name}"] for name in expected} == pytest.approx(expected)
    assert "zero_shot/p" not in shown["summary"] and shown["summary"]["best"] == "dcdt"
    assert len(runs["variant"]) == 3 and {run["run_group"] for run, _, _ in runs["variant"]} == {tmp_path.name}
    rows = {run["display_name"]: shown for run, shown, _ in runs["variant"]}
    assert {name: rows["bm25"]["summary"][name] for name in expected} == pytest.approx(expected)
    assert rows["dcdt"]["summary"]["n"] == 48 and rows["dcdt"]["config"]["variant"] == "dcdt"


@pytest.mark.slow
def test_what_is_printed_reaches_a_run_without_keys(tmp_path):
    told = subprocess.run([sys.executable, "-c", PRINTING, tmp_path], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    [(_, shown, _)] = inspected(tmp_path)[None]
    assert [line["line"] for line in shown["console"]] == ["key *** printed", "key *** logged"]
    assert "secret-of-a-test" not in told.stdout + told.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"secret-of" in path.read_bytes()]


PRINTING = """
import logging, os, sys
from pathlib import Path
from dcdt.utils.redaction import redact_output
os.environ["A_API_KEY"] = "secret-of-a-test"
redact_output()
logging.basicConfig(stream=sys.stderr, format="%(message)s")  # which keeps the stream, as Hydra's handlers do
from dcdt.training.loggers import _import_wandb
_import_wandb()
from dcdt.training.loggers.wandb import start_run
run, _ = start_run(Path(sys.argv[1]), "offline", False, console=True, machine=False, project="p")
print("key secret-of-a-test printed")
logging.warning("key secret-of-a-test logged")
run.finish()
"""


@pytest.mark.parametrize(
    ("overrides", "variant"),
    [
        (["split.index=1", "seed=2", "model=hybrid_towers"], "hybrid_towers"),
        (["model=dcdt", "loss=infonce", "loss.temperature=0.10"], "dcdt, loss=infonce, loss.temperature=0.1"),
        (["model=zero_shot", "loss=infonce", "optimizer.lr=1"], "zero_shot"),  # which nothing of that changes
        (
            ["model=dcdt", "model.fields=[title]", "split.train_queries=32"],
            "dcdt, model.fields=[title], train_queries=32",
        ),
        (["logger=csv", "callbacks.patience=3", "trials=2"], "dcdt, trials=2"),
    ],
)
def test_a_variant_is_what_the_folds_of_a_row_have_in_common(overrides, variant):
    register_resolvers()
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        assert wandb_summary.variant_of(compose("config", overrides), overrides) == variant


def test_a_variant_of_a_wrong_configuration_has_a_name_too():
    assert wandb_summary.variant_of(OmegaConf.create({"model": {"name": "x"}}), ["loss=a"]) == "x, loss=a"


@pytest.mark.slow
def test_where_wandb_does_not_answer_a_run_stays_offline_unless_the_user_insists(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_run, "INIT_SECONDS", 2)
    quiet = {"console": False, "machine": False, "project": "p"}
    run, mode = module.start_run(tmp_path, "online", False, **quiet)
    run.finish()
    assert mode == "offline" and list((tmp_path / "wandb").glob("offline-run-*"))
    with pytest.raises(UserError, match=r"W&B cannot be used .*\nChoose logger.mode=offline, or logger=csv"):
        module.start_run(tmp_path, "online", True, **quiet)
