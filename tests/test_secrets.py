"""No key of the environment is in any file or line that a run, a report or a service leaves, even where it fails."""

import json
import os
import signal
import subprocess
import sys
import urllib.request

import pytest
from embeddings.loopback import Loopback, Trouble
from support import write_folder

KEYS = {
    "OPENAI_API_KEY": "sk-proj-0fake1OPENAI2key3never4seen",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_0fakeTOKENneverSEEN",
}
# The training breaks with an error that quotes all there is: the environment, and a header made of it.
BROKEN = """
import os, sys
import dcdt.training.fit as setup
def breaking(*_):
    header = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    raise RuntimeError(f"request failed: {header} {dict(os.environ)}")
setup.train = breaking
from dcdt.run import main
main()
"""


@pytest.fixture
def place(tmp_path):
    videos = [{"_id": f"v{at}", "title": f"Title {at}", "text": f"What video {at} is about"} for at in range(20)]
    queries = [{"_id": f"q{at}", "text": f"What is question {at} about"} for at in range(50)]
    return write_folder(tmp_path / "c", videos, queries, all=[f"q{at}\tv{at % 20}\t1" for at in range(50)]).parent


def environment(place, server):
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    kept = {name: value for name, value in kept.items() if not name.startswith(("WANDB", "DCDT"))}
    own = {"HOME": str(place / "home"), "DCDT_CACHE": str(place / "cache"), "OPENAI_BASE_URL": server.url}
    own |= {"WANDB_MODE": "offline", "WANDB_DIR": str(place), "TMPDIR": str(place / "tmp")}
    (place / "tmp").mkdir(exist_ok=True)
    (place / "home").mkdir(exist_ok=True)
    return {**kept, **KEYS, **own, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def given(place, server):
    small = ["embedder=openai", "embedder.model=m", "embedder.dimensions=16", "trainer=cpu", "trainer.max_epochs=2"]
    return ["data=files", f"data.path={place}/c", f"data.cache={place}/cache", f"outputs={place}/out", *small]


def clean(place, *said):
    """Every file below a folder, byte by byte, and everything that was printed."""
    files = [path for path in place.rglob("*") if path.is_file()]
    assert len(files) > 10
    for name, key in KEYS.items():
        for form in (key.encode(), key.encode("utf-16-le"), key[4:].encode()):
            assert [path for path in files if form in path.read_bytes()] == [], name
        assert all(key not in text and key[4:] not in text for text in said), name


@pytest.mark.slow
def test_no_file_and_no_line_of_a_whole_journey_holds_a_key(place):
    with Loopback(width=16) as server:
        env = environment(place, server)

        def command(module, *arguments, code=0):
            line = [sys.executable, "-m", f"dcdt.{module}", *map(str, arguments)]
            done = subprocess.run(line, capture_output=True, text=True, env=env, timeout=300, cwd=place)
            assert done.returncode == code, done.stderr
            return done.stdout + done.stderr

        run = place / "out" / "run"
        said = [command("doctor"), command("embed", *given(place, server))]
        said.append(
            command("run", *given(place, server), "logger=wandb", "logger.artifacts=true", f"hydra.run.dir={run}")
        )
        assert list((place / "out" / "wandb").glob("offline-run-*/run-*.wandb"))
        said.append(command("report", run, "--wandb"))
        said.append(command("recommend", run, "What is question 3 about", "--json", "--explain"))
        said.append(command("index", run, "add", "--id", "new", "--title", "New"))
        # a key that somebody puts where it does not belong
        key = KEYS["OPENAI_API_KEY"]
        command("run", *given(place, server), f"+embedder.api_key={key}", code=2)
        said.append(command("run", "-m", *given(place, server), "logger=wandb", f"+embedder.api_key={key}", code=2))
        said.append(command("recommend", run, f"my key is {key}"))
        with (place / "served.log").open("w") as log:
            line = [sys.executable, "-m", "dcdt.serve", str(run), "--port", "0", "--log-questions"]
            process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log, text=True, env=env, cwd=place)
            address = process.stdout.readline().split()[0]
            for question in ("What+is+question+3+about", f"my+key+is+{key}"):
                with urllib.request.urlopen(f"{address}/search?q={question}", timeout=30) as answer:
                    assert json.load(answer)["videos"]
            process.send_signal(signal.SIGINT)
            process.wait(timeout=30)
        assert sum(server.answered.values()) > 50
        assert {f"Bearer {key}"} == {request.get("authorization") for request in server.headers}  # the key was in use
    clean(place, *said)


@pytest.mark.slow
@pytest.mark.parametrize("sweeping", [False, True])
def test_an_error_that_quotes_the_environment_shows_no_key(place, sweeping):
    with Loopback(width=16) as server:
        env = environment(place, server)
        line = [sys.executable, "-c", BROKEN, *(["-m", "seed=0,1"] if sweeping else []), *given(place, server)]
        done = subprocess.run([*line, "logger=wandb"], capture_output=True, text=True, env=env, timeout=300, cwd=place)
    assert done.returncode == 1 and "request failed" in done.stderr and "***" in done.stderr
    statuses = [json.loads(path.read_text()) for path in (place / "out").rglob("status.json")]
    assert len(statuses) == 1 + sweeping
    assert all("***" in status["error"] and status["status"] == "failed" for status in statuses)
    clean(place, done.stdout, done.stderr)


@pytest.mark.slow
def test_a_server_that_repeats_the_key_is_not_quoted(place):
    def misbehave(server, number, payload):
        raise Trouble(400, f"bad header: Authorization: Bearer {KEYS['OPENAI_API_KEY']}")

    with Loopback(misbehave) as server:
        env = environment(place, server)
        line = [sys.executable, "-m", "dcdt.embed", *given(place, server)]
        done = subprocess.run(line, capture_output=True, text=True, env=env, timeout=300, cwd=place)
    assert done.returncode == 2 and "bad header" in done.stderr
    assert all(key not in done.stdout + done.stderr for key in KEYS.values())


def test_values_are_redacted_wherever_they_stand(monkeypatch, capsys):
    from dcdt.utils.redaction import redact, redact_output, redact_values

    monkeypatch.setenv("SOME_SERVICE_TOKEN", "tok-0123456789")
    monkeypatch.setenv("KEYBOARD", "innocent-value")
    monkeypatch.setenv("MY_API_KEY", "short")
    assert redact("a tok-0123456789 b short innocent-value") == "a *** b short innocent-value"
    assert redact_values({"x": ["tok-0123456789", 1, None]}) == {"x": ["***", 1, None]}
    redact_output()
    redact_output()
    sys.stdout.write("tok-0123456789\n")
    sys.stderr.writelines(["tok-", "tok-0123456789\n"])
    assert capsys.readouterr() == ("***\n", "tok-***\n")
