"""Runs that read transcripts answer as they were evaluated, with the moment; what is said in a video comes and goes."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import made_once, slow_but, small_run
from test_transcript_runs import NAMES, make

import dcdt
from dcdt.data.beir import load_collection
from dcdt.data.types import Documents
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.manifest import check_catalogue
from dcdt.serving.recommender import ServedRecommender
from dcdt.utils.errors import UserError

RUNS = NAMES | {
    "rrf": ["model=hybrid_transcript", "model.second.fusion=rrf"],
    "two_stage": ["model=two_stage_ridge", "model@model.recall=dcdt_ridge_transcript", "model.depth=8"],
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    made = made_once(tmp_path_factory, "transcripts", make)

    def train(name):
        def write(folder):
            small_run(made / "collection", made / "model" / "tiny", folder, *RUNS[name])
            dcdt.load(folder)

        return made_once(tmp_path_factory, f"transcripts/served/{name}", write)

    return train


@pytest.fixture
def own(run_of, tmp_path):
    return lambda name: shutil.copytree(run_of(name), tmp_path / "run")


def collection_of(run):
    return load_collection(run.parents[1] / "collection")


@pytest.mark.parametrize("name", slow_but(["best", "bm25_passages"], list(RUNS)))
def test_answers_have_the_scores_of_the_run(run_of, name):
    folder = run_of(name)
    served, collection = dcdt.load(folder), collection_of(folder)
    scored = pq.read_table(folder / "scores.parquet").to_pandas()
    for query, scores in list(scored.groupby("query_id"))[:8]:
        text = collection.queries.texts[collection.queries.row_of[query]]
        answer = served.recommend(text, 1000, explained=True)[0]
        found = {video.id: video.score for video in answer}
        finite = np.isfinite(scores["score"])
        wanted = dict(zip(scores["video_id"][finite], scores["score"][finite], strict=True))
        np.testing.assert_allclose([found[name] for name in wanted], list(wanted.values()), atol=1e-4)
        for video in answer:
            for part in video.why["parts"]:
                for key in {"fields", "terms"} & part.keys():
                    assert sum(part[key].values()) == pytest.approx(part["score"], abs=1e-4)


@pytest.mark.parametrize("name", slow_but(["best"], ["bm25", "bm25_passages", "hybrid", "dcdt", "residual", "mean"]))
def test_a_video_that_is_added_scores_as_one_that_was_built(run_of, own, name):
    served, other = dcdt.load(run_of(name)), ServedRecommender(own(name))
    for id in ("v4", "v19"):  # with a transcript, and without
        video = served.videos([id])
        assert ("segments" in video.metadata[0]) == (id == "v4")
        other.delete([id])
        assert id not in {video.id for video in other.recommend("rank basis", 1000)[0]}
        other.add(video)
    questions = ["rank basis lesson 4 s4", "span kernel"]
    for one, two in zip(
        served.recommend(questions, 1000),
        ServedRecommender(other.catalogue.run).recommend(questions, 1000),
        strict=True,
    ):
        scores = {video.id: video.score for video in two}
        assert [scores[video.id] for video in one] == pytest.approx([video.score for video in one], abs=2e-4)


def test_what_leans_on_neighbours_is_added_and_said_anew(own):
    served = ServedRecommender(own("ridge"))
    video = served.videos(["v4"])
    served.delete(["v4"])
    served.add(video)
    text = "pivot shear plane"
    before = {video.id: video.score for video in served.recommend(text, 1000)[0]}
    segments = [{"start": 5.0, "end": 9.0, "text": text}]
    served.update(Documents(["v4"], video.titles, video.texts, [{"segments": segments}]))
    after = {video.id: video.score for video in served.recommend(text, 1000)[0]}
    assert after.pop("v4") > before.pop("v4") and after == before


def test_a_catalogue_whose_passages_do_not_fit_is_refused(own):
    folder = own("best")
    served = ServedRecommender(folder)
    table = served.rows(served.videos(["v4", "v19"]))
    empty = table.set_column(
        table.column_names.index("passages_0"),
        "passages_0",
        table["passages_0"].take([0, 0]).combine_chunks().slice(0, 2),
    )
    check_catalogue(served.manifest, Snapshot.of(empty), folder, folder)
    none = pa.ListArray.from_arrays([0, 1, 1], empty["passages_0"].combine_chunks().values[:1])
    for column in (none, table["words_0"] if "words_0" in table.column_names else table["metadata"]):
        wrong = table.set_column(table.column_names.index("passages_0"), "passages_0", column)
        with pytest.raises(UserError, match="does not fit its catalogue"):
            check_catalogue(served.manifest, Snapshot.of(wrong), folder, folder)
    with pytest.raises(UserError, match="needs the whole catalogue in memory"):
        dcdt.load(folder, engine="lance")
