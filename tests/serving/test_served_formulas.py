"""Runs that read formulas: a served question is read as in the evaluation."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from support import made_once, small_run, write_folder

import dcdt
from dcdt.data.beir import load_collection

FORMULAS = [
    "A^T A",
    "Ax = b",
    "rank basis",
    "det(A) = 0",
    "norm angle",
    "x^2 + y^2",
    "trace",
    "AB = BA",
    "shear",
    "A = QR",
]


def make(folder):
    videos = [{"_id": f"v{at}", "title": f"T{at}", "text": f"{text} plane"} for at, text in enumerate(FORMULAS * 2)]
    queries = [{"_id": f"q{at}", "text": f"why {text} kernel {at}"} for at, text in enumerate(FORMULAS * 4)]
    write_folder(folder / "c", videos, queries, qrels=[f"q{at}\tv{at % len(videos)}\t1" for at in range(len(queries))])


@pytest.mark.slow
def test_a_served_question_has_the_scores_of_the_evaluation(tmp_path_factory, tmp_path):
    made = made_once(tmp_path_factory, "formulas", make)
    model = tmp_path / "model" / "tiny"
    folder = small_run(made / "c", model, tmp_path / "run", "model=bm25", "model.formulas=true")
    plain = small_run(made / "c", model, tmp_path / "plain", "model=bm25")
    table, other = (pq.read_table(run / "scores.parquet").to_pandas() for run in (folder, plain))
    assert not np.allclose(table["score"], other["score"])  # it does read formulas
    served, collection = dcdt.load(folder), load_collection(made / "c")
    for query, scores in table.groupby("query_id"):
        text = collection.queries.texts[collection.queries.row_of[query]]
        found = {video.id: video.score for video in served.recommend(text, 1000)[0]}
        np.testing.assert_allclose([found[video] for video in scores["video_id"]], scores["score"], atol=1e-4)
    manifest = json.loads((served.catalogue.folder / "model.json").read_text())
    assert manifest["scorers"][0]["config"]["formulas"] is True
