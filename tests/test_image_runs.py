"""Runs that read pictures: better where only the pictures tell, and served with the scores of their evaluation."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from embeddings.tiny_clip import CHARTS, STARTS, caption, draw_chart, write_clip
from support import made_once, small_run, write_folder

import dcdt
from dcdt.data.beir import load_collection
from dcdt.data.types import Documents
from dcdt.serving.recommender import ServedRecommender
from dcdt.training.checkpoint import restore
from dcdt.utils.errors import UserError

FIELDS = "model.fields=[title,text,image]"
RUNS = {
    "zero_shot": ["model=zero_shot", FIELDS],
    "alone": ["model=zero_shot", "model.fields=[image]"],
    "hybrid": ["model=hybrid", "model.second.fields=[title,text,image]"],
}

pytestmark = pytest.mark.slow


def make(folder):
    """Videos whose texts say nothing, each with one or two charts that its questions name; the last has none."""
    write_clip(folder / "clip", steps=300)
    videos = [{"_id": f"v{at}", "title": f"Lesson {at}", "text": "a b c"} for at in range(len(CHARTS) + 1)]
    texts = [f"{start} {caption(chart)}" for chart in CHARTS for start in STARTS[1:]]
    queries = [{"_id": f"q{at}", "text": text} for at, text in enumerate(texts)]
    write_folder(folder / "c", videos, queries, qrels=[f"q{at}\tv{at // 3}\t1" for at in range(len(texts))])
    (folder / "c" / "images").mkdir()
    for at, chart in enumerate(CHARTS):
        for number in range(1 + at % 2):
            draw_chart(chart, 10**6 + 2 * at + number).save(folder / "c" / "images" / f"v{at}-{number}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return made_once(tmp_path_factory, "charts", make)


@pytest.fixture(scope="module")
def run_of(made, tmp_path_factory):
    def train(name):
        def write(folder):
            pictures = ["image_embedder=clip", f"image_embedder.folder={made / 'clip'}"]
            small_run(made / "c", made / "model" / "tiny", folder, *RUNS[name], *pictures)
            dcdt.load(folder)

        return made_once(tmp_path_factory, f"charts_runs/{name}", write)

    return train


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def test_pictures_find_what_texts_do_not_say(run_of):
    values = metrics(run_of("zero_shot"))
    assert values["zero_shot/test/mrr"] < 0.3 and values["test/mrr"] > 0.7
    assert values["hybrid/weight"] <= 0.5  # that of the texts
    assert metrics(run_of("alone"))["test/mrr"] > 0.7
    assert {"hybrid/weight", "second/hybrid/weight"} <= metrics(run_of("hybrid")).keys()


@pytest.mark.parametrize("name", RUNS)
def test_a_served_question_has_the_scores_of_the_evaluation(run_of, made, name):
    served, collection = dcdt.load(run_of(name)), load_collection(made / "c")
    table = pq.read_table(run_of(name) / "scores.parquet").to_pandas()
    for query, scores in list(table.groupby("query_id"))[:8]:
        text = collection.queries.texts[collection.queries.row_of[query]]
        answer = served.recommend(text, 1000, explained=True)[0]
        found = {video.id: video.score for video in answer}
        np.testing.assert_allclose([found[video] for video in scores["video_id"]], scores["score"], atol=1e-4)
        assert all(video.moments == [] and video.why["parts"][-1]["name"].startswith("image") for video in answer)


def test_a_restored_run_is_the_one_that_was_trained(run_of, made):
    restored = restore(run_of("zero_shot"))
    assert [type(part).__name__ for part in restored.model.components] == ["ZeroShot", "Image"]
    pictures = restored.tables.images.passages
    assert pictures.offsets[-1] == 48 + 1 and len(pictures.offsets) == len(CHARTS) + 2
    others = pictures.vectors[:-1].mean(0)
    np.testing.assert_allclose(pictures.vectors[-1], others, atol=1e-6)  # the video without a picture


def test_a_video_that_is_added_ranks_by_its_text_and_an_average_picture(run_of, tmp_path):
    run = shutil.copytree(run_of("zero_shot"), tmp_path / "run")
    served = ServedRecommender(run)
    served.add(Documents(["new"], ["A new lesson"], ["a b"], [{}]))
    answer = ServedRecommender(run).recommend("a chart of red rising bars", 1000, explained=True)[0]
    parts = {video.id: video.why["parts"][1]["score"] for video in answer}
    assert parts["new"] == pytest.approx(np.mean(list(parts.values())), abs=0.2)
    served.delete(["v3", "new"])
    assert len(ServedRecommender(run)) == len(CHARTS)


def test_an_index_wants_the_model_it_was_built_with(run_of, tmp_path):
    run = shutil.copytree(run_of("alone"), tmp_path / "run")
    [path] = run.glob("serving/*/model.json")
    text = path.read_text()
    space = json.loads(text)["scorers"][0]["space"]
    path.write_text(text.replace(space, "clip_other_32_00000000"))
    (path.parent / "checksums.json").unlink()
    with pytest.raises(UserError, match="holds other weights than when the index was built"):
        ServedRecommender(run).recommend("a", 1)
