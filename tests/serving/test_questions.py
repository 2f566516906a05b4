"""Questions by 8-bit weights: what a build measures of them, what it refuses, and what then answers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from dcdt.data.types import Documents
from dcdt.embeddings.providers.onnx import MODEL, QUESTIONS
from dcdt.evaluation.ranking import ranking_metrics, ranks_and_ties, tie_order
from dcdt.serving.export import build
from dcdt.serving.load import load
from dcdt.serving.questions import compared
from dcdt.serving.validation import Validation
from dcdt.training.restore import restore
from dcdt.utils.errors import UserError
from dcdt.utils.files import read_json, write_json

pytestmark = pytest.mark.slow
RIDGE = "model=hybrid_towers"


def current(folder):
    return folder / "serving" / read_json(folder / "serving" / "current.json")["build"]


@pytest.fixture
def fast(own_copy):
    """A run of one's own, built with 8-bit questions."""
    folder = own_copy(RIDGE)
    build(folder, eight_bit=True)
    return folder


def test_questions_are_embedded_by_8_bit_weights_and_videos_are_not(fast, own_copy):
    served = load(fast)
    assert {path.name for path in (current(fast) / "embedder").glob("*.onnx")} == {MODEL, QUESTIONS}
    asked = ["rank of a basis", "span"]
    whole = served._embed(asked, MODEL)
    assert 0.98 < (served.embed(asked) * whole).sum(1).min() < 1
    assert (served.embed_fields([asked])[0] == whole).all()
    served.add(Documents(["late"], ["rank of a basis"], ["rank of a basis"], [{}]))
    build(fast)
    plain = load(fast)
    assert plain.questions is None and (plain.embed(asked) == whole).all()
    plain.add(Documents(["late"], ["rank of a basis"], ["rank of a basis"], [{}]))
    column = "vector_1"
    rows = [part.store.view.table["id"].to_pylist().index("late") for part in (served, plain)]
    one, other = (
        part.store.view.vectors_at(np.array([row]), column) for part, row in zip((served, plain), rows, strict=True)
    )
    np.testing.assert_array_equal(one, other)
    found = served.recommend("rank of a basis", 1000, explained=True)[0]
    assert "late" in {video.id for video in found} and found[0].why["parts"]


def test_the_command_says_what_8_bits_change(own_copy, environment):
    folder = own_copy(RIDGE)

    def index(*arguments):
        line = [sys.executable, "-m", "dcdt.index", str(folder), *arguments]
        return subprocess.run(line, capture_output=True, text=True, env=environment, timeout=120)

    done = index("build", "--eight-bit")
    facts = json.loads((current(folder) / "model.json").read_text())["questions"]
    gap = facts["ndcg@10"] - facts["float32"]
    assert facts["low"] <= gap <= facts["high"] and facts["weights"] in ("blocks", "columns")
    line = next(line for line in done.stdout.splitlines() if line.startswith("questions by 8-bit weights"))
    assert f"{facts['ndcg@10']:.4f} against {facts['float32']:.4f}, {gap:+.4f} [" in line, done.stderr
    assert "measuring questions" in done.stderr and "Traceback" not in done.stderr and "INFO" not in done.stderr
    assert line in index("info").stdout
    assert "8-bit" not in index("build").stdout


def test_what_is_said_of_the_run_itself_is_the_runs_own_validation(own_copy):
    folder = own_copy("model=zero_shot")
    restored = restore(folder)
    validation = Validation(restored)
    with torch.no_grad():
        own = restored.tables.queries[validation.side.queries]
        same = compared(validation, own)
        other = compared(validation, own.flip(0))
    assert same["ndcg@10"] == same["float32"] and same["same"] == 1 and same["low"] == same["high"] == 0
    assert other["float32"] == same["float32"] and other["same"] < 1
    side, collection = validation.side, restored.collection
    for vectors, wanted in ((own, same["ndcg@10"]), (own.flip(0), other["ndcg@10"])):
        scores = vectors @ restored.model.video_vectors().T
        ranks, _ = ranks_and_ties(scores, side.judged, tie_order(collection.videos.ids), side.candidates)
        values = ranking_metrics(ranks, side.grades, collection.positive_grade, [10])["ndcg@10"]
        assert wanted == pytest.approx(float(values.mean()), abs=1e-6)


