"""Runs that read transcripts: what they compute, write and report."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import made_once, make_collection, slow_but, small_run

from dcdt.data.beir import load_collection
from dcdt.report import report
from dcdt.training.checkpoint import restore

FIELDS = "model.fields=[title,text,transcript]"
NAMES = {
    "zero_shot": ["model=zero_shot"],
    "best": ["model=zero_shot_transcript"],
    "mean": ["model=zero_shot_transcript", "model.passages=mean"],
    "whitened": ["model=zero_shot_whitened", FIELDS, "model.passages=softmax"],
    "ridge": ["model=dcdt_ridge_transcript", "model.neighbours=3"],
    "bm25": ["model=bm25_transcript"],
    "bm25_passages": ["model=bm25_passages"],
    "hybrid": ["model=hybrid_transcript"],
    "judged": ["model=hybrid_towers_transcript"],
    "dcdt": ["model=dcdt", FIELDS, "model.width=16", "model.passages=softmax"],
    "residual": ["model=dcdt_residual", FIELDS, "loss=infonce", "sampler=catalogue", "trainer.embedding_dtype=float16"],
}


def make(folder):
    shutil.rmtree(make_collection(folder / "collection", seed=1, spoken=18) / "embeddings")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_once(tmp_path_factory, "transcripts", make)


@pytest.fixture
def run(made, tmp_path):
    def train(name, *overrides):
        return small_run(made / "collection", made / "model" / "tiny", tmp_path / name, *NAMES[name], *overrides)

    return train


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


@pytest.mark.parametrize("name", slow_but(["ridge", "dcdt"], NAMES))
def test_models_read_transcripts(run, made, name):
    folder = run(name, "trainer.max_epochs=2")
    assert metrics(folder)["test/n_queries"] > 0
    collection = load_collection(made / "collection")
    if name in ("zero_shot", "mean", "bm25"):
        assert not (folder / "moments.parquet").exists()
        return
    moments = pq.read_table(folder / "moments.parquet").to_pylist()
    restored = restore(folder)
    assert moments and all(row["start"] >= 0 for row in moments)
    for row in moments:
        video = collection.videos.row_of[row["video_id"]]
        starts = collection.passages.starts[slice(*collection.passages.offsets[video : video + 2])]
        assert row["start"] in starts
    if name == "best":
        tables, query = restored.tables, collection.queries.row_of[moments[0]["query_id"]]
        video = collection.videos.row_of[moments[0]["video_id"]]
        rows = tables.passages.rows_of(video)
        cosines = tables.passages.vectors[rows] @ tables.queries[query]
        assert moments[0]["start"] == collection.passages.starts[rows][int(cosines.argmax())]


def test_words_of_transcripts_are_read_without_embedding_them(run, made):
    folder = run("bm25")
    assert restore(folder).tables.fields == ["title", "text"]


def test_a_hybrid_of_hybrids_says_each_weight(run):
    values = metrics(run("hybrid"))
    assert {"hybrid/weight", "second/hybrid/weight"} <= values.keys()


@pytest.mark.slow
def test_moments_have_a_table(run, tmp_path):
    folders = [run("zero_shot"), run("best"), run("bm25_passages")]
    result = report(folders, tmp_path / "report")
    [table] = [table for table in result.tables if table.name == "moments"]
    assert {row.name for row in table.rows} == {"zero_shot_transcript", "bm25_passages"}
    for row, folder in zip(sorted(table.rows, key=lambda row: row.name), (folders[2], folders[1]), strict=True):
        moments = pq.read_table(folder / "moments.parquet").to_pylist()
        errors = np.array([abs(one["start"] - one["seconds"]) for one in moments])
        for name, seconds in (("within_30", 30), ("within_60", 60), ("within_120", 120)):
            assert row.cells[name].value == pytest.approx((errors <= seconds).mean())
            assert row.cells[name].low <= row.cells[name].value <= row.cells[name].high
        assert row.cells["error"].value == pytest.approx(np.median(errors))
    assert "## Moments" in (tmp_path / "report" / "table.md").read_text()
