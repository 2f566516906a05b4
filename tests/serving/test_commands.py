"""The commands as a user runs them: real processes, kills, several readers, a full disk, two writers."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from commands import dcdt, dcdt_process
from rich.console import Console

from dcdt.data.types import Documents
from dcdt.recommend import answer_links, answer_table
from dcdt.serving.layout import exclusive_lock
from dcdt.serving.moments import Moment
from dcdt.serving.recommender import Recommendation, ServedRecommender
from dcdt.utils.errors import UserError

RIDGE = "model=dcdt_ridge"


def script(text, env, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", text, *map(str, arguments)], env=env, stdout=subprocess.PIPE, text=True
    )


def test_each_command_is_a_process_that_does_its_work(own_copy, environment):
    folder, cache = own_copy("model=bm25"), {"DCDT_CACHE": environment["DCDT_CACHE"]}
    done = dcdt_process("index", folder, "add", "--id", "new", "--title", "Shear of a plane", **cache)
    assert done.returncode == 0 and "21 videos" in done.stdout, done.stderr
    done = dcdt_process("recommend", folder, "shear of a plane", "--json", "-k", 2, **cache)
    assert done.returncode == 0 and json.loads(done.stdout)["answer"][0]["id"] == "new", done.stderr
    line = [sys.executable, "-m", "dcdt.serve", str(folder), "--port", "0"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        address = process.stdout.readline().split()[0]
        with urllib.request.urlopen(f"{address}/search?q=shear+of+a+plane", timeout=30) as answer:
            assert json.load(answer)["videos"][0]["id"] == "new"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


def test_the_table_has_ids_and_its_links_are_whole_lines():
    links = ["https://www.youtube.com/watch?v=" + "a" * 200, "https://youtu.be/b?t=61"]
    moments = [Moment(61.0, "what is said", [], links[1])]
    items = [
        Recommendation(1, 0.5, "id-1", "Title", "text", None, None, links[0], None, moments=moments),
        Recommendation(2, 0.4, "id-2", "Other", "text", None, None, None, None),
    ]
    console = Console(width=80, file=io.StringIO())
    console.print(answer_table("a question", items, explained=False))
    table = console.file.getvalue()
    assert "id-1" in table and "id-2" in table and "at 01:01: what is said" in table and "http" not in table
    assert answer_links(items).splitlines() == [f"   1  {link}" for link in links]


@pytest.mark.slow
def test_recommend_prints_a_table_json_and_reasons_without_torch(own_copy, environment, tmp_path):
    folder = own_copy("model=hybrid_towers")
    blocker = tmp_path / "blocked"
    for name in ("torch", "lightning", "transformers", "lancedb", "faiss"):
        (blocker / name).mkdir(parents=True)
        (blocker / name / "__init__.py").write_text(f"raise RuntimeError('{name} was imported')")
    path = f"{blocker}:{environment['PYTHONPATH']}"

    def recommend(*arguments, **given):
        return dcdt_process("recommend", *arguments, PYTHONPATH=path, DCDT_CACHE=environment["DCDT_CACHE"], **given)

    done = recommend(folder, "rank; of: a [matrix]=$1", "-k", 3)
    assert done.returncode == 0 and "rank; of: a [matrix]=$1" in done.stdout and done.stdout.count("Title") == 3, (
        done.stderr
    )
    done = recommend(folder, "rank", "-k", 2, "--json", "--explain", "--filter", "id!=v1")
    found = json.loads(done.stdout)
    assert [item["rank"] for item in found["answer"]] == [1, 2]
    assert [part["name"] for part in found["answer"][0]["why"]["parts"]] == ["bm25", "dcdt_ridge"]

    done = recommend(folder, "--interactive", "--json", "-k", 1, stdin="rank\n" + "a" * 3000 + "\nspan\n")
    assert [json.loads(line)["question"] for line in done.stdout.splitlines()] == ["rank", "span"]
    assert "3,000 characters" in done.stderr and done.returncode == 0
    (tmp_path / "asked.csv").write_text('id,question\n1,"rank, or span?"\n2,basis\n')
    done = recommend(folder, "--batch", tmp_path / "asked.csv", "-k", 2, "--out", tmp_path / "out.csv")
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [(row["question"], row["rank"]) for row in rows] == [
        ("rank, or span?", "1"), ("rank, or span?", "2"), ("basis", "1"), ("basis", "2"),
    ]  # fmt: skip
    (tmp_path / "odd.tsv").write_text("Their words\tclip\nbasis\t1\n")
    batch = ["--batch", tmp_path / "odd.tsv", "--query-column", "their words", "-k", 1, "--json"]
    done = recommend(folder, *batch)
    assert json.loads(done.stdout)["question"] == "basis" and done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "rank"], "nowhere is not a run"),
        (["RUN", ""], "the question is empty"),
        (["RUN", "rank", "-k", "0"], "k is 0"),
        (["RUN", "rank", "--filter", "x=1"], "the field 'x'"),
        (["RUN", "--batch", "nowhere.csv"], "nowhere.csv: there is no such file"),
        (["RUN", "--batch", __file__], "the ending '.py' is not known"),
        (["RUN"], "give one of"),
    ],
)
def test_mistakes_end_in_a_line_and_exit_code_2(make_run, environment, arguments, said):
    given = [make_run("model=bm25") if part == "RUN" else part for part in arguments]
    done = dcdt("recommend", *given, DCDT_CACHE=environment["DCDT_CACHE"])
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_index_command_adds_updates_deletes_and_informs(own_copy, environment, tmp_path):
    folder = own_copy(RIDGE)

    def index(*arguments):
        return dcdt("index", folder, *arguments, DCDT_CACHE=environment["DCDT_CACHE"])

    done = index(
        "add",
        "--id",
        "new",
        "--title",
        "Shear",
        "--text",
        "shear plane",
        "--meta",
        "series=Mine",
        "--meta",
        "level=intro",
    )
    assert done.returncode == 0 and "added 1" in done.stdout and "21 videos" in done.stdout
    (tmp_path / "more.jsonl").write_text(
        '{"_id": "m1", "title": "One"}\n{"_id": "m2", "text": "two", "metadata": {"number": 7}}\n'
    )
    (tmp_path / "more.csv").write_text("id,title,text,series\nc1,Three,three,Mine\n")
    assert "added 2" in index("add", "--videos", tmp_path / "more.jsonl").stdout
    assert "added 1" in index("add", "--videos", tmp_path / "more.csv").stdout
    (tmp_path / "odd.csv").write_text("Clip Nr;Course Name;Mins\no1;Odd names;7\n")
    odd = ["--id-column", "Clip Nr", "--title-column", "Course Name"]
    assert "added 1" in index("add", "--videos", tmp_path / "odd.csv", *odd).stdout
    assert "deleted 1" in index("delete", "o1").stdout
    assert "updated 1" in index("update", "--id", "c1", "--title", "Four", "--meta", "level=intro").stdout
    assert "deleted 1" in index("delete", "m1").stdout
    served = ServedRecommender(folder)
    found = {item.id: item for item in served.recommend("shear", 1000)[0]}
    edited = found["c1"]
    assert (edited.title, edited.text, edited.series, edited.level) == ("Four", "three", "Mine", "intro")
    assert found["new"].series == "Mine" and "m1" not in found and len(found) == 23
    for arguments, said in [
        (["add", "--id", "v1", "--title", "x"], "the id 'v1' exists already"),
        (["update", "--id", "no", "--title", "x"], "no video with the id 'no'"),
        (["delete", "no"], "no video with the id 'no'"),
        (["add", "--videos", tmp_path / "odd.csv"], "--id-column NAME --title-column NAME"),
        (["add", "--id", "x"], "neither title nor text"),
        (["add"], "either --videos FILE, or --id"),
        (["add", "--videos", tmp_path / "none.jsonl"], "cannot be read"),
        (["add", "--id", "x", "--title", "t", "--meta", "oops"], "no key"),
    ]:
        done = index(*arguments)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "23 videos" in index("info").stdout


CHANGE = """
import sys, os
from dcdt.data.beir import Documents
from dcdt.serving.recommender import ServedRecommender
served = ServedRecommender(sys.argv[1])
rng = __import__("random").Random(int(sys.argv[2]))
print("ready", flush=True)
for step in range(10_000):
    ids = [f"k{step}-{at}" for at in range(3)]
    served.add(Documents(ids, ["rank"] * 3, ["span"] * 3, [{}] * 3))
    print("+", *ids, flush=True)
    served.update(Documents(ids, ["edited"] * 3, ["span"] * 3, [{}] * 3))
    print("=", *ids, flush=True)
    served.delete(ids[:2])
    print("-", *ids[:2], flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_the_old_version_or_the_new_one(own_copy, environment):
    """Three videos are added, edited and deleted at a time, so half of a change would show."""
    folder = own_copy(RIDGE)
    base = {f"v{at}" for at in range(20)}
    kept: set[str] = set()
    for round_ in range(12):
        process = script(CHANGE, environment, folder, round_)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.02 + 0.037 * round_)
        os.kill(process.pid, signal.SIGKILL)
        lines = process.stdout.read().splitlines()
        process.wait()
        served = ServedRecommender(folder)
        found = {item.id: item.title for item in served.recommend("rank", 1000)[0]}
        assert set(found) >= base
        steps: dict[str, set[str]] = {}
        for name in set(found) - base - kept:
            steps.setdefault(name.split("-")[0], set()).add(name)
        said = {name: line[0] for line in lines for name in line.split()[1:]}
        last = max((int(name.split("-")[0][1:]) for name in said), default=-1)
        for step, names in steps.items():
            at = int(step[1:])
            whole = {f"{step}-{number}" for number in range(3)}
            assert names in (whole, {f"{step}-2"}), names
            assert len({found[name] for name in names}) == 1  # all edited, or none
            assert at >= last or names == {f"{step}-2"}
        for name, sign in said.items():  # what was said to be done is done
            if sign == "-":
                assert name not in found
        served.delete([name for name in found if name.startswith("k")]) if set(found) - base else None
        again = ServedRecommender(folder)
        assert {item.id for item in again.recommend("rank", 1000)[0]} == base


