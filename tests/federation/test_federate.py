"""The command: three schools and a hub make the run that one folder of all queries makes."""

import json
import re

import pytest
import torch
from commands import dcdt
from embeddings.tiny import write_model
from fastapi.testclient import TestClient
from federation.schools import catalogue_of, divide
from support import make_collection, small_run

from dcdt.runs.folder import RunFolder
from dcdt.serving.app import make_app
from dcdt.serving.hot_reload import ReloadingRecommender
from dcdt.serving.load import load
from dcdt.training.checkpoint import read_weights, restore

pytestmark = pytest.mark.slow  # a dozen commands lie behind each; test_sums.py and test_messages.py are fast


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three schools, the catalogue alone, and the messages of hybrid_towers."""
    folder = tmp_path_factory.mktemp("federation")
    source = make_collection(folder / "all", 20, 150, repeats=9)
    schools = divide(source, folder)[1]
    catalogue_of(source, folder / "hub")
    write_model(folder / "tiny")
    for number, school in enumerate(schools):
        said = federate(folder, "statistics", f"data.path={school}", f"out=s{number}.safetensors").stdout
        assert re.search(rf"statistics, schools: 1, \d+ queries or learners; no noise: s{number}.safetensors", said)
    files = [f"s{number}.safetensors" for number in range(3)]
    federate(folder, "merge", *files, "data.path=hub", "out=sum.safetensors")
    for number, school in enumerate(schools):
        federate(folder, "losses", "sum.safetensors", f"data.path={school}", f"out=l{number}.safetensors")
    return folder


def federate(folder, step, *words, code=0, model="hybrid_towers"):
    fixed = [f"model={model}", f"data.cache={folder}/cache", f"embedder.package={folder}/tiny", "split.part=all"]
    fixed += ["embedder.layer_weights=[0.2,1.0]", "embedder.max_tokens=32", "trainer=cpu", "callbacks.progress=false"]
    fixed += ["ks=[1,5]", f"outputs={folder}/out", "min_queries=20"]
    files = [word for word in words if "=" not in word]
    done = dcdt("federate", step, *files, *fixed, *(word for word in words if "=" in word), cwd=folder)
    assert done.returncode == code, done.stderr
    return done


ALL = [f"{kind}{number}.safetensors" for kind in "sl" for number in range(3)]


def test_the_merged_run_is_the_run_of_the_pooled_queries(made):
    said = federate(made, "merge", *ALL, f"data.path={made}/pooled", "out=merged").stdout
    assert "statistics, schools: 3" in said and "no noise: merged" in said
    pooled = small_run(made / "pooled", made / "tiny", made / "run", "model=hybrid_towers", "split.part=all")
    merged = RunFolder(made / "merged")
    lines = [
        re.sub(r" \S+ dcdt$", "", text, flags=re.M)
        for text in ((pooled / "run.trec").read_text(), merged.files.ranking.read_text())
    ]
    assert lines[0] == lines[1]
    one, other = (json.loads((path / "metrics.json").read_text()) for path in (pooled, merged.path))
    assert other == pytest.approx(one, abs=1e-5)
    weights, expected = read_weights(merged), read_weights(RunFolder(pooled))
    torch.testing.assert_close(weights["second.query_map"], expected["second.query_map"], atol=1e-5, rtol=0)
    facts = json.loads(merged.files.federation.read_text())
    assert facts["schools"] == 3 and facts["epsilon"] is None and facts["queries"] > 90
    assert "dcdt.federate" in json.loads(merged.files.provenance.read_text())["command"]


def test_a_hub_without_queries_serves_the_same_model(made):
    federate(made, "merge", "sum.safetensors", *ALL[3:], f"data.path={made}/hub", "out=served")
    pooled = small_run(made / "pooled", made / "tiny", made / "again", "model=hybrid_towers", "split.part=all")
    answers = [load(run).recommend(["span rank", "kernel image norm"], 5) for run in (made / "served", pooled)]
    for one, other in zip(*answers, strict=True):
        assert [item.id for item in one] == [item.id for item in other]
        assert [item.score for item in one] == pytest.approx([item.score for item in other], abs=1e-5)
    assert restore(made / "served").federated


def test_the_catalogue_of_a_merged_run_changes_without_another_exchange(made):
    federate(made, "merge", "sum.safetensors", *ALL[3:], f"data.path={made}/hub", "out=changed")
    run = made / "changed"
    done = dcdt("index", run, "add", "--id", "new", "--title", "Shear of a plane", "--text", "what a shear keeps")
    assert done.returncode == 0 and "21 videos" in done.stdout, done.stderr
    done = dcdt("recommend", run, "shear of a plane", "-k", 21, "--json")
    assert done.returncode == 0 and "new" in {video["id"] for video in json.loads(done.stdout)["answer"]}, done.stderr
    done = dcdt("recommend", run, "shear of a plane", "--abstain")
    assert done.returncode == 2 and "has no score below which" in done.stderr, done.stderr
    assert dcdt("serve", run, "--abstain").returncode == 2
    assert dcdt("index", run, "delete", "new").returncode == 0
    with TestClient(make_app([ReloadingRecommender(run)])) as client:
        found = client.get("/search", params={"q": "shear of a plane", "k": 3}).json()["videos"]
    assert len(found) == 3 and "new" not in {video["id"] for video in found}


def test_a_school_tests_the_merged_model_on_its_own_queries(made):
    federate(made, "merge", "sum.safetensors", *ALL[3:], f"data.path={made}/school1", "out=own")
    assert json.loads((made / "own" / "metrics.json").read_text())["test/n_queries"] > 1
    assert load(made / "own").recommend(["span"], 3)
    shown = dcdt("report", made / "own", "--out", made / "report")
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["statistics", "data.path=school0", "out=x.safetensors", "min_queries=1000"], "min_queries is 1000"),
        (["statistics", "s0.safetensors", "data.path=school0", "out=x.safetensors"], "statistics takes no files"),
        (["statistics", "data.path=school0", "out=x"], "ends in .safetensors"),
        (["statistics", "data.path=hub", "out=x.safetensors"], "holds no judged queries"),
        (["merge", "data.path=hub", "out=x"], "merge takes the files of messages"),
        (["merge", "s0.safetensors", "data.path=hub", "out=x"], "the losses of all schools are needed"),
        (["merge", "s0.safetensors", "none.safetensors", "data.path=hub", "out=x"], "none.safetensors is refused"),
        (["merge", *ALL[2:4], "data.path=hub", "out=x.safetensors"], "do not belong together"),
        (["merge", *ALL, "data.path=hub", "out=x", "model.second.neighbours=3"], "; here "),
        (["merge", *ALL, "data.path=hub", "out=x", "ks=[1,2]"], "its catalogue is not the one here"),
        (["merge", *ALL, "data.path=hub", "out=x", "trials=2"], "trials is 2"),
        (["merge", *ALL, "data.path=hub", "out=school0"], "exists and is not empty"),
        (["losses", "sum.safetensors", "data.path=hub", "out=x.safetensors", "clip=0"], "clip is 0"),
        (["statistics", "data.path=school0", "out=x.safetensors", "split=video"], "split=video divides the catalogue"),
        (["statistics", "data.path=school0", "out=x.safetensors", "model=bm25"], "is not fitted from sums"),
        (["add", "data.path=school0"], "invalid choice: 'add'"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_in_words_and_nothing_is_written(made, words, reason):
    before = {
        path: path.stat().st_mtime_ns
        for path in made.rglob("*")
        if "cache" not in path.parts and "out" not in path.parts
    }
    said = federate(made, *words, code=2).stderr
    assert reason in said and len(said.strip().splitlines()) <= 4
    after = {
        path: path.stat().st_mtime_ns
        for path in made.rglob("*")
        if "cache" not in path.parts and "out" not in path.parts
    }
    assert {path for path in after if path.is_file()} == {path for path in before if path.is_file()}


def test_help_says_the_steps():
    done = dcdt("federate", "--help")
    assert done.returncode == 0 and all(step in done.stdout for step in ("statistics", "losses", "merge"))


def test_ease_of_schools_is_served_without_learners(made):
    """Equality with the pooled fit is tested in test_sums.py; here nobody's history reaches the hub."""
    ease = {"model": "collaborative"}
    for number in range(3):
        out = f"out=e{number}.safetensors"
        federate(made, "statistics", f"data.path=school{number}", out, "model.kind=ease", "min_queries=5", **ease)
    files = [f"e{number}.safetensors" for number in range(3)]
    federate(made, "merge", *files, f"data.path={made}/hub", "out=ease", "model.kind=ease", **ease)
    state = read_weights(RunFolder(made / "ease"))["_extra_state"]
    assert state["users"] == [] and float(state["model"]["popularity"].sum()) > 100
    assert len(load(made / "ease").recommend(["anything"], 3)[0]) == 3
    school = f"data.path={made}/school0"
    federate(
        made, "merge", *files, school, "out=ease_own", "model.kind=ease", **ease
    )  # validated, tested, not refitted
    own = read_weights(RunFolder(made / "ease_own"))["_extra_state"]
    assert torch.equal(own["model"]["items"], state["model"]["items"]) and len(own["users"]) == 7


def test_noise_is_written_into_the_messages_and_the_run(made):
    pytest.importorskip("opacus")
    noise = ["epsilon=8", "delta=1e-4"]
    for number in range(3):
        said = federate(made, "statistics", f"data.path=school{number}", f"out=n{number}.safetensors", *noise).stdout
        assert "hidden number; epsilon 8 at delta 0.0001" in said
    files = [f"n{number}.safetensors" for number in range(3)]
    federate(made, "merge", *files, "data.path=hub", "out=nsum.safetensors")
    for number in range(3):
        federate(made, "losses", "nsum.safetensors", f"data.path=school{number}", f"out=m{number}.safetensors", *noise)
    files += [f"m{number}.safetensors" for number in range(3)]
    said = federate(made, "merge", *files, f"data.path={made}/pooled", "out=noised").stdout
    assert "epsilon 8 at delta 0.0001" in said
    facts = json.loads((made / "noised" / "federation.json").read_text())
    assert facts == {"schools": 3, "queries": 0, "epsilon": 8.0, "delta": 1e-4}
