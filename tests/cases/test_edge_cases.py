"""Faults that people met at the edges of the product: signals, secrets, strangers, shells, terminals, servers."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from commands import FAST, clean_environment, dcdt, mended, on
from embeddings.loopback import Loopback, Trouble
from fastapi.testclient import TestClient
from omegaconf import OmegaConf
from reporting.run_folders import write_run
from support import make_collection

from dcdt.config import config_folder, validate
from dcdt.config.validation import _shown
from dcdt.embeddings.config import OpenAIEmbedderConfig
from dcdt.embeddings.providers.openai import OpenAIEmbedder
from dcdt.runs.reader import first_line
from dcdt.serve import LOOPBACK
from dcdt.serving.app import make_app
from dcdt.serving.hot_reload import ReloadingRecommender
from dcdt.utils.errors import UserError
from dcdt.utils.files import MAX_JSON_BYTES
from dcdt.utils.text import one_line

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A collection with its vectors."""
    return make_collection(tmp_path_factory.mktemp("collection") / "small", n_videos=20, n_queries=60)


def raising(number):
    """A function that a signal ends."""
    return lambda *_, **__: os.kill(os.getpid(), number)


# ---- signals


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_run_in_one_line_and_it_can_be_resumed(folder, tmp_path, monkeypatch, number, code):
    from dcdt.models.recommender import Recommender

    run = tmp_path / "my run"
    with monkeypatch.context() as patch:
        patch.setattr(Recommender, "on_validation_epoch_end", raising(number))
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


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_ends_a_sweep_at_once(folder, tmp_path, monkeypatch, number, code):
    monkeypatch.setattr("dcdt.training.fit.train", raising(number))
    done = dcdt("run", "-m", *on(folder, tmp_path), *FAST, "model=bm25,zero_shot", f"hydra.sweep.dir={tmp_path}/s")
    assert done.returncode == code and "the same command continues the sweep" in done.stderr.splitlines()[-1]
    [status] = (tmp_path / "s").glob("*/status.json")
    assert json.loads(status.read_text())["status"] == "interrupted"


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize(
    ("command", "arguments", "work"),
    [
        ("report", ["RUN"], "dcdt.report.report"),
        ("recommend", ["RUN", "a question"], "dcdt.recommend.load"),
        ("index", ["RUN", "info"], "dcdt.index.load"),
        ("collection", ["check", "RUN"], "dcdt.collection.check_collection"),
        ("serve", ["RUN"], "dcdt.serve._socket"),
        ("doctor", [], "dcdt.doctor.packages"),
        ("embed", ["data=files", "data.path=RUN"], "dcdt.embed.run"),
    ],
)
def test_a_signal_ends_every_command_in_one_line(tmp_path, monkeypatch, command, arguments, work, number, code):
    monkeypatch.setattr("dcdt.serving.hot_reload.ReloadingRecommender.__init__", lambda *_: None)
    monkeypatch.setattr(work, raising(number))
    done = dcdt(command, *(text.replace("RUN", str(tmp_path)) for text in arguments))
    assert done.returncode == code
    assert done.stderr.startswith(f"stopped by {signal.Signals(number).name}; ") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_signal_during_the_report_of_a_sweep_prints_the_command_that_repeats_it(tmp_path, monkeypatch):
    from dcdt.report import report_sweep
    from dcdt.utils.signals import Interrupted, interruptible

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


# ---- strangers

EVIL = "\x1b[2J\x1b]0;pwned\x1b\\ \u202egnp.exe\u202c \x9b31m [/red]"
FORMULA = '=HYPERLINK("http://evil","x")'


def is_harmless(text):
    return not set(text) & set("\x1b\x9b\u202e\u202c\r")


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


def test_a_run_with_checkpoints_elsewhere_is_not_resumed(own_copy, tmp_path):
    run = own_copy("model=dcdt", "model.width=4")
    shutil.rmtree(run / "checkpoints")
    (run / "status.json").write_text(json.dumps(json.loads((run / "status.json").read_text()) | {"status": "running"}))
    (run / "checkpoints").symlink_to(tmp_path)
    mended(dcdt("run", f"resume={run}"), "is a link that leads out")


@pytest.mark.parametrize("name", ["metrics.json", "status.json", "config.yaml", "history.csv", "link"])
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


# ---- terminals


def test_a_terminal_that_is_not_utf_8_shows_question_marks(folder):
    env = clean_environment(PYTHONIOENCODING="ascii", PYTHONPATH=os.pathsep.join(sys.path))
    line = [sys.executable, "-m", "dcdt.collection", "check", str(folder)]  # draws bars
    done = subprocess.run(line, capture_output=True, env=env, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and b"????" in done.stdout
