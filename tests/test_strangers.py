"""Runs, checkpoints and collections of strangers are data: nothing in them is executed, looked up or shown as code."""

import json
import os
import pickle
import shutil
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from commands import dcdt, dcdt_process
from embeddings.loopback import Loopback
from support import make_collection, write_folder
from test_faults import told

from dcdt.serving.layout import CHECKSUMS, fingerprint, read_pointer
from dcdt.serving.load import load
from dcdt.serving.recommender import ServedRecommender
from dcdt.training.checkpoint import restore
from dcdt.utils.errors import UserError
from dcdt.utils.files import read_json, write_json

SLOW = pytest.mark.slow
EVIL = '<script>alert("x")</script>'


class Trap:
    """What a checkpoint of an attacker holds: an object whose unpickling runs a command."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.system, (f"touch {self.place}",)


@pytest.fixture
def run(own_copy):
    """A finished run with its index."""
    return own_copy("model=dcdt_ridge")


def refused(action, *said):
    with pytest.raises(UserError) as error:
        action()
    assert len(str(error.value).splitlines()) <= 2
    for text in said:
        assert text in str(error.value)


def changed(path, **values):
    """A configuration with other values, by dotted names."""
    config = yaml.safe_load(path.read_text())
    for name, value in values.items():
        *groups, key = name.split("__")
        part = config
        for group in groups:
            part = part[group]
        part[key] = value
    path.write_text(yaml.safe_dump(config))


# ---- nothing is executed


@pytest.mark.parametrize("whole", [True, False])
def test_a_pickle_in_a_checkpoint_is_not_executed(run, tmp_path, whole):
    trap, path = Trap(tmp_path / "sprung"), run / "checkpoints" / "best.ckpt"
    if whole:
        path.write_bytes(pickle.dumps(trap))
    else:
        torch.save({"state_dict": {"weight": torch.zeros(1)}, "epoch": trap}, path)
    refused(lambda: restore(run), "best.ckpt is corrupt or holds more than tensors and plain values")
    shutil.rmtree(run / "serving")
    refused(lambda: load(run), "best.ckpt is corrupt")
    assert not (tmp_path / "sprung").exists()
    pickle.loads(pickle.dumps(trap))  # the trap is a real one
    assert (tmp_path / "sprung").exists()


def test_a_pickle_in_the_state_of_training_is_not_executed(run, tmp_path):
    from dcdt.training.checkpoint import read_state

    torch.save({"state_dict": {}, "trap": Trap(tmp_path / "sprung")}, run / "checkpoints" / "last.ckpt")
    refused(lambda: read_state(run / "checkpoints" / "last.ckpt"), "last.ckpt is corrupt", "Delete it")
    assert not (tmp_path / "sprung").exists()


@SLOW
def test_a_run_of_a_stranger_given_to_every_command_executes_nothing(run, tmp_path):
    """`_target_`, a tag of Python's YAML, a pickle and a resolver, given to recommend, serve, report and resume."""
    sprung = tmp_path / "sprung"
    texts = {
        "target": f"model:\n  _target_: os.system\n  command: touch {sprung}\n  name: os.system\n"
        "split: {index: 0}\nseed: 0\n",
        "tag": f"model: !!python/object/apply:os.system ['touch {sprung}']\n",
        "resolver": (run / "config.yaml").read_text().replace("seed: 0", "seed: ${oc.env:OPENAI_API_KEY}"),
    }
    shutil.rmtree(run / "serving")
    secret = {"OPENAI_API_KEY": "sk-a-secret-of-the-test"}
    torch.save({"x": Trap(sprung)}, run / "checkpoints" / "last.ckpt")
    for name, text in texts.items():
        (run / "config.yaml").write_text(text)
        for command in (["recommend", str(run), "rank"], ["serve", str(run), "--port", "0"], ["run", f"resume={run}"]):
            done = dcdt_process(*command, **secret)
            told(done)
            assert "sk-a-secret" not in done.stdout + done.stderr, name
        done = dcdt_process("report", str(run), **secret)
        assert done.returncode in (0, 2) and "Traceback" not in done.stderr
        assert "sk-a-secret" not in done.stdout + done.stderr
    assert not sprung.exists()


