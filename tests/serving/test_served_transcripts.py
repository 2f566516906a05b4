"""Runs that read transcripts answer as they were evaluated, with the moment; what is said in a video comes and goes."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fastapi.testclient import TestClient
from pydantic import TypeAdapter
from support import made_once, slow_but, small_run
from test_transcript_runs import NAMES, make

import dcdt
from dcdt.data.beir import load_collection
from dcdt.data.tokens import tokenize
from dcdt.data.types import Documents
from dcdt.index import main as index
from dcdt.models.query_batch import query_batch
from dcdt.recommend import main
from dcdt.serving.app import make_app
from dcdt.serving.arrow import vector_column
from dcdt.serving.catalogue import video_table
from dcdt.serving.catalogue.filters import parse_filter
from dcdt.serving.catalogue.snapshot import Snapshot
from dcdt.serving.catalogue.video_table import VideoTable
from dcdt.serving.explanation import content_words
from dcdt.serving.hot_reload import ReloadingRecommender
from dcdt.serving.manifest import check_catalogue
from dcdt.serving.moments import timed_link
from dcdt.serving.recommender import Recommendation, ServedRecommender
from dcdt.serving.scorers.passages import PassageScores, ragged
from dcdt.training.checkpoint import restore
from dcdt.utils.errors import UserError

TRAINED = ["optimizer.lr=1e-2", "trainer.max_epochs=2"]
FIELDS = "fields=[title,text,transcript]"
ENCODERS = {
    "encoder": ["experiment=encoder", *TRAINED, "model.dropout=0.0", f"model.{FIELDS}"],
    "hybrid_encoder": [
        *("experiment=hybrid_encoder", *TRAINED, "model.second.dropout=0.0"),
        *("model@model.first=hybrid_towers_transcript", f"model.second.{FIELDS}"),
    ],
}
RUNS = (
    NAMES
    | ENCODERS
    | {
        "rrf": ["model=hybrid_transcript", "model.second.fusion=rrf"],
        "two_stage": ["model=two_stage_ridge", "model@model.recall=dcdt_ridge_transcript", "model.depth=8"],
    }
)


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


@pytest.mark.parametrize("name", slow_but(["best"], list(RUNS)))
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
        limit = 3e-3 if name in ENCODERS else 1e-4  # states of half precision
        np.testing.assert_allclose([found[name] for name in wanted], list(wanted.values()), atol=limit)
        for video in answer:
            for part in video.why["parts"]:
                for key in {"fields", "terms"} & part.keys():
                    assert sum(part[key].values()) == pytest.approx(part["score"], abs=1e-4)


@pytest.mark.parametrize(
    "name", slow_but(["best"], ["bm25", "bm25_passages", "hybrid", "dcdt", "residual", "mean", *ENCODERS])
)
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
        limit = 3e-3 if name in ENCODERS else 2e-4
        assert [scores[video.id] for video in one] == pytest.approx([video.score for video in one], abs=limit)


@pytest.mark.slow
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
    check_catalogue(served.manifest, Snapshot.of(table), folder, folder)
    spoken = table["passages_0"].combine_chunks()
    none = pa.ListArray.from_arrays([0, 1, 1], spoken.values[:1])
    for column in (none, spoken.take([0, 0]), spoken.take([1, 1]), table["metadata"]):
        wrong = table.set_column(table.column_names.index("passages_0"), "passages_0", column)
        with pytest.raises(UserError, match="does not fit its catalogue"):
            check_catalogue(served.manifest, Snapshot.of(wrong), folder, folder)
    texts = table.set_column(table.column_names.index("passage_texts"), "passage_texts", table["id"])
    for has_transcripts in (True, False):
        manifest = served.manifest.model_copy(update={"has_transcripts": has_transcripts})
        with pytest.raises(UserError, match="does not fit its catalogue"):
            check_catalogue(manifest, Snapshot.of(texts), folder, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best", "whitened", "ridge", "dcdt", "residual"])
def test_lance_finds_the_videos_of_the_best_passages_with_their_moments(run_of, name):
    """Softly pooled ones among four times as many; the scores are those of memory."""
    memory, disk = dcdt.load(run_of(name)), dcdt.load(run_of(name), engine="lance")
    assert len(disk.catalogue.snapshot) == 0
    for text in collection_of(run_of(name)).queries.texts[:6]:
        [wanted], [found] = (served.recommend(text, 4, explained=True) for served in (memory, disk))
        assert [video.id for video in found] == [video.id for video in wanted]
        np.testing.assert_allclose([video.score for video in found], [video.score for video in wanted], atol=1e-5)
        assert [video.moments for video in found] == [video.moments for video in wanted]
        [[first]] = disk.recommend(text, 1, f"id={wanted[1].id}|{wanted[2].id}")
        assert first.id == wanted[1].id


@pytest.mark.slow
@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_lance_orders_by_products_of_passages_of_any_length(tmp_path, monkeypatch, dtype, indexed):
    monkeypatch.setattr(video_table, "MIN_INDEX_ROWS", 100 if indexed else 10**6)
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, 300)
    offsets, vectors = np.cumsum(np.append(0, counts)), rng.normal(size=(counts.sum(), 12)).astype(dtype)
    vectors *= (rng.uniform(0.5, 2, len(vectors)) / np.linalg.norm(vectors, axis=1))[:, None].astype(dtype)
    table = VideoTable(str(tmp_path))
    ids = [f"v{at}" for at in range(len(counts))]
    table.create(pa.table({"id": ids, "passages_0": ragged(offsets, vectors)}))
    assert len(table.table.list_indices()) == indexed
    for query in rng.normal(size=(3, 12)).astype(np.float32):
        best = np.argsort(-np.maximum.reduceat(vectors.astype(np.float32) @ query, offsets[:-1]))
        found = table.nearest(np.append(query, np.float32(0)), 10, (), "passages_0")["id"].to_pylist()
        assert set(found) <= {ids[at] for at in best[:12]} if indexed else found == [ids[at] for at in best[:10]]
        some = parse_filter(f"id={ids[best[3]]}|{ids[best[200]]}", {"id": "text"})
        found = table.nearest(np.append(query, np.float32(0)), 10, some, "passages_0")["id"].to_pylist()
        assert found == [ids[best[3]], ids[best[200]]]
    own = (2 * query / np.linalg.norm(query)).astype(dtype)[None]  # added after the index was made
    table.add(pa.table({"id": ["new"], "passages_0": ragged([0, 1], own)}))
    assert table.nearest(np.append(query, np.float32(0)), 1, (), "passages_0")["id"].to_pylist() == ["new"]


@pytest.mark.slow
def test_lance_refuses_a_hybrid_of_passages(run_of):
    with pytest.raises(UserError, match="needs the whole catalogue in memory"):
        dcdt.load(run_of("hybrid"), engine="lance")


def test_a_moment_is_the_best_passage_with_its_start_and_a_link(run_of, own):
    folder, collection = own("best"), collection_of(run_of("best"))
    served, restored = ServedRecommender(folder), restore(folder)
    video = served.videos(["v4"])
    served.update(replace(video, metadata=[video.metadata[0] | {"url": "https://youtu.be/abc?t=3&list=x"}]))
    for row in range(4):
        [answer] = served.recommend(collection.queries.texts[row], 1000)
        batch = query_batch(collection, restored.tables, torch.tensor([row]))
        for item in answer:
            place = collection.videos.row_of[item.id]
            if collection.transcripts.segments[place] == []:
                assert item.moments == [] and "moments" not in item.as_dict()
                continue
            best = int(restored.model.passage_scores(batch, place)[0].argmax())
            rows = restored.tables.passages.rows_of(place)
            starts, texts = collection.passages.starts[rows], collection.passages.texts[rows]
            assert (item.moments[0].start_s, item.moments[0].text) == (starts[best], texts[best])
            places = [texts.index(moment.text) for moment in item.moments]
            assert len(places) <= 3 and all(abs(a - b) > 1 for a in places for b in places if a != b)
            for moment in item.as_dict()["moments"]:
                words = set(content_words(collection.queries.texts[row]))
                assert set(moment["matched"]) == words & set(tokenize(moment["text"]))
                link = f"https://youtu.be/abc?list=x&t={int(moment['start_s'])}" if item.id == "v4" else None
                assert moment["link"] == link
        assert len({item.id for item in answer}) == len(answer)  # several moments of one video are one card


@pytest.mark.parametrize(
    ("link", "template", "wanted"),
    [
        ("https://www.youtube.com/watch?v=a&t=5s#x", "", "https://www.youtube.com/watch?v=a&t=61#x"),
        ("https://vimeo.com/123", "", "https://vimeo.com/123#t=61s"),
        ("https://notvimeo.com/123", "", None),
        ("https://example.org/v", "", None),
        ("https://example.org/{seconds}", "{link}?at={seconds}", "https://example.org/{seconds}?at=61"),
        ("https://[broken", "", None),
        (None, "{link}", None),
    ],
)
def test_links_lead_to_the_second_where_the_site_or_a_template_says_how(link, template, wanted):
    assert timed_link(link, 61.9, template) == wanted
    assert timed_link(link, None, template) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bm25_passages", "hybrid"])
def test_models_that_tell_passages_apart_by_words_have_moments_too(run_of, name):
    folder = run_of(name)
    served, restored, collection = dcdt.load(folder), restore(folder), collection_of(folder)
    batch = query_batch(collection, restored.tables, torch.tensor([0]))
    for item in served.recommend(collection.queries.texts[0], 5)[0]:
        place = collection.videos.row_of[item.id]
        scores = restored.model.passage_scores(batch, place)[0]
        if item.moments:
            best = collection.passages.texts[collection.passages.offsets[place] + int(scores.argmax())]
            assert item.moments[0].text == best


def test_moments_are_printed_and_a_strangers_words_are_escaped(own, capsys):
    folder = own("best")
    served = ServedRecommender(folder)
    text = "span [red]rank[/red] \x1b[2Jkernel"
    segments = [{"start": 754.2, "text": text}, {"start": 1e300, "text": "later"}]
    served.add(Documents(["new"], ["span"], ["span"], [{"segments": segments, "link": "https://e.org/a"}]))
    main([str(folder), "span rank kernel", "-k", "30", "--moment-link", "{link}#t={seconds}"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "at 12:34: span [red]rank[/red] \\x1b[2Jkernel" in printed and "https://e.org/a#t=754" in printed
    main([str(folder), "span rank kernel", "-k", "30", "--json"])
    answer = json.loads(capsys.readouterr().out)["answer"]
    [new] = [video for video in answer if video["id"] == "new"]
    assert new["moments"][0]["start_s"] == 754.2 and new["moments"][0]["link"] is None


@pytest.mark.slow
def test_what_is_said_comes_with_a_file_or_a_folder_of_captions(own, run_of, tmp_path, capsys):
    folder = own("best")
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "a.vtt").write_text("WEBVTT\n\n00:01:05.000 --> 00:01:09.000\npivot shear plane\n")
    (tmp_path / "t.jsonl").write_text('{"_id": "v19", "segments": [{"start": 7, "text": "pivot trace"}]}\n')
    change = lambda *arguments: index([str(folder), *map(str, arguments)])  # noqa: E731
    change("add", "--id", "a", "--title", "Span", "--transcripts", tmp_path / "captions")
    change("update", "--id", "v19", "--transcripts", tmp_path / "t.jsonl")
    change("update", "--id", "v19", "--title", "Another")  # what is said stays
    served = ServedRecommender(folder)
    starts = {item.id: item.moments[0].start_s for item in served.recommend("pivot", 1000)[0] if item.moments}
    assert (starts["a"], starts["v19"]) == (65.0, 7.0)
    served.add(Documents(["b"], ["b"], [""], [{"segments": [{"text": "no time"}]}]))
    [moments] = [item.moments for item in served.recommend("pivot", 1000)[0] if item.id == "b"]
    assert [(moment.start_s, moment.text) for moment in moments] == [(None, "no time")]
    with pytest.raises(UserError, match="video 'c': 'segments' must be a list"):
        served.add(Documents(["c"], ["c"], [""], [{"segments": "what is said"}]))
    with pytest.raises(SystemExit):
        index(
            [str(run_of("zero_shot")), "add", "--id", "a", "--title", "a", "--transcripts", str(tmp_path / "t.jsonl")]
        )
    assert "reads no transcripts" in capsys.readouterr().err


def test_the_service_answers_with_moments_and_a_template_of_links(own):
    folder = own("best")
    served = ServedRecommender(folder)
    video = served.videos(["v4"])
    served.update(replace(video, metadata=[video.metadata[0] | {"url": "https://e.org/4"}]))
    with TestClient(make_app([ReloadingRecommender(folder, link="{link}#{seconds}")])) as client:
        videos = client.get("/search", params={"q": "rank basis", "k": 20}).json()["videos"]
        schema = client.get("/openapi.json").json()["components"]["schemas"]
    answered = TypeAdapter(list[Recommendation]).validate_python(videos)
    assert set(schema["Moment"]["properties"]) == {"start_s", "text", "matched", "link"}
    [four] = [video for video in answered if video.id == "v4"]
    assert four.moments[0].link == f"https://e.org/4#{int(four.moments[0].start_s)}"
    assert sum(bool(video.moments) for video in answered) == 18


def spoken_table(rng, n=300, width=16):
    """Videos with vectors of 1 to 40 passages, of which those of one video are much alike; nearest first is v0."""
    counts = rng.integers(1, 40, n)
    offsets = np.cumsum(np.append(0, counts))
    centres = rng.normal(size=(n, width)).repeat(counts, axis=0)
    vectors = (centres + 0.3 * rng.normal(size=centres.shape)).astype(np.float32)
    column = pa.ListArray.from_arrays(offsets, vector_column(vectors))
    levels = ["intro" if at % 50 == 0 else "other" for at in range(n)]
    return pa.table({"id": [f"v{at}" for at in range(n)], "level": levels, "passages_0": column}), vectors, offsets


@pytest.mark.parametrize("temperature", slow_but([None], [None, 0.5]))
def test_over_an_approximate_index_each_video_comes_once_and_as_many_as_wanted(tmp_path, temperature):
    rng = np.random.default_rng(0)
    table, vectors, offsets = spoken_table(rng)
    snapshot = Snapshot.build(table, exact_cells=1000)
    snapshot.save_indexes(tmp_path)
    snapshot.save(tmp_path / "snapshot.arrow")
    gone = Snapshot.load(tmp_path / "snapshot.arrow").apply(table.slice(0, 2), ["v7"], 2)  # edited, and removed
    scorer = SimpleNamespace(column="passages_0", manifest=SimpleNamespace(temperature=temperature))
    for state, rows_of in ((snapshot, np.arange(300)), (gone, np.r_[300, 301, 2:7, 8:300])):
        for query in rng.normal(size=(5, 16)).astype(np.float32):
            every = np.full(len(state.present), -np.inf)
            videos = np.where(rows_of >= 300, rows_of - 300, rows_of)
            every[rows_of] = [pooled(vectors[offsets[at] : offsets[at + 1]] @ query, temperature) for at in videos]
            for k in (1, 10, 60):
                rows, scores = PassageScores(state, scorer, query).top(k, state.present)
                assert len(set(rows.tolist())) == k and np.all(np.diff(scores) <= 1e-6)
                np.testing.assert_allclose(scores, every[rows], rtol=1e-4)
                assert np.isin(rows, np.argsort(-every)[: k + k // 10]).mean() >= 0.9
            few = state.allowed(parse_filter("level=intro", {"level": "text"}))
            rows, _ = PassageScores(state, scorer, query).top(10, few)
            assert sorted(rows) == np.flatnonzero(few).tolist() and len(rows) == 6
            mean, deviation = PassageScores(state, scorer, query).mean_and_deviation()
            known = every[rows_of]
            assert mean == pytest.approx(known.mean(), abs=0.3 * known.std())
            assert deviation == pytest.approx(known.std(), rel=0.2)


def pooled(scores, temperature):
    if temperature is None:
        return scores.max()
    weights = np.exp((scores - scores.max()) / temperature)
    return float(weights @ scores / weights.sum())
