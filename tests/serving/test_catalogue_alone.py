"""A catalogue without a question: it becomes a collection, and is searched as it is."""

import shlex

import pytest
from commands import dcdt, mended
from embeddings.tiny import write_model

from dcdt.config import config_folder
from dcdt.data.beir import load_collection
from dcdt.runs.folder import RunFolder
from dcdt.serving.load import UNTRAINED, load, served_run
from dcdt.utils.errors import UserError

VIDEOS = "ID,Title,Blurb,URL,Length\n" + "".join(
    f"v{n},Lesson {n},words about {word} and {word}s,https://youtu.be/{n},{n}:06\n"
    for n, word in enumerate(["basis", "rank", "pivot", "kernel", "image", "norm"])
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    (folder / "v.csv").write_text(VIDEOS)
    done = dcdt("collection", "new", folder / "mine", "--videos", folder / "v.csv", "--text-column", "blurb")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_videos_alone_make_a_collection_and_the_next_command_is_printed(alone):
    folder, out = alone
    assert sorted(path.name for path in (folder / "mine").iterdir()) == ["collection.yaml", "corpus.jsonl"]
    assert f"Search it: python -m dcdt.serve {shlex.quote(str(folder / 'mine'))}" in out
    assert "duration_s from 'Length'" in out and "--queries FILE" in out
    again = dcdt("collection", "check", folder / "mine")
    assert again.returncode == 0 and "catalogue without questions" in again.stdout


def test_the_weight_that_is_printed_is_that_of_the_model():
    given = (config_folder() / "model" / "hybrid_untrained.yaml").read_text()
    assert f"weight: {UNTRAINED.split('weight ')[1].split(',')[0]} #" in given


def test_nothing_can_be_trained_on_it(alone):
    done = dcdt("run", "data=files", f"data.path={alone[0]}/mine", "logger=none")
    mended(done, "without queries there is nothing to train on", "python -m dcdt.serve")
    with pytest.raises(UserError, match="without queries"):
        load_collection(alone[0] / "mine")


@pytest.mark.slow
def test_it_is_searched_by_words_and_meaning_without_training(alone, tmp_path, monkeypatch):
    monkeypatch.setenv("DCDT_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("DCDT_CACHE", str(tmp_path / "cache"))
    write_model(tmp_path / "tiny")
    tiny = [f"embedder.package={tmp_path / 'tiny'}", "embedder.layer_weights=[0.2,1.0]", "embedder.max_tokens=32"]
    said = []
    run = served_run(alone[0] / "mine", said.append, [*tiny, "model.weight=0.99"])  # the vectors mean nothing here
    assert run.parent == tmp_path / "outputs" and len(said) == 1
    assert str(run) in said[0] and "BM25" in said[0]
    assert (
        served_run(alone[0] / "mine", said.append, [*tiny, "model.weight=0.99"]) == run and len(said) == 1
    )  # the same is not made again
    assert served_run(alone[0] / "mine", said.append, [*tiny, "model.weight=0.5"]) != run  # another embedder's
    served = load(run, say=said.append)
    best = served.recommend(["what is a pivot"], 3, "duration_s<250")[0]
    assert best[0].id == "v2" and best[0].link == "https://youtu.be/2" and best[0].duration_s == 126
    assert {item.id for item in best} <= {"v0", "v1", "v2", "v3"}
    assert served.manifest.threshold is None and served.manifest.fusion is not None
    config = RunFolder(run).read_config()
    assert config.model.weight == 0.99 and config.model.second.whiten == "soft"
