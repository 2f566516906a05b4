"""Faults that people met at the edges of the product: signals, secrets, strangers, shells, terminals, servers."""

import contextlib
import csv
import errno
import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import wandb
from commands import FAST, clean_environment, dcdt, mended, on
from embeddings.loopback import Loopback, Trouble
from embeddings.tiny import write_model
from fastapi.testclient import TestClient
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from reporting.run_folders import write_run
from safetensors.torch import load_file, save_file
from support import EMBEDDER, make_collection, slow_but, slow_rows_but

from dcdt.config import cache_home, cache_root, config_folder, outputs_root, validate
from dcdt.config.command_line import quote_texts
from dcdt.config.plugins import load_plugin
from dcdt.config.validation import _shown
from dcdt.data.captions import _read_cues
from dcdt.data.config import DataConfig
from dcdt.data.formulas import check_parser
from dcdt.data.tokens import tokenizer
from dcdt.embeddings.config import LocalEmbedderConfig, OpenAIEmbedderConfig, refuse_foreign_base_url
from dcdt.embeddings.providers.onnx import OnnxEmbedder
from dcdt.embeddings.providers.openai import OpenAIEmbedder
from dcdt.embeddings.providers.pooling import load_model
from dcdt.embeddings.shards import open_shard
from dcdt.reporting.disagreements import MAX_TREC_BYTES
from dcdt.runs.folder import RunFolder
from dcdt.runs.reader import first_line, read_runs
from dcdt.runs.sweep import mark_interrupted
from dcdt.serve import LOOPBACK, _log_to_stderr
from dcdt.serving.app import make_app
from dcdt.serving.catalogue.video_table import VideoTable
from dcdt.serving.export import _export_graph
from dcdt.serving.graphs import session
from dcdt.serving.hot_reload import ReloadingRecommender
from dcdt.serving.learners import Learners
from dcdt.serving.scorers.base import Graph
from dcdt.training.checkpoint import read_state
from dcdt.training.loggers.wandb_key import mode_of
from dcdt.utils.errors import UserError, format_error, is_user_error, needs_extra
from dcdt.utils.files import MAX_JSON_BYTES
from dcdt.utils.redaction import redact
from dcdt.utils.shell import override, shell_command, user_path
from dcdt.utils.signals import Interrupted, interruptible
from dcdt.utils.text import one_line, printable

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A collection with its vectors."""
    return make_collection(tmp_path_factory.mktemp("collection") / "small", n_videos=20, n_queries=60)


def raising(number):
    """A function that a signal ends."""
    return lambda *_, **__: os.kill(os.getpid(), number)


# ---- signals


@pytest.mark.parametrize(("number", "code"), slow_rows_but(SIGNALS[1:2], SIGNALS))
def test_a_signal_ends_a_run_in_one_line_and_it_can_be_resumed(folder, tmp_path, monkeypatch, number, code):
    from dcdt.models.recommender import Recommender

    run = tmp_path / "my run"
    with monkeypatch.context() as patch:
        patch.setattr(Recommender, "on_validation_epoch_end", raising(number))
        withdraw = RunFolder.withdraw  # as it begins, the same signal comes again, as from a key that is held down
        patch.setattr(RunFolder, "withdraw", lambda *given: (raising(number)(), withdraw(*given)))
        done = dcdt("run", *on(folder, tmp_path), *FAST, f"hydra.run.dir='{run}'")
    name = signal.Signals(number).name
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == (
        f"stopped by {name}; the run is kept; continue it: python -m dcdt.run 'resume=\"{run}\"'"
    )
    assert "Traceback" not in done.stderr
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "interrupted" and status["error"] == f"stopped by {name}"
    done = dcdt("run", f'resume="{run}"')
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "status.json").read_text())["status"] == "finished"


def test_a_later_signal_ends_what_the_first_one_is_ending_and_keeps_its_advice(monkeypatch):
    with interruptible():
        with pytest.raises(Interrupted) as last:
            try:
                raising(signal.SIGINT)()
            except Interrupted as error:
                error.advice = "continue it"
                raise
            finally:
                raising(signal.SIGINT)()  # at once: ignored
                monkeypatch.setattr("dcdt.utils.signals.REPEATED_SECONDS", 0.0)
                raising(signal.SIGTERM)()
        assert (last.value.number, last.value.advice) == (signal.SIGTERM, "")
        assert last.value.first_advice == "continue it"
        assert Interrupted(signal.SIGINT).first_advice == ""


def test_a_service_that_is_stopped_twice_logs_no_traceback(capfd, monkeypatch):
    for logger in map(logging.getLogger, ("dcdt.serve", "uvicorn")):
        for name in ("handlers", "propagate", "level"):
            monkeypatch.setattr(logger, name, getattr(logger, name))  # as it is now, after the test
    _log_to_stderr()
    log = logging.getLogger("uvicorn.error")  # as uvicorn logs it when its shutdown is cut off
    log.error("Traceback (most recent call last):\nasyncio.exceptions.CancelledError")
    log.error("something else")
    assert [json.loads(line)["event"] for line in capfd.readouterr().err.splitlines()] == ["something else"]


@pytest.mark.parametrize(("number", "code"), slow_rows_but(SIGNALS[1:2], SIGNALS))
def test_a_signal_ends_a_sweep_at_once(folder, tmp_path, monkeypatch, number, code):
    monkeypatch.setattr("dcdt.training.fit.train", raising(number))
    done = dcdt("run", "-m", *on(folder, tmp_path), *FAST, "model=bm25,zero_shot", f"hydra.sweep.dir={tmp_path}/s")
    assert done.returncode == code and "the same command continues the sweep" in done.stderr.splitlines()[-1]
    [status] = (tmp_path / "s").glob("*/status.json")
    assert json.loads(status.read_text())["status"] == "interrupted"


def test_jobs_of_workers_that_ended_with_the_sweep_are_marked_and_others_are_not(tmp_path):
    for name, status in (("dead", "running"), ("alive", "running"), ("done", "finished")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status.json").write_text(f'{{"status": "{status}"}}')
    alive = RunFolder(tmp_path / "alive")
    alive.lock(wait=False)
    mark_interrupted(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}), Interrupted(signal.SIGTERM))
    alive.unlock()
    found = {path.parent.name: json.loads(path.read_text())["status"] for path in tmp_path.glob("*/status.json")}
    assert found == {"dead": "interrupted", "alive": "running", "done": "finished"}


@pytest.mark.parametrize(("number", "code"), slow_rows_but(SIGNALS[1:2], SIGNALS))
@pytest.mark.parametrize(
    ("command", "arguments", "work"),
    [
        ("report", ["RUN"], "dcdt.report.report"),
        ("recommend", ["RUN", "a question"], "dcdt.recommend.load"),
        ("index", ["RUN", "info"], "dcdt.index.load"),
        ("collection", ["check", "RUN"], "dcdt.collection.check_collection"),
        ("serve", ["RUN"], "dcdt.serve._socket"),
        ("doctor", [], "dcdt.doctor.packages"),
        ("embed", [], "dcdt.embed.run"),
    ],
)
def test_a_signal_ends_every_command_in_one_line(tmp_path, monkeypatch, command, arguments, work, number, code):
    monkeypatch.setattr("dcdt.serving.hot_reload.ReloadingRecommender.__init__", lambda *_: None)
    monkeypatch.setattr(work, raising(number))
    done = dcdt(command, *(text.replace("RUN", str(tmp_path)) for text in arguments))
    assert done.returncode == code
    assert done.stderr.startswith(f"stopped by {signal.Signals(number).name}; ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_a_command_is_imported_ends_it_in_one_line(name, code):
    line = f"import sys; sys.argv = ['-m']; import dcdt, os, signal; os.kill(os.getpid(), signal.{name})"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (code, f"stopped by {name}\n")


def test_a_signal_during_the_report_of_a_sweep_prints_the_command_that_repeats_it(tmp_path, monkeypatch):
    from dcdt.report import report_sweep

    monkeypatch.setattr("dcdt.report.report", raising(signal.SIGTERM))
    with interruptible(), pytest.raises(Interrupted) as error:
        report_sweep(tmp_path / "a sweep", to_wandb=True)
    assert error.value.advice.endswith(f"Repeat: python -m dcdt.report '{tmp_path}/a sweep' --wandb")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# ---- secrets

KEY, PASSWORD = "sk-FAKEKEY-abcdefghijklmnop0123456789", "hunter2secretpw"
ADDRESS = f"http://user:{PASSWORD}@127.0.0.1:9/v1"
OPENAI = ["embedder=openai", "embedder.model=m", "embedder.dimensions=16", "model=zero_shot"]


def embedder(server, monkeypatch, **changes):
    """An embedder that asks a server of the test."""
    for name in [name for name in os.environ if "proxy" in name.lower()]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    config = OmegaConf.load(config_folder() / "embedder" / "openai.yaml")
    changes = {"base_url": server.url, "model": "m", "dimensions": 16, "patience": 20, **changes}
    return OpenAIEmbedder(validate(OpenAIEmbedderConfig, OmegaConf.merge(config, changes), "embedder"))


@pytest.mark.parametrize(
    "shorten",
    [
        lambda text: one_line(text, 200),
        lambda text: str(UserError(f"{'y' * 800}{text}")),
        first_line,
        lambda text: _shown(text[120:], {str}),
    ],
)
def test_a_message_is_redacted_before_it_is_cut(monkeypatch, shorten):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    found = shorten(f"{'y' * 180} Bearer {KEY} and {ADDRESS}")
    assert KEY[:12] not in found and PASSWORD[:4] not in found and "y" * 20 in found


def test_a_server_that_repeats_the_key_at_the_end_of_a_long_message_is_not_quoted(monkeypatch):
    def misbehave(*_):
        raise Trouble(404, f"{'y' * 180} Authorization: Bearer {KEY}")

    with Loopback(misbehave, width=16) as server, pytest.raises(UserError, match=r"y{180}") as error:
        embedder(server, monkeypatch).embed(["a"])
    assert KEY[:8] not in str(error.value)


def test_a_refused_configuration_writes_no_file_and_no_run_of_wandb(folder, tmp_path):
    outputs = f"hydra.sweep.dir={tmp_path}/s"
    done = dcdt("run", "-m", *on(folder, tmp_path), *OPENAI, outputs, OPENAI_BASE_URL=ADDRESS, OPENAI_API_KEY=KEY)
    assert done.returncode == 1 and "holds a user, a password" in done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"status.json", "sweep.json", "multirun.yaml"}
    assert [path for path in files if PASSWORD in path.read_text()] == []
    assert dcdt("report", tmp_path / "s").returncode == 2


def test_a_password_in_a_file_of_the_user_is_not_in_the_file_that_hydra_writes(folder, tmp_path):
    mine = tmp_path / "conf" / "embedder" / "mine.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text((config_folder() / "embedder" / "openai.yaml").read_text() + f"\nbase_url: {ADDRESS}\n")
    mine.write_text("\n".join(line for line in mine.read_text().splitlines() if "oc.env" not in line))
    chosen = ["--config-dir", tmp_path / "conf", "embedder=mine", "model=zero_shot", f"hydra.sweep.dir={tmp_path}/s"]
    done = dcdt("run", "-m", *chosen, "data=files", f"data.path={folder}", "logger=none", OPENAI_API_KEY=KEY)
    assert done.returncode == 1 and "holds a user, a password" in done.stderr
    texts = [path.read_text() for path in (tmp_path / "s").rglob("*") if path.is_file()]
    assert any("http://user:***@127" in text for text in texts) and not any(PASSWORD in text for text in texts)


@pytest.mark.parametrize(
    "address",
    ["http://me:x,PASSWORD@h/v1", "http://me:it'sPASSWORD@h", "https://PASSWORD,x@h", "http://h/#key=PASSWORD"],
)
def test_secrets_in_addresses_may_hold_any_character(address):
    assert PASSWORD not in redact(f"cannot reach {address.replace('PASSWORD', PASSWORD)} now")


def test_a_printed_configuration_holds_no_password():
    done = dcdt("run", *OPENAI, "--cfg=job", "--resolve", OPENAI_BASE_URL=ADDRESS)
    assert "http://user:***@127.0.0.1:9/v1" in done.stdout and PASSWORD not in done.stdout


def test_a_password_on_the_command_line_is_refused(tmp_path):
    done = dcdt("run", *OPENAI, f"embedder.base_url={ADDRESS}", f"hydra.run.dir={tmp_path}/r")
    assert done.returncode == 2 and "holds a key or a password" in done.stderr and PASSWORD not in done.stderr


def test_every_field_given_to_wandb_is_redacted(tmp_path, monkeypatch):
    from dcdt.training.loggers.wandb import start_run

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(sys, "argv", ["dcdt.report", "--against", KEY])
    given = {}
    monkeypatch.setattr("wandb.init", lambda **options: given.update(options))
    fields = {name: f"{ADDRESS} {KEY}" for name in ("name", "group", "project", "job_type", "notes")}
    start_run(tmp_path, "offline", False, console=False, machine=False, tags=[KEY], config={KEY: [KEY]}, **fields)
    assert KEY not in f"{given} {sys.argv}" and PASSWORD not in str(given) and given["tags"] == ["***"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://ghp_abc@host/a", "https://***@host/a"),
        ("http://user:pa/ss@host:80/v1", "http://user:***@host:80/v1"),
        ("http://user:p@ss@host/v1", "http://user:***@host/v1"),
        ("https://host/v1?api-key=abc&k=5", "https://host/v1?api-key=***&k=5"),
        ("https://host/?k=5&access_token=abc#a", "https://host/?k=5&access_token=***#a"),
        ("https://host/?X-Amz-Signature=abc", "https://host/?X-Amz-Signature=***"),
        ("https://host/?key=AIzaSy123456", "https://host/?key=***"),
    ],
)
def test_what_an_address_holds_of_secrets_is_redacted(text, expected):
    assert redact(f"see {text} and {text}.") == f"see {expected} and {expected}{'' if expected[-1] == '*' else '.'}"


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8000/@user", "https://medium.com/@user", "ssh://git@host/a", "https://host/?key=intro&monkey=12345678",
        "https://host/?q=a@b.org", "https://a.org\uff0c邮箱me@b.org", "https://host/?api-version=2024-01-01",
    ],
)  # fmt: skip
def test_an_address_without_a_secret_is_not_changed(text):
    assert redact(text) == text


# ---- strangers

EVIL = "\x1b[2J\x1b]0;pwned\x1b\\ \u202egnp.exe\u202c\u200f\u061c\U000e0041 \x9b31m [/red]"
FORMULA = '=HYPERLINK("http://evil","x")'


def is_harmless(text):
    return not set(text) & set("\x1b\x9b\u202e\u202c\u200f\u061c\U000e0041\r")


def test_of_all_format_characters_those_remain_that_texts_need():
    chars = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cf"]
    remaining = [char for char in chars if printable(char) == char]
    invisible = "\u00ad\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064"
    scripts = ("ARABIC", "SYRIAC", "KAITHI", "EGYPTIAN")
    assert [char for char in remaining if not unicodedata.name(char).startswith(scripts)] == list(invisible)
    assert "\u061c" not in remaining and json.loads(f'"{printable("".join(chars))}"') == "".join(chars)


@pytest.mark.slow
def test_titles_questions_and_names_of_strangers_steer_no_terminal(own_copy, tmp_path):
    run = own_copy("model=bm25")
    given = ["--title", f"{EVIL} zebraquark", "--text", "zebraquark", "--meta", f"series={EVIL}"]
    done = dcdt("index", run, "add", "--id", "e1", *given)
    assert done.returncode == 0, done.stderr
    (tmp_path / "q.csv").write_text(f"question\nzebraquark {EVIL}\n")
    question = f"zebraquark {EVIL}"
    for arguments in ([question], [question, "--explain"], [question, "--json"], ["--batch", tmp_path / "q.csv"]):
        done = dcdt("recommend", run, *arguments, "-k", 1)
        assert done.returncode == 0, done.stderr
        assert is_harmless(done.stdout) and "gnp.exe" in done.stdout
    answer = json.loads(dcdt("recommend", run, question, "--json", "-k", 1).stdout)
    assert answer["question"] == question and answer["answer"][0]["series"] == EVIL.strip()


@pytest.mark.slow
def test_a_run_of_a_collection_with_an_evil_name_prints_it_escaped(tmp_path):
    folder = make_collection(tmp_path / "c")
    (folder / "collection.yaml").write_text('name: "evil\\e[31m [/red]"\n')
    done = dcdt("run", *on(folder, tmp_path), *FAST[:-1], "model=zero_shot", f"hydra.run.dir={tmp_path}/r")
    assert done.returncode == 0, done.stderr
    assert is_harmless(done.stdout + done.stderr) and "evil\\x1b[31m [/red]" in done.stdout
    assert is_harmless(dcdt("collection", "check", folder).stdout)


def test_a_report_of_strangers_runs_holds_no_steering_character_and_no_formula(tmp_path):
    for model in ("dcdt", "zero_shot"):
        kinds, provenance = (FORMULA, f"kind {EVIL}"), {"collection": EVIL}
        write_run(tmp_path / "s", model, n=60, kinds=kinds, provenance=provenance, overrides={"loss.name": EVIL})
    done = dcdt("report", tmp_path / "s")
    assert done.returncode == 0, done.stderr
    assert is_harmless(done.stdout + done.stderr)
    texts = {path.name: path.read_text() for path in (tmp_path / "s" / "report").iterdir() if path.suffix != ".png"}
    assert (
        "gnp.exe" in texts["table.md"] and "gnp.exe" in texts["index.html"] and "HYPERLINK" in texts["breakdowns.csv"]
    )
    assert [name for name, text in texts.items() if not is_harmless(text)] == []
    json.loads(texts["table.json"])
    for name in ("table.csv", "tests.csv", "breakdowns.csv", "cost.csv"):
        cells = [cell for row in csv.reader(io.StringIO(texts[name])) for cell in row]
        assert [cell for cell in cells if cell.startswith("=")] == [], name


@pytest.mark.slow
@pytest.mark.parametrize("link", ["serving", "serving/build", "report", "report/deep"])
def test_a_link_that_leads_out_of_a_run_is_refused_and_nothing_is_written_there(own_copy, tmp_path, link):
    run, outside = own_copy("model=bm25"), tmp_path / "outside"
    outside.mkdir()
    if link == "serving":
        shutil.rmtree(run / "serving")
    (run / link).parent.mkdir(exist_ok=True)
    (run / link).symlink_to(outside)
    inside = run / "link"  # one that stays is left alone
    inside.symlink_to(run / "config.yaml")
    done = dcdt("report", run) if link.startswith("report") else dcdt("index", run, "add", "--id", "a", "--title", "b")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"error: {run / link} is a link that leads out of {run}" in done.stderr
    assert list(outside.iterdir()) == []


def test_links_for_the_runs_of_wandb_and_for_recognised_texts_are_refused(tmp_path):
    from dcdt.data.slides import recognise_slides
    from dcdt.training.loggers.wandb_report import log_report

    for name in ("wandb", ".recognised"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / name).symlink_to(tmp_path)
    for write in (lambda folder: log_report(None, folder, {}), lambda folder: recognise_slides(folder, [])):
        with pytest.raises(UserError, match="is a link that leads out of"):
            write(tmp_path / "folder")


def test_nested_json_in_the_histories_of_a_stranger_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({name: np.zeros(1) for name in ("keys", "starts", "items")}, tmp_path / "l", {"facts": "[" * 100_000})
    with pytest.raises(UserError, match="nested too deeply"):
        Learners(tmp_path / "l").items("u")


def test_a_run_with_checkpoints_elsewhere_is_not_resumed(own_copy, tmp_path):
    run = own_copy("model=bm25")
    shutil.rmtree(run / "checkpoints")
    (run / "status.json").write_text(json.dumps(json.loads((run / "status.json").read_text()) | {"status": "running"}))
    (run / "checkpoints").symlink_to(tmp_path)
    mended(dcdt("run", f"resume={run}"), "is a link that leads out")


@pytest.mark.parametrize(
    "name", slow_but(["config.yaml", "link"], ["metrics.json", "status.json", "config.yaml", "history.csv", "link"])
)
def test_a_file_that_fills_the_memory_is_refused(tmp_path, name):
    run = write_run(tmp_path)
    if name == "link":
        name = "metrics.json"
        (run / name).unlink()
        (run / name).symlink_to("/dev/zero")
    else:
        (run / name).touch()
        os.truncate(run / name, MAX_JSON_BYTES + 1)  # sparse
    mended(dcdt("report", run), f"{run / name} has more than")


def test_other_files_of_a_run_that_fill_the_memory_are_refused(tmp_path):
    for model in ("dcdt", "zero_shot"):
        run = write_run(tmp_path, model)
    (run / "run.trec").unlink()
    (run / "run.trec").symlink_to("/dev/zero")
    assert dcdt("report", tmp_path).returncode == 0  # its rankings are left out of the page
    (run / "run.trec").unlink()
    with (run / "run.trec").open("wb") as file:
        file.truncate(MAX_TREC_BYTES + 1)  # sparse
    mended(dcdt("report", tmp_path), f"{run / 'run.trec'} has more than")
    rows = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int8()), [1.0])
    with pq.ParquetWriter(run / "per_query.parquet", pa.schema([("value", rows.type)])) as writer:
        for _ in range(3):
            writer.write_table(pa.table({"value": rows}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcdt.runs.reader.MAX_ROWS", 2999)
        mended(dcdt("report", tmp_path), "per_query.parquet is corrupt (it has more than 2,999 rows)")


HOSTS = ["localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1"]


def test_a_local_service_answers_only_its_own_names_and_head_requests(make_run, monkeypatch):
    given = {}
    monkeypatch.setattr("dcdt.serving.app.make_app", lambda *_, **options: given.update(options))
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    for arguments, hosts in (
        ([], LOOPBACK),
        (["--host", "127.0.0.2"], (*LOOPBACK, "127.0.0.2")),
        (["--host", "0.0.0.0"], ("*",)),
        (["--allow-host", "*.school.org"], ("*.school.org", *LOOPBACK)),
    ):
        done = dcdt("serve", make_run("model=bm25"), "--port", 0, *arguments)
        assert done.returncode == 0 and set(given["hosts"]) == set(hosts), done.stderr
    assert dcdt("serve", "RUN", "--allow-host", "a*b").returncode == 2
    app = make_app([ReloadingRecommender(make_run("model=bm25"))], hosts=LOOPBACK)
    with TestClient(app) as client:
        assert {client.get("/healthz", headers={"host": host}).status_code for host in HOSTS} == {200}
        for path in ("/", "/healthz", "/search?q=rank"):
            assert client.get(path, headers={"host": "evil.example:8000"}).status_code == 400
            head, get = (client.request(method, path, headers={"host": "localhost"}) for method in ("HEAD", "GET"))
            assert head.status_code == 200 and head.content == b"" and get.content
            assert head.headers["content-type"] == get.headers["content-type"]


# ---- values handed to other libraries


REFUSED = [
    ("trainer.accelerator=tpu", "choose one of auto, cpu, gpu, cuda, mps"),
    ("trainer.accelerator=mps", "this machine has no GPU"),
    ("trainer.precision=fp16", "choose one of 32-true, bf16-mixed, 16-mixed"),
    ("trainer.threads=100000", "from 0 to 1,024"),
    ("logger.project=a/b", "be a name of at most 128 characters"),
    (f"logger.project={'x' * 129}", "be a name of at most 128 characters"),
]


@pytest.mark.parametrize(("change", "expected"), slow_rows_but([REFUSED[0], REFUSED[4]], REFUSED))
def test_a_value_that_a_library_refuses_is_refused_in_words(folder, tmp_path, change, expected):
    mended(dcdt("run", *on(folder, tmp_path), "model=dcdt", "logger=wandb", change), expected)


def test_what_lightning_refuses_is_refused_before_anything_is_embedded(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("dcdt.training.build.load_tables", None)
    given = ["model=dcdt", "logger=csv", "trainer.extra={max_time: soon}"]
    mended(dcdt("run", *on(folder, tmp_path), *given), "Lightning refuses it (`Timer(duration='soon')`")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
WEIGHTS = [
    (lambda path: path.write_bytes(POINTER), "is not a model that transformers can load"),
    (lambda path: save_file({f"module.{k}": v for k, v in load_file(path).items()}, path), "lacks 53 of the model's"),
    (lambda path: save_file({k: v for k, v in load_file(path).items() if "pooler" not in k}, path), None),
]


@pytest.mark.parametrize(("weights", "said"), WEIGHTS)
def test_a_model_without_its_weights_embeds_nothing(tmp_path, weights, said):
    weights(write_model(tmp_path / "model") / "model.safetensors")
    config = validate(LocalEmbedderConfig, {**vars(EMBEDDER), "package": str(tmp_path / "model")}, "embedder")
    config.max_tokens, config.layer_weights = 16, [1.0]
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        load_model(config)


def test_names_and_tags_are_cut_to_the_limits_of_wandb(tmp_path, monkeypatch):
    from dcdt.training.loggers.wandb import start_run

    given = {}
    monkeypatch.setattr("wandb.init", lambda **options: given.update(options))
    names, tags = dict.fromkeys(("name", "job_type"), "n" * 200), ["t" * 70, "t" * 80, "u"]
    start_run(tmp_path, "offline", False, console=False, machine=False, group=None, tags=tags, **names)
    assert given["tags"] == ["t" * 64, "u"] and given["group"] is None
    assert given["name"] == given["job_type"] == "n" * 128
    wandb.Settings(run_tags=given["tags"])  # as wandb checks them


@pytest.mark.parametrize("message", ["base64 encoding is not currently supported", "unknown encoding_format"])
def test_a_server_without_base64_is_asked_for_numbers(monkeypatch, message):
    def misbehave(server, number, payload):
        if payload["encoding_format"] != "float":
            raise Trouble(400, message)

    with Loopback(misbehave, width=16) as server:
        found = embedder(server, monkeypatch).embed([f"text {n}" for n in range(40)])
    assert found.shape == (40, 16) and [payload["encoding_format"] for payload in server.requests].count("base64") == 1


def test_an_address_of_azure_keeps_its_version_behind_the_path(monkeypatch):
    with Loopback(width=16) as server:
        version = "?api-version=2024-02-01"
        assert embedder(server, monkeypatch, base_url=f" {server.url}/{version}\n").embed(["a"]).shape == (1, 16)
    assert server.paths == [f"/v1/embeddings{version}"] and server.headers[0]["api-key"] == KEY


@pytest.mark.parametrize("url", ["", "  ", None])
def test_an_empty_address_counts_as_unset(monkeypatch, url):
    assert embedder(SimpleNamespace(url=url), monkeypatch, model="text-embedding-3-small").config.base_url is None


@pytest.mark.parametrize("url", ["http://[::1", "http://host:99999", "http://host:0", "ftp://host", "http://h/?key=a"])
def test_what_is_no_address_is_refused(monkeypatch, url):
    with pytest.raises(UserError, match=r"embedder\.base_url"):
        embedder(SimpleNamespace(url=url), monkeypatch)


@pytest.mark.parametrize("proxy", ["foo://localhost:1", f"socks4://me:{PASSWORD}@localhost:1"])
def test_a_proxy_that_cannot_be_used_is_told(monkeypatch, proxy):
    asking = embedder(SimpleNamespace(url="http://host.example/v1"), monkeypatch)
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(UserError, match="proxies of the environment") as error:
        asking.embed(["a"])
    assert PASSWORD not in str(error.value)


def test_certificates_that_are_missing_are_not_called_proxies(monkeypatch, tmp_path):
    asking = embedder(SimpleNamespace(url="http://host.example/v1"), monkeypatch)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "missing.pem"))
    with pytest.raises(UserError, match="check SSL_CERT_FILE"):
        asking.embed(["a"])


def test_a_mode_that_wandb_does_not_have_is_refused(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(UserError, match="WANDB_MODE is onlin; it must be one of online, offline"):
        mode_of("auto")


# ---- advice


GRAPH = Graph(torch.nn.Linear(2, 2), lambda module, rows: (module(rows),), torch.zeros(3, 2), "rows", ("encoded",))
SHORTAGES = [
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ImportError("libfoo.so: failed to map segment from shared object"),
    pa.ArrowMemoryError("malloc of size 64 failed"),
]


@pytest.mark.parametrize("error", SHORTAGES)
def test_a_lack_of_memory_blames_no_file_and_no_package(tmp_path, monkeypatch, error):
    def failing(*_, **__):
        raise error

    run = write_run(tmp_path / "s")
    torch.save({}, tmp_path / "last.ckpt")
    for name, work in (
        ("torch.load", lambda: read_state(tmp_path / "last.ckpt")),
        ("pyarrow.parquet.read_schema", lambda: read_runs([run])),
        ("torch.onnx.export", lambda: _export_graph(tmp_path / "x.onnx", GRAPH)),
    ):
        with monkeypatch.context() as patch, pytest.raises((type(error), UserError)) as caught:
            patch.setattr(name, failing)
            work()
        text = format_error(caught.value)
        assert is_user_error(caught.value) and text.startswith("not enough memory: ") and text.count("\n") == 1, name
        assert not re.search("corrupt|elete|install", text)


def test_a_lack_of_memory_ends_a_run_and_a_command_in_words(folder, tmp_path, monkeypatch):
    def failing(*_, **__):
        raise SHORTAGES[3]

    monkeypatch.setattr("dcdt.training.fit.train", failing)
    mended(dcdt("run", *on(folder, tmp_path), *FAST), "not enough memory: CUDA out of memory", "lower batch_size")
    monkeypatch.setattr("dcdt.recommend.load", failing)
    mended(dcdt("recommend", tmp_path, "x"), "not enough memory")


def lacking(monkeypatch, name):
    """Make a module one that is not installed."""
    monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("work", "own", "extra"),
    [
        (lambda: tokenizer(stem=True), "snowballstemmer", "stem"),
        (lambda: list(_read_cues(Path("a.vtt"), {})), "webvtt", "captions"),
        (check_parser.__wrapped__, "pylatexenc", "formulas"),
        (lambda: session(Path("a.onnx")), "onnxruntime", "serve"),
        (lambda: VideoTable("nowhere"), "lancedb", "serve"),
        (lambda: OnnxEmbedder("nowhere", EMBEDDER), "onnxruntime", "onnx"),
        (lambda: OnnxEmbedder("nowhere", EMBEDDER), "tokenizers", "local"),
    ],
)
def test_an_extra_is_named_when_one_of_its_modules_is_missing(monkeypatch, work, own, extra):
    lacking(monkeypatch, own)
    with pytest.raises(UserError, match=rf"needs the extra '{extra}': pip install 'dcdt\[{extra}\]'"):
        work()


def test_no_extra_is_named_when_another_module_is_missing(tmp_path, monkeypatch):
    with pytest.raises(ModuleNotFoundError), needs_extra("serving", "serve", "uvicorn", "fastapi"):
        import no_such_module  # noqa: F401
    lacking(monkeypatch, "dcdt.serving.app")
    done = dcdt("serve", tmp_path)
    assert done.returncode == 1 and "dcdt.serving.app" in done.stderr and "install" not in done.stderr
    lacking(monkeypatch, "uvicorn")
    mended(dcdt("serve", tmp_path), "serving needs the extra 'serve'")


def test_a_file_that_may_not_be_read_is_not_called_corrupt(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(UserError) as error:
        open_shard(path, 8, "embed again")
    assert str(error.value).startswith(f"{path}: Permission denied") and "elete" not in str(error.value)


@pytest.mark.parametrize("text", ["d\udce9riv\udce9e", "\ud800"])
def test_a_text_that_is_not_utf_8_is_refused_in_words(make_run, tmp_path, text):
    run, folder = make_run("model=bm25"), tmp_path / text
    with contextlib.suppress(UnicodeEncodeError):  # no folder can have such a name
        folder.symlink_to(run)
    for command in (
        ["recommend", run, text],
        ["recommend", run, "a question", "--filter", f"level={text}"],
        ["index", run, "delete", text],
        ["index", run, "update", "--id", text, "--title", "new"],
        ["index", run, "add", "--id=new", "--text", text],
        ["report", folder],  # which is not corrupt
        ["embed", "data=files", f"data.path={folder}"],
    ):
        mended(dcdt(*command), "the command line: lone surrogate")


# ---- paths and printed commands


def arguments_of(line):
    """The arguments with which a shell would start a printed command."""
    command, *rest = line.split("python -m dcdt.")[-1].split(" ", 1)
    return [command, *shlex.split(*rest)]


ODD_NAMES = ["my videos (1)", "a=b", "课程", "2024_01", "$HOME `x` 'y' \"z\"", "back\\", "true", "~", "a,b", "-rf"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_an_override_is_read_by_hydra_and_the_shell_as_it_was_meant(name):
    [command, text] = arguments_of(shell_command("run", override("data.path", name)))
    assert command == "run"
    parsed = OverridesParser.create().parse_override(text)
    assert parsed.key_or_group == "data.path" and parsed.value() == name


@pytest.mark.parametrize("name", ["课程", "my videos (1)"])
def test_a_path_needs_no_quotes_for_hydra(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / name)
    done = dcdt("embed", "data=files", f"data.path={tmp_path / name}", "dry_run=true")
    assert done.returncode == 0 and "100 cached" in done.stdout, done.stderr
    assert quote_texts([f"data.path={name},b", "seed=(1)"]) == [f'data.path="{name}",b', "seed=(1)"]


def test_the_commands_of_a_collection_with_an_odd_name_can_be_pasted(tmp_path):
    name = ODD_NAMES[0]
    make_collection(tmp_path / name)
    done = dcdt("collection", "check", name, cwd=tmp_path)
    command, *arguments = arguments_of(done.stdout.splitlines()[-1])
    assert arguments == ["data=files", f'data.path="{name}"', "experiment=best"]
    given = [*arguments[:-1], "model=zero_shot", f"data.cache='{name}/embeddings'"]
    done = dcdt(command, *given, "hydra.run.dir='my out'", "logger=csv", "trainer=cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert arguments_of(done.stdout.splitlines()[-1]) == ["recommend", str(tmp_path / "my out"), "a question"]


def test_a_strangers_address_is_quoted_in_the_command_that_trusts_it(monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match=r"export OPENAI_BASE_URL='http://x/\$\(rm -rf ~\)'"):
        refuse_foreign_base_url(SimpleNamespace(base_url="http://x/$(rm -rf ~)"))


@pytest.mark.parametrize(
    ("typed", "expected"), [("dcdt index", "dcdt index RUN info"), ("dcdt/index.py", "python -m dcdt.index RUN info")]
)
def test_a_command_is_answered_as_it_was_typed(monkeypatch, typed, expected):
    monkeypatch.setattr(sys, "argv", [typed])
    assert shell_command("index", "RUN", "info") == expected
    assert str(UserError("Run: python -m dcdt.index RUN info")) == f"Run: {expected}"


def test_the_installed_command_answers_with_its_own_name(tmp_path, monkeypatch, capsys):
    from dcdt import cli

    for arguments, expected in (
        (["index", "--help"], "usage: dcdt index"),
        (["index", "x", "info"], "dcdt run printed"),
    ):
        monkeypatch.setattr(sys, "argv", ["bin/dcdt", *arguments])
        with pytest.raises(SystemExit):
            cli.main()
        assert expected in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("index 'my run' delete -aBc -xy", "index 'my run' delete -- -aBc -xy"),
        ("index RUN update --id -aBc --title New", "index RUN update --id=-aBc --title New"),
        ("recommend RUN -derivative -k5", "recommend RUN -k5 -- -derivative"),
    ],
)
def test_a_value_that_begins_with_a_minus_is_answered_with_the_command_that_was_meant(arguments, meant):
    done = dcdt(*shlex.split(arguments))
    assert done.returncode == 2 and done.stderr.endswith(f"begins with a minus: python -m dcdt.{meant}\n")
    assert "begins with a minus" not in dcdt("recommend", "RUN", "-k", "1").stderr


def test_an_id_that_begins_with_a_minus_is_changed_in_the_explained_forms(own_copy):
    run = own_copy("model=bm25")
    for arguments in (
        ["add", "--id=-aBc", "--title=New"],
        ["update", "--id=-aBc", "--title=-x"],
        ["delete", "--", "-aBc"],
    ):
        done = dcdt("index", run, *arguments)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", slow_but(["~/videos"], ["~/videos", "'~/videos'", '"~/videos"']))
def test_a_home_in_an_override_is_expanded(folder, tmp_path, path):
    shutil.copytree(folder, tmp_path / "videos")
    given = ["data=files", f"data.path={path}", "dry_run=true", "model=zero_shot"]
    done = dcdt("embed", *given, HOME=str(tmp_path), DCDT_CACHE="~/cache")
    assert done.returncode == 0, done.stderr
    assert "100 cached" in done.stdout  # in the vectors that the folder brings


def test_a_home_in_variables_options_files_and_resolvers_is_expanded(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DCDT_OUTPUTS", "~/runs")
    monkeypatch.setenv("DCDT_CACHE", "~/cache")
    assert (outputs_root(), cache_root(), cache_home()) == (tmp_path / "runs", tmp_path / "cache", tmp_path / "cache")
    assert validate(DataConfig, {"name": "files", "path": "~/c", "cache": "~/v"}, "data").path == f"{tmp_path}/c"
    (tmp_path / "plugin.py").write_text("")
    assert load_plugin("~/plugin.py").__file__ == str(tmp_path / "plugin.py")
    done = dcdt("report", "RUN", "--out=~/out")
    assert "RUN is not a folder" in done.stderr
    assert user_path("~/x") == tmp_path / "x" and user_path("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")


@pytest.mark.parametrize("command", slow_but(["run"], ["run", "embed"]))
def test_relative_paths_start_where_the_user_stands_under_chdir(folder, tmp_path, command):
    shutil.copytree(folder, tmp_path / "videos")
    given = ["data=files", "data.path=videos", "data.cache=videos/embeddings", "model=zero_shot", "logger=csv"]
    done = dcdt(command, *given, "hydra.job.chdir=true", "hydra.run.dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert command == "embed" or (tmp_path / "out" / "metrics.json").is_file()


@pytest.mark.parametrize("experiment", slow_but(["two_stage"], ["two_stage", "comparison", "search"]))
def test_an_experiment_of_several_runs_refuses_a_single_one_and_prints_its_command(tmp_path, experiment):
    (tmp_path / "my videos").mkdir()
    (tmp_path / "my videos" / "corpus.jsonl").touch()
    chosen = [f"experiment={experiment}", "data.path='my videos'"]
    done = dcdt("run", *chosen, "data=files", f"hydra.run.dir={tmp_path}/r", cwd=tmp_path)
    mended(done, f"experiment={experiment} is a sweep of several runs. Give -m:")
    assert arguments_of(done.stderr.splitlines()[-1]) == ["run", "-m", *chosen, "data=files"]
    assert [path.name for path in tmp_path.iterdir()] == ["my videos"]


def test_the_printed_command_of_a_sweep_keeps_the_folder_of_its_configuration(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nhydra: {sweeper: {params: {seed: '0,1'}}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    done = dcdt("run", "--config-dir", tmp_path, "experiment=mine", f"hydra.run.dir={tmp_path}/r")
    expected = ["run", "-m", "--config-dir", str(tmp_path), "experiment=mine"]
    assert arguments_of(done.stderr.splitlines()[-1]) == expected


# ---- terminals


def test_a_terminal_that_is_not_utf_8_shows_question_marks(folder):
    env = clean_environment(PYTHONIOENCODING="ascii", PYTHONPATH=os.pathsep.join(sys.path))
    line = [sys.executable, "-m", "dcdt.collection", "check", str(folder)]  # draws bars
    done = subprocess.run(line, capture_output=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and b"????" in done.stdout