READ = """
import sys, time
from dcdt.serving.recommender import ServedRecommender
served = ServedRecommender(sys.argv[1])
print("ready", flush=True)
until = time.monotonic() + 60
seen = 0
while time.monotonic() < until:
    served.catalogue.refresh()
    found = {item.id for item in served.recommend("rank", 1000)[0]}
    marks = {name for name in found if name.startswith("w")}
    assert len(marks) % 2 == 0, marks  # two at a time: half of a change would be odd
    seen += 1
    if "last-1" in found:
        break
print("done", len(marks), seen, flush=True)
"""


@pytest.mark.slow
def test_several_readers_follow_one_writer_and_never_see_half_a_change(own_copy, environment):
    folder = own_copy(RIDGE)
    readers = [script(READ, environment, folder) for _ in range(3)]
    assert [reader.stdout.readline() for reader in readers] == ["ready\n"] * 3
    served = ServedRecommender(folder)
    for step in range(12):
        served.add(Documents([f"w{step}a", f"w{step}b"], ["rank"] * 2, ["span"] * 2, [{}] * 2))
    served.add(Documents(["last-1"], ["rank"], ["span"], [{}]))
    for reader in readers:
        word, marks, _ = reader.communicate(timeout=90)[0].split()
        assert (word, marks, reader.returncode) == ("done", "24", 0)


