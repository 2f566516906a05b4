"""What a service records with --feedback: off by default, whole lines, no address, no id of a user."""

import json
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from urllib.parse import urlencode

import pytest
from commands import dcdt as command
from fastapi.testclient import TestClient
from support import small_run

from dcdt.data.feedback import read_feedback
from dcdt.serving import feedback as serving_feedback
from dcdt.serving.app import make_app
from dcdt.serving.feedback import FeedbackLog
from dcdt.serving.hot_reload import ReloadingRecommender
from dcdt.utils.errors import UserError

SHOWN = {"models": [("m", "b", 1)], "videos": ["v1"], "teams": []}


def events(folder):
    return [json.loads(line) for path in sorted(folder.glob("events-*")) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def recommenders(make_run):
    return [ReloadingRecommender(make_run("model=bm25")), ReloadingRecommender(make_run("model=hybrid_towers"))]


def test_nothing_is_recorded_unless_asked_for(recommenders, tmp_path):
    client = TestClient(make_app(recommenders))
    assert client.get("/search", params={"q": "rank"}).json()["answer"] is None
    assert client.post("/click", params={"answer": "0" * 64, "video": "v1"}).status_code == 404
    assert client.get("/healthz").json()["feedback"] == "off"
    assert "POST /click" not in client.get("/docs").text


@pytest.mark.parametrize("hashed", [False, True])
def test_answers_clicks_and_thumbs_are_recorded(recommenders, tmp_path, hashed):
    client = TestClient(make_app(recommenders, feedback=FeedbackLog(tmp_path, hashed)))
    assert client.get("/healthz").json()["feedback"] == ("hashes" if hashed else "questions")
    found = client.get("/search", params={"q": "  Rank of a\nbasis ", "k": 3}).json()
    again = client.get("/search", params={"q": "rank of a basis?", "k": 2, "model": 2}).json()
    assert client.get("/search", params={"q": "rank", "explain": True}).json()["answer"] is None  # asked for reasons
    ids = [video["id"] for video in found["videos"]]
    for event in ("click", "up", "down"):
        given = {"answer": found["answer"], "video": ids[1], "event": event}
        assert client.post("/click", params=given).status_code == 204
    shown, other, *marks = events(tmp_path)
    pointer = recommenders[0].served.catalogue.pointer
    assert shown["models"] == [["bm25", pointer.build, pointer.version]] and shown["videos"] == ids
    assert other["models"][0][0] == "hybrid_towers" and other["answer"] == again["answer"]
    assert [mark["event"] for mark in marks] == ["click", "up", "down"] and marks[0]["answer"] == shown["answer"]
    assert (shown["question"] == "Rank of a basis") != hashed
    assert (shown["question"] == other["question"]) == hashed  # of the normalised text
    said = "".join(path.read_text() for path in tmp_path.glob("events-*"))
    assert "testclient" not in said and "127.0.0.1" not in said and ("basis" in said) != hashed
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"answer": "0" * 64, "video": "v1"}, 404),
        ({"answer": "x" * 64, "video": "v1"}, 422),
        ({"answer": "0" * 64}, 422),
        ({"answer": "0" * 64, "video": "v" * 1001}, 422),
        ({"answer": "0" * 64, "video": "v1", "event": "like"}, 422),
    ],
)
def test_made_up_clicks_are_refused_and_leave_no_line(recommenders, tmp_path, given, status):
    client = TestClient(make_app(recommenders, feedback=FeedbackLog(tmp_path)))
    assert client.post("/click", params=given).status_code == status
    assert events(tmp_path) == []


def test_learners_are_hashed_with_the_salt_of_the_folder(tmp_path):
    log = FeedbackLog(tmp_path / "one")
    for user in ("anna", "anna", "ben", None):
        log.try_answer("q", user, **SHOWN)
    one = [event["user"] for event in events(tmp_path / "one")]
    assert one[0] == one[1] != one[2] and one[3] is None and "anna" not in str(events(tmp_path / "one"))
    FeedbackLog(tmp_path / "one").try_answer("q", "anna", **SHOWN)  # started again
    assert events(tmp_path / "one")[-1]["user"] == one[0]
    FeedbackLog(tmp_path / "two").try_answer("q", "anna", **SHOWN)
    assert events(tmp_path / "two")[0]["user"] != one[0]
    (tmp_path / "one" / "salt").write_bytes(b"short")
    with pytest.raises(UserError, match="is not the salt"):
        FeedbackLog(tmp_path / "one")


def test_a_full_file_is_followed_by_another_and_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(serving_feedback, "MAX_FILE_BYTES", 1000)
    log = FeedbackLog(tmp_path)
    for at in range(20):
        log.try_answer(f"q{at}", None, **SHOWN)
    files = sorted(tmp_path.glob("events-*"))
    assert len(files) > 2 and all(path.stat().st_size <= 1000 for path in files)
    assert [event["question"] for event in events(tmp_path)] == [f"q{at}" for at in range(20)]
    write = serving_feedback.os.write
    monkeypatch.setattr(serving_feedback.os, "write", lambda file, line: write(file, line[:40]))
    assert log.try_answer("lost", None, **SHOWN) is None
    monkeypatch.undo()
    assert log.try_answer("after", None, **SHOWN) is not None
    assert len(read_feedback(tmp_path).answers) == 21 and not read_feedback(tmp_path).dropped


