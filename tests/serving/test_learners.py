"""Answers that begin from what a learner watched: the trained model's scores, strangers, and what is kept of whom."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from commands import dcdt as command
from fastapi.testclient import TestClient

import dcdt
from dcdt.data.types import Documents
from dcdt.models.query_batch import QueryBatch
from dcdt.serving.app import make_app
from dcdt.serving.export import build
from dcdt.serving.hot_reload import ReloadingRecommender
from dcdt.serving.learners import LEARNERS, Learners, save_learners
from dcdt.serving.recommender import UNKNOWN_LEARNER, ServedRecommender
from dcdt.training.checkpoint import restore
from dcdt.utils.errors import UserError

KINDS = ("als", "bpr", "cosine", "tfidf", "bm25", "ease", "slim", "popularity")
COLLABORATIVE = ("model.factors=4", "model.decay=0.7", "model.l2=5.0")
READERS = [
    ("model=dcdt_history",),
    ("model=dcdt_history", "model.history=mean", "model.videos=frozen", "model.length=3"),
    ("model=dcdt_hierarchical", "model.gap_hours=0.01", "model.length=5"),
    ("model=dcdt_hierarchical", "model.units=topics", "model.n_topics=3"),
    ("model=zero_shot_history",),
    ("model=hybrid_history",),
    ("model=hybrid_ease", "model.first.l2=5.0"),
    ("model=two_stage", "model.depth=6", "model@model.recall=zero_shot_history"),
    ("model=hybrid", "model@model.second=collaborative", "model.fusion=rrf"),
    *(("model=collaborative", f"model.kind={kind}", *COLLABORATIVE) for kind in KINDS),
]
TEXTS = ["span rank question", "kernel image pivot"]
USERS = [f"u{at}" for at in range(7)]


def trained_scores(restored, served, text, user):
    """Of the trained model, at a time after the learner's last watch."""
    batch = QueryBatch(torch.from_numpy(served.embed([text])), [text], [user], [math.inf if user else None])
    with torch.no_grad():
        found = restored.model.score(batch)[0].double().tolist()
    return dict(zip(restored.collection.videos.ids, found, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("overrides", READERS, ids=",".join)
def test_an_answer_to_a_learner_has_the_scores_of_the_trained_model(own_copy, overrides):
    """Weights that validation chose on so little, and may have put to 0, are put to 0.5 before the export."""
    folder = own_copy(*overrides)
    path = folder / "checkpoints" / "best.ckpt"
    state = torch.load(path, weights_only=True)
    for name, value in state["state_dict"].items():
        if (name.endswith("weight") or ".unit_" in name) and torch.is_tensor(value) and not value.ndim:
            state["state_dict"][name] = torch.tensor(0.5)
    torch.save(state, path)
    build(folder)
    served = dcdt.load(folder)
    restored = restore(served.catalogue.run)
    differ = 0
    for text in TEXTS:
        nobody = [item.id for item in served.recommend(text, 1000)[0]]
        for user in (None, *USERS):
            answer = served.recommend(text, 1000, explained=True, user=user)[0]
            wanted = trained_scores(restored, served, text, user)
            np.testing.assert_allclose([item.score for item in answer], [wanted[item.id] for item in answer], atol=1e-4)
            differ += [item.id for item in answer] != nobody
            for part in (part for item in answer for part in item.why["parts"] if "fields" in part):
                assert sum(part["fields"].values()) == pytest.approx(part["score"], abs=1e-4)
    assert (differ > 0) == ("model.kind=popularity" not in overrides)
    assert (
        served.notes_for("u1") == []
        and served.manifest.notes
        and served.notes_for("stranger") == [UNKNOWN_LEARNER, *served.manifest.notes]
    )
    assert served.recommend(TEXTS, 5, user="stranger") == served.recommend(TEXTS, 5)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [READERS[0], ("model=collaborative", "model.kind=cosine")], ids=",".join)
def test_histories_outlive_changes_of_the_catalogue(own_copy, overrides):
    served = ServedRecommender(own_copy(*overrides))
    before = served.recommend(TEXTS[0], 1000, user="u1")[0]
    watched = served.learners.exported.ids.to_pylist()[int(served.learners.items("u1")[-1])]
    served.add(Documents(["new"], ["span rank"], ["span rank"], [{}]))
    after = {item.id: item.score for item in served.recommend(TEXTS[0], 1000, user="u1")[0]}
    np.testing.assert_allclose([after[item.id] for item in before], [item.score for item in before], atol=1e-6)
    assert "new" in after
    served.delete([watched])
    found = served.recommend(TEXTS[0], 1000, user="u1")[0]
    assert watched not in {item.id for item in found} and len(found) == len(before)


@pytest.mark.slow
def test_the_command_and_the_service_take_a_learner_and_tell_nobody(make_run, environment, caplog, monkeypatch):
    folder = make_run("model=zero_shot_history")
    served = dcdt.load(folder)
    cache = {"DCDT_CACHE": environment["DCDT_CACHE"]}
    done = command("recommend", folder, TEXTS[0], "--user", "u3", "--json", **cache)
    assert [item["id"] for item in json.loads(done.stdout)["answer"]] == [
        item.id for item in served.recommend(TEXTS[0], user="u3")[0]
    ]
    done = command("recommend", folder, TEXTS[0], "--user", "stranger", "--json", **cache)
    assert done.returncode == 0 and UNKNOWN_LEARNER in done.stderr and "stranger" not in done.stderr
    done = command("recommend", make_run("model=bm25"), TEXTS[0], "--user", "u3", **cache)
    assert done.returncode == 2 and "model=bm25 knows no learners" in done.stderr and "Traceback" not in done.stderr
    client = TestClient(make_app([ReloadingRecommender(folder)]))
    monkeypatch.setattr(logging.getLogger("dcdt.serve"), "propagate", True)
    with caplog.at_level(logging.INFO, "dcdt.serve"):
        known, unknown = (client.get("/search", params={"q": "rank", "user": name}) for name in ("u3", "stranger"))
        assert client.get("/search", params={"q": "rank", "user": "a" * 201}).status_code == 422
        assert client.get("/search", params={"q": "rank", "user": ""}).status_code == 422
    assert known.json()["notes"] == [] and unknown.json()["notes"][0] == UNKNOWN_LEARNER
    ours = [record for record in caplog.records if record.name.startswith("dcdt")]  # the client logs too
    said = " ".join(f"{record.getMessage()} {getattr(record, 'fields', '')}" for record in ours)
    assert "/search" in said and "stranger" not in said and "u3" not in said


def test_a_model_that_reads_no_history_refuses_a_learner(make_run):
    served = dcdt.load(make_run("model=bm25"))
    with pytest.raises(UserError, match="model=bm25 knows no learners"):
        served.recommend("rank", user="u1")
    assert not (served.catalogue.folder / LEARNERS).exists()


def test_histories_come_back_and_no_name_is_in_the_file(tmp_path):
    users, rng = [f"learner number {at}" for at in range(300)], np.random.default_rng(0)
    lengths = rng.integers(0, 5, len(users))
    starts, items = np.r_[0, np.cumsum(lengths)], rng.integers(0, 50, lengths.sum())
    path = tmp_path / LEARNERS
    save_learners(path, users, starts, {"items": items}, [f"v{at}" for at in range(50)], b"salt")
    learners = Learners(path)
    for at, user in enumerate(users):
        assert learners.items(user).tolist() == items[starts[at] : starts[at + 1]].tolist()
    assert learners.items("learner number 300") is None
    assert b"learner number" not in path.read_bytes()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="missing or corrupt"):
        Learners(path).items("anybody")