def test_no_variable_of_the_environment_is_looked_up_for_a_stranger(run, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret-of-the-test")
    for value in ("${oc.env:OPENAI_API_KEY}", "\\${oc.env:OPENAI_API_KEY}", "x${oc.decode:'1'}", "${seed}"):
        changed(run / "config.yaml", experiment_name=value)
        refused(lambda: restore(run), "config.yaml holds", "would be looked up")
    changed(run / "config.yaml", experiment_name=None)
    write_json(run / "tuning.json", {"chosen": {"loss": {"name": "${oc.env:OPENAI_API_KEY}"}}})
    refused(lambda: restore(run), "tuning.json holds", "would be looked up")
    (run / "tuning.json").unlink()
    model = run / "serving" / read_pointer(run).build / "model.json"
    write_json(model, read_json(model) | {"collection": "${oc.env:OPENAI_API_KEY}", "run": fingerprint(run)})
    refused(lambda: ServedRecommender(run), "model.json holds", "would be looked up")


def test_aliases_that_fill_any_memory_are_refused(run):
    names = "abcdefghi"
    lines = [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in pairwise(names)]
    bomb = "\n".join(["a: &a [x, x, x, x, x, x, x, x, x]", *lines])
    (run / "config.yaml").write_text(bomb)
    refused(lambda: restore(run), "repeats a part by an alias")
    (run / "config.yaml").write_text("a: " + "x" * (2 << 20))
    refused(lambda: restore(run), "more than 1,048,576 bytes")


def test_only_known_modules_are_imported_by_name(run):
    changed(run / "config.yaml", embedder__package="antigravity")
    refused(lambda: restore(run), "neither a folder nor one of the known packages")
    assert "antigravity" not in sys.modules


# ---- no key and no question goes to an address that only a run's files name


def test_an_address_of_a_stranger_is_not_asked(run, monkeypatch):
    with Loopback(width=32) as server:
        openai = {"name": "openai", "model": "m", "dimensions": 32, "shorten": False, "normalise": False}
        openai |= {"base_url": server.url, "max_tokens": 100, "request_inputs": 8, "request_tokens": 1000}
        openai |= {"concurrency": 1, "timeout": 5, "patience": 5, "price": None}
        monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret-of-the-test")
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
        changed(run / "config.yaml", embedder=openai)
        refused(lambda: restore(run), server.url, f"export OPENAI_BASE_URL={server.url}")
        model = run / "serving" / read_pointer(run).build / "model.json"
        write_json(model, read_json(model) | {"embedder": openai, "run": fingerprint(run)})
        (model.parent / CHECKSUMS).unlink()
        refused(lambda: load(run).recommend("my question"), server.url)
        assert len(server.requests) == 0
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        load(run).recommend("my question")
        assert len(server.requests) == 1


# ---- no path leads out of the folder


@pytest.mark.parametrize("build", ["../elsewhere", "/tmp/elsewhere", "..", "", "a/b", "x" * 200, 7, None])
def test_a_pointer_that_leads_elsewhere_is_refused_and_no_build_is_lost(run, build):
    builds = {path.name for path in (run / "serving").iterdir() if path.is_dir()}
    shutil.copytree(run / "serving" / read_pointer(run).build, run / "elsewhere")
    path = run / "serving" / "current.json"
    write_json(path, read_json(path) | {"build": build})
    refused(lambda: load(run), "current.json is corrupt", "index")
    assert {path.name for path in (run / "serving").iterdir() if path.is_dir()} == builds


ODD = ["../../escaped", "/etc/escaped", "..\\escaped", "a/b", ".", "~root", "CON", "%2e%2e%2fescaped", "-rf"]


@SLOW
def test_ids_and_names_that_look_like_paths_stay_inside(tmp_path):
    """Through training, W&B, report, index and batch: every file lies where it should."""
    home = tmp_path / "deep" / "er"
    videos = [{"_id": f"{ODD[at % len(ODD)]}{at}", "title": f"Title {at}", "text": f"about {at}"} for at in range(24)]
    queries = [{"_id": f"{ODD[at % len(ODD)]}q{at}", "text": f"question {at} about"} for at in range(40)]
    qrels = [f"{query['_id']}\t{videos[at % 24]['_id']}\t1" for at, query in enumerate(queries)]
    collection = write_folder(home / "c", videos, queries, all=qrels)
    (collection / "collection.yaml").write_text("name: ../../escaped\n")
    before = {path for path in tmp_path.rglob("*")}
    run = home / "out" / "run"
    given = ["data=files", f"data.path={collection}", f"outputs={home}/out", f"hydra.run.dir={run}", "model=bm25"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCDT_CACHE", str(home / "cache"))
        from embeddings.tiny import write_model

        given += [f"embedder.package={write_model(home / 'tiny')}", "embedder.layer_weights=[0.2,1.0]"]
        given += ["embedder.max_tokens=32", f"data.cache={home}/cache", "trainer=cpu", "callbacks.progress=false"]
        done = dcdt_process("run", *given, "logger.mode=offline", "logger.artifacts=true", HOME=str(home / "home"))
        assert done.returncode == 0, done.stderr
        assert dcdt("report", str(run)).returncode == 0
        done = dcdt("index", str(run), "add", "--id", "../../../escaped", "--title", "about paths")
        assert done.returncode == 0, done.stderr
    new = {path for path in tmp_path.rglob("*")} - before
    assert all(path.is_relative_to(home) for path in new)
    assert not [path for path in new if "escaped" in path.name and path.is_file() and path.parent != run]
    assert not list(Path("/etc").glob("escaped*")) and not list(tmp_path.parent.glob("escaped*"))


def test_the_vectors_of_a_model_with_an_odd_name_stay_in_the_cache():
    from dcdt.embeddings.cache import Space

    for name in ODD:
        assert "/" not in Space("local", name, 8, "l2").folder and "\\" not in Space("local", name, 8, "l2").folder


# ---- what is shown is text


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.names, self.attributes = [], []

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.attributes += [name for name, _ in attributes]


@SLOW
def test_html_in_titles_and_questions_is_text_on_the_report(tmp_path):
    folder = make_collection(tmp_path / "c", n_videos=20, n_queries=60)
    for name, key in (("corpus", "title"), ("queries", "text")):
        records = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for record in records:
            record[key] = f"{EVIL}<img src=x onerror=alert(1)> $\\frac$ {record[key]}"
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    given = ["data=files", f"data.path={folder}", f"outputs={tmp_path}/out", "embedder.layer_weights=[0.2,1.0]"]
    from embeddings.tiny import write_model

    given += [f"embedder.package={write_model(tmp_path / 'tiny')}", "embedder.max_tokens=32", "trainer=cpu"]
    given += [f"data.cache={tmp_path}/cache", "trainer.max_epochs=2", "callbacks.progress=false", "logger.mode=offline"]
    place = f"hydra.sweep.dir={tmp_path}/sweep"
    done = dcdt_process(
        "run", "-m", *given, "model=zero_shot,dcdt", place, HOME=str(tmp_path), DCDT_CACHE=str(tmp_path / "cache")
    )
    assert done.returncode == 0, done.stderr  # W&B draws titles that look like formulas, too
    page = (tmp_path / "sweep" / "report" / "index.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert "script" not in tags.names and "img" not in tags.names and "onerror" not in tags.attributes
    assert "&lt;script&gt;" in page and EVIL not in page


def test_links_of_strangers_are_addresses_or_nothing(tmp_path):
    from types import SimpleNamespace

    from dcdt.training.callbacks.samples import sample_table

    links = ["https://a.b/c", "javascript:alert(1)", "data:text/html,x", "", "HTTPS:x"]
    videos = SimpleNamespace(titles=list("abcde"), metadata=[{"url": link} for link in links])
    collection = SimpleNamespace(queries=SimpleNamespace(texts=["q"]), videos=videos, positive_grade=1)
    side = SimpleNamespace(
        queries=torch.tensor([0]), judged=torch.tensor([[0]]), grades=torch.tensor([[1.0]]),
        candidates=torch.ones(5, dtype=torch.bool),
    )  # fmt: skip
    rows = sample_table(side, torch.tensor([[5.0, 4, 3, 2, 1]]), collection, 1)
    assert [row[3] for row in rows] == ["https://a.b/c", "", "", "", ""]


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r\n=1", "\uff1dA1"])
def test_a_formula_in_a_title_is_text_in_a_batch(run, tmp_path, text):
    import csv
    import io
    from argparse import Namespace

    from dcdt.data.types import Documents
    from dcdt.recommend import batch_lines

    served = load(run)
    served.add(Documents(["=new"], [text], ["rank of a span"], [{"series": text, "url": text}]))
    given = Namespace(json=False, k=21, filter="", explain=False, abstain=False, user=None)
    rows = list(csv.reader(io.StringIO("".join(batch_lines(served, [text], given)))))
    assert len(rows) == 22
    cells = [cell for row in rows[1:] for cell in (row[0], *row[4:])]
    assert not any(cell.strip()[:1] in ("=", "+", "-", "@", "\uff1d") for cell in cells)
    assert [row[3] for row in rows if row[3].endswith("=new")] == ["=new"]  # an id is a key: as it is


@SLOW
def test_a_formula_in_a_label_is_text_in_the_tables_of_a_report(tmp_path):
    from reporting.run_folders import write_run

    from dcdt.report import report

    for value, skill in (("=HYPERLINK(1)", 2.0), ("@x", 1.0)):
        write_run(tmp_path / "sweep", "dcdt", skill=skill, overrides={"loss.name": value}, name=f"run{skill}")
    report([tmp_path / "sweep"], tmp_path / "out")
    for name in ("table.csv", "tests.csv", "breakdowns.csv", "cost.csv"):
        lines = (tmp_path / "out" / name).read_text().splitlines()
        assert not any(cell.strip('"')[:1] in ("=", "@") for line in lines for cell in line.split(","))
