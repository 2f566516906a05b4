import sys

from support import prepare

import dcdt
from dcdt.data.config import SplitConfig
from dcdt.runs import provenance


def test_what_a_result_comes_from(small, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/somebody/dcdt/run.py", "split=video"])
    made = prepare(small, SplitConfig("video", 1, 10, "all"))
    values = provenance.provenance(made.collection, made.split, "space", "digest")
    assert values["command"] == ["python", "-m", "dcdt.run", "split=video"]
    assert values["packages"]["dcdt"] == dcdt.__version__
    assert None not in values["packages"].values()
    assert (values["collection"], values["embeddings"], values["vectors"]) == ("small", "space", "digest")
    assert values["simulated"] == []
    assert values["collection_fingerprint"] == made.collection.fingerprint
    assert values["split_fingerprint"] == made.split.fingerprint
    sides = {name: len(side.queries) for name, side in made.split.sides.items()}
    assert values["queries"] == {"train": len(made.split.train.queries), **sides, "left_out": made.split.left_out}
    assert values["candidates"]["test_all"] == 20
    assert "somebody" not in str(values)


def test_code_outside_git_is_known_by_its_hash(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "dcdt" / "provenance.py"))
    monkeypatch.setattr(provenance, "code_version", provenance.code_version.__wrapped__)  # which is known once
    (tmp_path / "dcdt").mkdir()
    (tmp_path / "dcdt" / "a.py").write_text("x = 1")
    before = provenance.code_version()
    assert (before["commit"], before["dirty"]) == (None, None)
    assert provenance.code_version() == before
    (tmp_path / "dcdt" / "a.py").write_text("x = 2")
    assert provenance.code_version()["code"] != before["code"]


def test_the_code_is_read_once_a_process(monkeypatch):
    known = provenance.code_version()
    monkeypatch.setattr(provenance, "_git", None)
    assert provenance.code_version() == known