@pytest.mark.parametrize("model", ["dcdt_ridge", "two_stage", "hybrid_towers"])
def test_a_model_that_fitted_validation_queries_leaves_them_out(own_copy, model):
    validation = Validation(restore(own_copy(f"model={model}", *(["model.depth=8"] if model == "two_stage" else []))))
    model, side = validation.judge, validation.side
    assert model.reads_validation
    with torch.no_grad():
        own = model.tables.queries[side.queries]
        left_out, again = (torch.stack(list(validation.scores(vectors))) for vectors in (None, own))
        torch.testing.assert_close(left_out, again)
        nudged = own + 1e-3 * torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
        moved = torch.stack(list(validation.scores(nudged)))
    finite = left_out.isfinite()
    assert (moved.isfinite() == finite).all()
    if model.__class__.__name__ != "TwoStage":  # whose scores jump where the first videos change
        assert 0 < (moved - left_out)[finite].abs().max() < 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model=bm25",), "model=bm25 embeds no question"),
        ((RIDGE,), "the limit is a certain loss of 0.002"),
    ],
)
def test_what_gains_nothing_or_loses_for_certain_is_refused(own_copy, overrides, said, monkeypatch):
    folder = own_copy(*overrides)
    before = sorted((folder / "serving").rglob("*"))
    worse = {"queries": 9, "ndcg@10": 0.5, "float32": 0.6, "low": -0.2, "high": -0.01, "same": 0.1}
    monkeypatch.setattr("dcdt.serving.questions.compared", lambda *given: worse)
    with pytest.raises(UserError, match=said) as error:
        build(folder, eight_bit=True)
    assert len(str(error.value).splitlines()) == 1
    assert sorted((folder / "serving").rglob("*")) == before and load(folder).questions is None


@pytest.mark.parametrize(
    "facts", [{"low": None, "high": None}, {"low": -0.1, "high": 0.01}, {"ndcg@10": 0.599, "high": -0.0001}]
)
def test_a_loss_that_chance_explains_or_a_small_one_is_not_refused(own_copy, facts, monkeypatch):
    folder = own_copy(RIDGE)
    found = {"queries": 1, "ndcg@10": 0.5, "float32": 0.6, "low": -0.2, "high": -0.01, "same": 0.1} | facts
    monkeypatch.setattr("dcdt.serving.questions.compared", lambda *given: found)
    if facts["high"] is None:  # of one query nothing is known but its own loss
        with pytest.raises(UserError, match=r"on 1 validation questions by -0\.1000; the limit"):
            build(folder, eight_bit=True)
    else:
        build(folder, eight_bit=True)
        assert load(folder).questions["same"] == 0.1


@pytest.mark.parametrize("harm", [{"ndcg@10": "x"}, {"weights": None}, {"high": 1e300}, {"queries": [3]}, None])
def test_a_description_of_questions_that_does_not_fit_is_refused(fast, harm):
    path = current(fast) / "model.json"
    model = read_json(path)
    model["questions"] = model["questions"] | harm if harm else 3
    write_json(path, model)
    with pytest.raises(UserError, match="corrupt or does not fit"):
        load(fast)


def test_a_graph_that_is_gone_or_corrupt_ends_in_words(fast):
    path = current(fast) / "embedder" / QUESTIONS
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="corrupt"):
        load(fast).recommend("rank")
    path.unlink()
    with pytest.raises(UserError, match="corrupt"):
        load(fast).recommend("rank")


def test_a_build_from_before_8_bit_questions_is_read(fast):
    path = current(fast) / "model.json"
    model = read_json(path)
    del model["questions"]
    write_json(path, model)
    assert load(fast).questions is None and load(fast).recommend("rank")[0]
