"""A catalogue at an address: several machines (copies of a run) that write and follow one table; and search in it."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from commands import dcdt_process
from test_app import ask
from test_engines import videos

from dcdt.data.types import Documents
from dcdt.serving.catalogue.video_table import VideoTable, check_address
from dcdt.serving.export import build
from dcdt.serving.load import load
from dcdt.serving.recommender import ServedRecommender
from dcdt.utils.errors import UserError

RIDGE = "model=dcdt_ridge"
SECRET = "not-to-be-written-anywhere"
MOTO = os.environ.get("DCDT_MOTO_SERVER") or shutil.which("moto_server")


@pytest.fixture
def machines(own_copy, tmp_path):
    """Copies of a run, as on so many machines, whose table lies at one address."""

    def make(address, n, overrides=(RIDGE,)):
        first = own_copy(*overrides)
        build(first, catalogue=str(address))
        return [first, *(shutil.copytree(first, tmp_path / f"machine{at}") for at in range(1, n))]

    return make


def ids_of(served):
    return {item.id for item in served.recommend("rank", 1000)[0]}


@pytest.mark.slow
def test_what_one_machine_writes_the_others_answer_with(machines, tmp_path):
    one, two = map(ServedRecommender, machines(tmp_path / "common", 2))
    assert not list(one.catalogue.folder.glob("catalogue")) and list((tmp_path / "common").glob("*/videos.lance"))
    assert one.catalogue.refresh() == two.catalogue.refresh() == "same"
    one.add(Documents(["a"], ["span"], ["span"], [{"level": "intro"}]))
    assert two.catalogue.refresh() == "changed" and "a" in ids_of(two)
    two.update(Documents(["a"], ["rank"], ["rank"], [{"level": "late"}]))
    two.delete(["v3"])
    assert "v3" in ids_of(one) and one.catalogue.refresh() == "changed" and "v3" not in ids_of(one)
    assert [item.title for item in one.recommend("rank", 1, "level=late")[0]] == ["rank"]
    with pytest.raises(UserError, match="the id 'a' exists already"):
        one.add(Documents(["a"], ["span"], ["span"], [{}]))
    third = ServedRecommender(shutil.copytree(one.catalogue.run, tmp_path / "third"))  # starts from an old snapshot
    assert ids_of(third) == ids_of(one) == ids_of(two)
    assert third.recommend("rank", 1000) == two.recommend("rank", 1000)
    shutil.rmtree(tmp_path / "common")
    with pytest.raises(UserError, match="cannot be used"):
        two.catalogue.refresh()
    assert ids_of(two) == ids_of(third)  # what is in memory goes on answering


def test_a_writer_that_read_an_old_version_is_seen_by_all_and_told_of_a_taken_id(tmp_path):
    rng = np.random.default_rng(0)
    one = VideoTable(str(tmp_path / "table"))
    one.create(videos(["v"], rng))
    two = VideoTable(str(tmp_path / "table"))
    before = two.version
    one.add(videos(["a"], rng))
    two.add(videos(["b"], rng))  # commits after "a", which it did not know
    one.refresh()
    assert set(one.rows(since=before)["id"].to_pylist()) == {"a", "b"}
    assert one.rows(since=before + 1)["id"].to_pylist() == ["b"]  # a reader that has seen "a" finds it
    two.add(videos(["c"], rng))
    one._is_present = lambda ids: np.zeros(len(ids), dtype=bool)  # its look at the ids came a moment too early
    before = two.version
    with pytest.raises(UserError, match="another machine added the id 'c' just now and keeps it"):
        one.add(videos(["c", "d"], rng))
    two.refresh()
    assert sorted(two.rows()["id"].to_pylist()) == ["a", "b", "c", "d", "v"]
    assert two.rows(since=before)["id"].to_pylist() == ["d"]  # nobody ever sees two "c"


WRITE = """
import sys
from dcdt.data.beir import Documents
from dcdt.serving.recommender import ServedRecommender
served = ServedRecommender(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for at in range(12):
    name = f"{sys.argv[2]}{at}"
    served.add(Documents([name], ["rank"], ["span"], [{}]))
    if at % 2:
        served.update(Documents([name], ["edited " + name], ["span"], [{}]))
    if at % 3 == 0:
        served.delete([name])
"""


@pytest.mark.slow
def test_two_machines_that_write_at_once_lose_nothing_and_a_third_sees_it_all(machines, environment, tmp_path):
    folders = machines(tmp_path / "common", 3)
    reader = ServedRecommender(folders[2])
    line = [sys.executable, "-c", WRITE]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    writers = [subprocess.Popen([*line, folder, name], **pipes) for folder, name in zip(folders, "ab", strict=False)]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 2
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    while any(writer.poll() is None for writer in writers):
        reader.catalogue.refresh()
        time.sleep(0.02)
    assert [writer.wait(60) for writer in writers] == [0, 0]
    reader.catalogue.refresh()
    wanted = {f"{name}{at}" for name in "ab" for at in range(12) if at % 3}
    found = {item.id: item.title for item in reader.recommend("rank", 1000)[0]}
    assert {name for name in found if name[0] in "ab"} == wanted
    for name in wanted:
        assert found[name] == (f"edited {name}" if int(name[1:]) % 2 else "rank")
    fresh = {item.id: item.title for item in ServedRecommender(folders[0]).recommend("rank", 1000)[0]}
    assert fresh == found


@pytest.fixture(scope="module")
def object_store():
    """A server on this machine that speaks S3, with one bucket."""
    if MOTO is None:
        pytest.skip("an object store needs moto_server on PATH or in DCDT_MOTO_SERVER (pip install 'moto[server]')")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = [MOTO, "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    for _ in range(150):
        try:
            urllib.request.urlopen(urllib.request.Request(f"{url}/videos", method="PUT"), timeout=5).close()
            break
        except OSError:
            time.sleep(0.1)
    keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**keys, "AWS_ENDPOINT": url, "AWS_ALLOW_HTTP": "true"}.items():
            patch.setenv(name, value)
        yield {**keys, "AWS_ENDPOINT": url, "AWS_ALLOW_HTTP": "true"}
    process.terminate()
    process.wait(30)


@pytest.mark.extra
def test_an_object_store_holds_the_catalogue_that_servers_follow(own_copy, object_store, environment, tmp_path):
    env = {**environment, **object_store}

    def index(folder, *arguments):
        return dcdt_process("index", folder, *arguments, **object_store, DCDT_CACHE=environment["DCDT_CACHE"])

    folder = own_copy(RIDGE)
    done = index(folder, "build", "--catalogue", "s3://videos/team")
    assert done.returncode == 0 and "catalogue: s3://videos/team/" in done.stdout, done.stderr
    other = shutil.copytree(folder, tmp_path / "other")
    servers, ports = [], []
    try:
        for engine in ("memory", "lance"):
            line = [sys.executable, "-m", "dcdt.serve", str(other), "--port", "0", "--engine", engine]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
            servers.append(subprocess.Popen(line, env=env, **pipes))
            ports.append(int(servers[-1].stdout.readline().split(":")[2].split()[0]))
        added = index(folder, "add", "--id", "new", "--title", "Shear", "--meta", "level=intro")
        assert "21 videos" in added.stdout, added.stderr
        assert "deleted 1" in index(folder, "delete", "v3").stdout
        for port in ports:
            until = time.monotonic() + 30
            while ask(port, "/healthz")["models"][0]["videos"] != 20 or not (
                found := ask(port, "/search?q=shear&filter=level%3Dintro")["videos"]
            ):
                assert time.monotonic() < until
                time.sleep(0.1)
            assert [item["id"] for item in found] == ["new"]
            assert "v3" not in {item["id"] for item in ask(port, "/search?q=rank&k=100")["videos"]}
    finally:
        for server in servers:
            server.terminate()
            server.wait(30)
    for path in folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    wrong = index(folder, "build", "--catalogue", "s3://nowhere/team")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr and "keys in the environment" in wrong.stderr
    assert SECRET not in wrong.stderr
    assert "20 videos" in index(folder, "info").stdout  # the build before still counts


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [(RIDGE,), ("model=dcdt",), ("model=dcdt_history",)], ids=",".join)
def test_the_table_itself_answers_as_the_memory_does(own_copy, overrides):
    folder = own_copy(*overrides)
    memory, table = ServedRecommender(folder), load(folder, engine="lance")
    users = [None, *(["u1"] if memory.learners else [])]
    for change in (None, lambda: memory.add(Documents(["new"], ["span"], ["span"], [{"level": "intro"}]))):
        if change is not None:
            change()
            assert table.catalogue.refresh() == "changed" and table.catalogue.refresh() == "same"
        assert len(table) == len(memory)
        for where in ("", "id=v1|v2|v3|new", "level=intro"):
            for user in users:
                one, two = (part.recommend("span rank", 5, where, True, user=user)[0] for part in (memory, table))
                assert [item.score for item in one] == pytest.approx([item.score for item in two], abs=1e-5)
                for left, right in zip(one, two, strict=True):
                    if left.id == right.id:  # twins may change places
                        assert left.why["parts"][0]["fields"] == pytest.approx(
                            right.why["parts"][0]["fields"], abs=1e-5
                        )
    assert not any(matrix.size for matrix in table.catalogue.snapshot.built.vectors.values())
    with pytest.raises(UserError, match="engine=lance reads the catalogue"):
        table.delete(["v1"])


@pytest.mark.parametrize("overrides", [("model=bm25",), ("model=hybrid_towers",)], ids=",".join)
def test_a_model_that_needs_the_whole_catalogue_refuses_the_table(make_run, overrides):
    folder = make_run(*overrides)
    load(folder)
    with pytest.raises(UserError, match="needs the whole catalogue in memory") as error:
        load(folder, engine="lance")
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(UserError, match="engine is 'disk'"):
        load(folder, engine="disk")


def test_addresses_hold_no_keys_and_errors_repeat_none(tmp_path, monkeypatch):
    assert check_address("s3://bucket/path/") == "s3://bucket/path"
    assert check_address(str(tmp_path)) == str(tmp_path) and check_address("here").startswith("/")
    for text in ("s3://key:secret@bucket/path", "s3://bucket/path?secret=1", "ftp://host/path", "s3://"):
        with pytest.raises(UserError, match="the catalogue's address"):
            check_address(text)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)

    def denied():
        raise RuntimeError(f"denied with {SECRET}")

    with pytest.raises(UserError, match=r"denied with \*\*\*"), VideoTable(str(tmp_path))._user_errors():
        denied()


def test_an_address_that_cannot_be_written_leaves_no_build(own_copy, tmp_path):
    folder = own_copy("model=bm25")
    before = (folder / "serving" / "current.json").read_text()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError):
        build(folder, catalogue=str(tmp_path / "file"))
    assert (folder / "serving" / "current.json").read_text() == before
    assert not list((folder / "serving").glob(".build-*"))