def test_two_models_are_interleaved_where_none_is_asked_for(recommenders, tmp_path):
    client = TestClient(make_app(recommenders, feedback=FeedbackLog(tmp_path), interleave=True))
    assert client.get("/healthz").json()["interleaved"] is True
    found = client.get("/search", params={"q": "rank of a basis", "k": 6}).json()
    alone = [client.get("/search", params={"q": "rank of a basis", "k": 6, "model": at}).json() for at in (1, 2)]
    assert found["model"] == "bm25 and hybrid_towers"
    shown = events(tmp_path)[0]
    assert shown["teams"].count(0) == shown["teams"].count(1) == 3
    assert [video["id"] for video in found["videos"]] == shown["videos"] and len(set(shown["videos"])) == 6
    assert [video["rank"] for video in found["videos"]] == [1, 2, 3, 4, 5, 6]
    for team, answer in enumerate(alone):
        ids = [video["id"] for video in answer["videos"]]
        assert {video for video, of in zip(shown["videos"], shown["teams"], strict=True) if of == team} <= set(ids)
    assert events(tmp_path)[1]["teams"] == []
    learner = client.get("/search", params={"q": "rank of a basis", "user": "anna"})  # of whom neither model knows
    assert learner.status_code == 200 and events(tmp_path)[3]["user"] is not None
    done = command("report", "--interleaved", tmp_path)
    assert "0 won, 0 lost, 2 tied" in done.stdout and done.returncode == 0


def test_the_command_refuses_options_that_do_not_go_together(tmp_path):
    for given, said in (
        (["--interleave"], "give --beside RUN and --feedback FOLDER"),
        (["--hash-questions"], "--hash-questions is of --feedback FOLDER"),
    ):
        done = command("serve", tmp_path, *given)
        assert done.returncode == 2 and said in done.stderr
    assert "give DIR of runs, or --interleaved" in command("report").stderr


class Server:
    """A real service in a process of its own."""

    def __init__(self, run, folder, environment):
        line = [sys.executable, "-m", "dcdt.serve", str(run), "--port", "0", "--feedback", str(folder)]
        self.process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self.address = self.process.stdout.readline().split()[0].rstrip("/")

    def ask(self, question):
        with urllib.request.urlopen(f"{self.address}/search?{urlencode({'q': question, 'k': 5})}", timeout=60) as got:
            return json.loads(got.read())

    def click(self, answer, video):
        given = urlencode({"answer": answer["answer"], "video": video})
        with urllib.request.urlopen(
            urllib.request.Request(f"{self.address}/click?{given}", method="POST"), timeout=60
        ) as got:
            return got.status


@pytest.mark.slow
def test_the_loop_from_answers_to_training_with_a_killed_server_in_the_middle(own_copy, bench, environment, tmp_path):
    run, log = own_copy("model=dcdt_ridge"), tmp_path / "log"
    server = Server(run, log, environment)
    try:
        first = server.ask("shear of a plane")
        assert server.click(first, first["videos"][1]["id"]) == 204
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(30)
        with (max(log.glob("events-*"))).open("a") as file:
            file.write('{"answer": "cut')  # what a kill leaves of a line
        server = Server(run, log, environment)
        assert server.click(first, first["videos"][2]["id"]) == 204  # a page that stayed open
        second = server.ask("shear of a plane")
        assert server.click(second, second["videos"][1]["id"]) == 204
        with pytest.raises(urllib.error.HTTPError, match="404"):
            server.click({"answer": "0" * 64}, "v1")
    finally:
        server.process.terminate()
        server.process.wait(30)
    found = read_feedback(log)
    assert len(found.answers) == 2 and sum(map(len, found.values.values())) == 3
    assert found.dropped == {"unreadable lines": 1}
    collection, table = shutil.copytree(bench / "small", tmp_path / "small"), tmp_path / "table.csv"
    refused = command("collection", "feedback", log, "--into", collection)
    assert refused.returncode == 2 and "--propensities FILE" in refused.stderr  # one question, in one order
    table.write_text("rank,propensity\n1,1\n2,0.5\n3,0.4\n")
    done = command("collection", "feedback", log, "--into", collection, "--propensities", table)
    assert "2 answers were read; 2 judgments of 1 question were added." in done.stdout, done.stderr
    assert "dropped: 1 unreadable lines." in done.stdout
    run = small_run(collection, bench / "tiny", tmp_path / "learned", "model=dcdt_ridge")
    assert json.loads((run / "provenance.json").read_text())["weak"] == {"train": 1, "clicks": 1}
    assert command("report", run, "--out", tmp_path / "report").returncode == 0
    assert (
        "1 training queries of some rows have weighted clicks as judgments"
        in (tmp_path / "report" / "table.md").read_text()
    )