LANCE_READ = """
import sys, time
from dcdt.serving.catalogue.video_table import VideoTable
index = VideoTable(sys.argv[1])
print("ready", flush=True)
until = time.monotonic() + 60
while time.monotonic() < until and index.rows(columns=["id"]).num_rows < 60:
    index.refresh()
    n = len(index)
    assert n % 2 == 0, n
print("done", len(index), flush=True)
"""


@pytest.mark.slow
def test_several_processes_read_the_lance_catalogue_while_one_writes(environment, tmp_path):
    import numpy as np
    from test_engines import videos

    from dcdt.serving.catalogue.video_table import VideoTable

    rng = np.random.default_rng(0)
    index = VideoTable(str(tmp_path / "catalogue"))
    index.create(videos([f"v{at}" for at in range(20)], rng))
    readers = [script(LANCE_READ, environment, tmp_path / "catalogue") for _ in range(4)]
    assert [reader.stdout.readline() for reader in readers] == ["ready\n"] * 4
    for step in range(20):
        index.add(videos([f"n{step}a", f"n{step}b"], rng))
    for reader in readers:
        assert reader.communicate(timeout=90)[0].split() == ["done", "60"] and reader.returncode == 0


def test_a_second_writer_waits_then_is_told(own_copy, environment):
    folder = own_copy("model=bm25")
    with (
        exclusive_lock(folder),
        pytest.raises(UserError, match=rf"process {os.getpid()} \(since .*\) is changing"),
        exclusive_lock(folder, 0.2),
    ):
        pass
    with exclusive_lock(folder, 0.2):
        pass


@pytest.mark.slow
def test_two_writers_at_once_lose_nothing(own_copy, environment):
    folder = own_copy("model=bm25")
    text = (
        "import sys\nfrom dcdt.data.beir import Documents\n"
        "from dcdt.serving.recommender import ServedRecommender\n"
        "served = ServedRecommender(sys.argv[1])\n"
        "for at in range(15):\n"
        "    served.add(Documents([f'{sys.argv[2]}{at}'], ['rank'], ['span'], [{}]))\n"
    )
    writers = [script(text, environment, folder, name) for name in ("a", "b")]
    assert [writer.wait(120) for writer in writers] == [0, 0]
    assert len(ServedRecommender(folder)) == 50


FULL = """
import resource, signal, sys
from dcdt.data.beir import Documents
from dcdt.utils.errors import UserError
from dcdt.serving.recommender import ServedRecommender
served = ServedRecommender(sys.argv[1])
served.rows(Documents(["warm"], ["rank"], ["span"], [{}]))
served.catalogue.table.refresh()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    served.add(Documents([f"full{at}" for at in range(40)], ["rank"] * 40, ["span " * 400] * 40, [{}] * 40))
    print("added")
except UserError as error:
    print("refused", len(str(error).splitlines()), str(error).splitlines()[0][:60])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(len(served), served.recommend("rank", 1)[0][0].rank)
served.add(Documents(["full0"], ["rank"], ["span"], [{}]))
print(len(served))
"""


@pytest.mark.slow
@pytest.mark.parametrize("limit", [200, 5_000, 40_000])
def test_a_full_disk_during_add_is_told_and_the_old_version_stays(own_copy, environment, limit):
    """A limit on the size of files stands for the full disk; at 40,000 bytes Lance commits and the snapshot fails."""
    folder = own_copy(RIDGE)
    process = script(FULL, environment, folder, limit)
    lines = process.communicate(timeout=90)[0].splitlines()
    assert process.returncode == 0
    assert lines[0].startswith(("refused 1 ", "refused 2 ")) and lines[1:] == ["20 1", "21"], lines
    assert len(ServedRecommender(folder)) == 21
    assert [path for path in Path(folder).rglob("*.tmp")] == []
