"""Small inputs that people really have, and the values that a reader would expect of them."""

import contextlib
import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import dcdt, mended, on
from reporting.run_folders import write_run
from support import EMBEDDER, make_collection, write_folder

import dcdt as dcdt_api
from dcdt.config.command_line import quote_texts
from dcdt.data.beir import load_collection
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import side_tensors
from dcdt.data.interactions import load_interactions
from dcdt.data.pairs import unrelated_videos
from dcdt.data.splits import make_split
from dcdt.data.table_reader import cell_id, read_rows
from dcdt.embeddings import fill as filling
from dcdt.embeddings.cache import Space, VectorCache
from dcdt.embeddings.providers.batching import LocalRunner
from dcdt.embeddings.providers.onnx_export import RECIPE, ensure_exported
from dcdt.runs.folder import RunFolder
from dcdt.runs.reader import _guarded, read_runs
from dcdt.samplers.pool import training_pool
from dcdt.serving.catalogue.video_table import KEEP_VERSIONS, VideoTable
from dcdt.serving.layout import exclusive_lock
from dcdt.serving.recommender import check_question
from dcdt.serving.videos import one_video
from dcdt.training import distributed
from dcdt.training.callbacks.last import LastState
from dcdt.training.checkpoint import read_state, state_errors, write_state
from dcdt.utils.errors import UserError
from dcdt.utils.files import atomic_write, remove_abandoned, temporary_folder, write_text

VIDEOS = [{"_id": f"v{n}", "title": f"Lecture {n}", "text": f"All about topic {n}"} for n in range(30)]
QUERIES = [{"_id": f"q{n}", "text": f"what is topic {n}"} for n in range(30)]
QRELS = [f"q{n}\tv{n}\t1" for n in range(30)]


def written(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def videos(tmp_path):
    return written(tmp_path / "videos.tsv", "id\ttitle\n" + "".join(f"v{n}\tLecture {n}\n" for n in range(30)))


def made(tmp_path, *arguments):
    """What `collection new` makes of these tables, and what it says."""
    done = dcdt("collection", "new", tmp_path / "made", *arguments)
    assert done.returncode == 0, done.stderr
    return load_collection(tmp_path / "made"), done.stdout + done.stderr


@pytest.mark.parametrize("text", ['"a" of {n}', 'say "a', '"open {n}', 'close {n}"'])
def test_tsv_has_no_quotes(tmp_path, videos, text):
    rows = [f"v{n}\t{text.format(n=n) if n in (3, 9) else 'question'} {n}\n" for n in range(30)]
    collection, _ = made(
        tmp_path, "--videos", videos, "--queries", written(tmp_path / "asked.tsv", "video_id\tquery\n" + "".join(rows))
    )
    assert len(collection.queries) == 30 and f"{text.format(n=9)} 9" in collection.queries.texts


def test_a_quote_that_takes_in_rows_is_named_by_its_line(tmp_path, videos):
    """Among texts of several lines it is warned of; where most look so, as in the last table, it is refused."""
    rows = [f'v{n},"question\nof {n}"\n' for n in range(30)]
    rows[4], rows[8] = 'v4,"question 4\n', 'v8,question 8"\n'
    rows[5:8] = [f"v{n},question {n}\n" for n in range(5, 8)]
    said = "10: a quoted cell ends in line 14, as if it had taken in rows; is a quote not closed?"
    asked = written(tmp_path / "asked.csv", "video_id,query\n" + "".join(rows))
    assert f"{asked}:{said}" in made(tmp_path, "--videos", videos, "--queries", asked)[1]
    written(asked, asked.read_text().replace("question\nof", "question of").replace("v4", "\n\n\n\nv4"))
    mended(dcdt("collection", "new", tmp_path / "other", "--videos", videos, "--queries", asked), said)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", 'id,title\n1,a\n2,"open\n3,c\n', "a.csv:3: a quote in this row is not closed"),
        ("a.csv", 'id,title\n1,a\n2,"open\n3,"c"\n', "a.csv:3: a quote in this row is not closed"),
        (
            "a.csv",
            'id,title\n1,a\n2,"open\n3"\n4,d,e\n',
            "a.csv:5: 3 columns; the header names 2, separated by commas.",
        ),
        ("a.csv", 'id,title\n1,"open\n2",b\n', "a.csv:2: 3 columns.*ends in line 3: is a quote not closed"),
        ("a.csv", 'id\ttitle\n1\t"a" b\n', "a.csv:2.*\n.*name the file .tsv"),
        ("a.tsv", "id\ttitle\n1\ta\rb\n2\tc\n", r"a.tsv:2: a cell holds a line break \(CR\); replace it"),
        ("a.jsonl", '{"id": 1}\n{"id": 2, "meta": {"a": 1, "a": 2}}\n', "a.jsonl:2: .*the key 'a' occurs twice"),
    ],
)
def test_a_table_that_would_lose_cells_is_refused_by_its_line(tmp_path, name, text, said):
    with pytest.raises(UserError, match=said):
        list(read_rows(written(tmp_path / name, text)))


def test_one_column_of_texts_with_line_breaks_is_read_and_warned_of(tmp_path, caplog):
    assert [row["q"] for _, row in read_rows(written(tmp_path / "a.csv", 'q\n"two\nlines"\nb\n'))] == [
        "two\nlines",
        "b",
    ]
    assert "a.csv:2: a quoted cell ends in line 3" in caplog.text


@pytest.mark.parametrize(("name", "expected"), [("7", "7"), ("7.0", "7"), ("1e3", None), ("1.50", None)])
def test_a_number_of_json_is_an_id_as_it_is_written_or_refused(tmp_path, name, expected):
    [(location, row)] = read_rows(written(tmp_path / "a.jsonl", f'{{"id": {name}}}\n'))
    with contextlib.nullcontext() if expected else pytest.raises(UserError, match=f"the id {name} is no text"):
        assert cell_id(row["id"], location) == expected


def test_ids_are_kept_as_they_are_written(tmp_path):
    names = ["-aB", "=bC", "a  b", "2024.10", "1_0", "007", "1e3"]
    rows = [{"id": name, "title": f"Lecture {name}"} for name in names]
    table = written(tmp_path / "v.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    asked = written(tmp_path / "asked.csv", "video_id,query\n" + "".join(f"{name},what is {name}\n" for name in names))
    collection, _ = made(tmp_path, "--videos", table, "--queries", asked)
    assert collection.videos.ids == names and len(collection.positives) == len(names)


@pytest.mark.parametrize("name", [2024.1, True, [1]])
def test_an_id_that_json_has_changed_is_refused(tmp_path, name):
    table = written(tmp_path / "v.jsonl", json.dumps({"id": name, "title": "a"}) + "\n")
    mended(dcdt("collection", "new", tmp_path / "made", "--videos", table), "v.jsonl:1: the id", "write it in quotes")


@pytest.mark.slow
def test_answers_to_a_batch_have_the_ids_of_the_catalogue(tmp_path):
    folder = make_collection(tmp_path / "c")
    names = {"v0": "-aB", "v1": "=bC", "v2": "a  b"}
    for path in (folder / "corpus.jsonl", *folder.glob("qrels/*.tsv")):
        text = path.read_text()
        for old, new in names.items():
            text = text.replace(f'"{old}"', f'"{new}"').replace(f"\t{old}\t", f"\t{new}\t")
        path.write_text(text)
    run = dcdt("run", "model=bm25", "logger=none", f"hydra.run.dir={tmp_path / 'run'}", *on(folder, tmp_path / "out"))
    assert run.returncode == 0, run.stderr
    asked = written(tmp_path / "asked.csv", "question\n=lesson\n")
    assert (
        dcdt("recommend", tmp_path / "run", "--batch", asked, "-k", 60, "--out", tmp_path / "out.csv").returncode == 0
    )
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert {row["id"] for row in rows} == set(load_collection(folder).videos.ids) > set(names.values())
    assert {row["question"] for row in rows} == {"'=lesson"}


@pytest.mark.parametrize(
    ("text", "name", "languages"),
    [
        ("languages: [en, no]", "c", ["en", "no"]),
        ("name: 2024_01", "2024_01", []),
        ("name: No\nlanguages: [on, 'yes', 1_0]", "No", ["on", "yes", "1_0"]),
        ("name: 1.50\npositive_grade: 1", "1.50", []),
    ],
)
def test_collection_yaml_is_read_as_it_is_written(tmp_path, text, name, languages):
    folder = write_folder(tmp_path / "c", VIDEOS, QUERIES, all=QRELS)
    (folder / "collection.yaml").write_text(text)
    assert (load_collection(folder).name, load_collection(folder).languages) == (name, languages)


@pytest.mark.parametrize("override", ["data.path=2024_01", "experiment_name=1.50", "hydra.run.dir=1e3", "outputs=True"])
def test_a_name_on_the_command_line_is_no_number(override):
    key, value = override.split("=")
    assert quote_texts([override, "seed=1_000"]) == [f"{key}='{value}'", "seed=1_000"]


@pytest.mark.slow
def test_a_folder_and_an_experiment_with_a_name_like_a_number(tmp_path):
    make_collection(tmp_path / "2024_01")
    done = dcdt(
        "run",
        "model=bm25",
        "data=files",
        "data.path=2024_01",
        "experiment_name=1_0",
        "logger=none",
        "hydra.run.dir=2024_02",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "experiment_name: '1_0'" in (tmp_path / "2024_02" / "config.yaml").read_text()


def test_a_number_where_a_file_should_have_a_text_is_refused(tmp_path):
    (tmp_path / "experiment").mkdir()
    written(tmp_path / "experiment" / "mine.yaml", "# @package _global_\nexperiment_name: 2024_01\n")
    done = dcdt("run", "--config-dir", tmp_path, "experiment=mine", "logger=none", f"outputs={tmp_path / 'out'}")
    mended(
        done,
        'experiment_name is 202401; it must be a text; in a file, write quotes around it, such as experiment_name: "',
    )


@pytest.mark.parametrize("grade", ["1_0", "", "high"])
def test_a_grade_is_a_number(tmp_path, grade):
    with pytest.raises(UserError, match="is not a finite number"):
        load_collection(write_folder(tmp_path / "c", VIDEOS, QUERIES, all=[f"q0\tv0\t{grade}"]))


@pytest.mark.parametrize("unit", [1, 1_000, 1_000_000, 1_000_000_000])
def test_times_of_any_unit_are_seconds(tmp_path, unit):
    path = written(tmp_path / "w.csv", f"user_id,item_id,timestamp\nu,v0,{1_700_000_000 * unit}\n")
    assert load_interactions(path, {"v0": 0}).time.tolist() == [1_700_000_000]
    asked = [{**query, "metadata": {"timestamp": 1_700_000_000 * unit}} for query in QUERIES]
    collection = load_collection(write_folder(tmp_path / "c", VIDEOS, asked, all=QRELS))
    assert {metadata["timestamp"] for metadata in collection.queries.metadata} == {1_700_000_000}


@pytest.mark.parametrize(
    ("time", "said"),
    [
        ("20231114", "may also have 2023-11-14.$"),
        ("2023111412", "may also have 2023-11-14T12:00"),
        ("202311141230", "may also have 2023-11-14T12:30"),
        ("20231114123000", "may also have 2023-11-14T12:30"),
        ("1e25", "out of range|means the year"),
        ("1_7", "'1_7'"),
    ],
)
def test_a_time_of_no_unit_is_refused(tmp_path, videos, time, said):
    """One odd value elsewhere changes nothing, and a table for a collection is refused by its own name."""
    path = written(tmp_path / "w.csv", f"user_id,item_id,timestamp\nu,v0,{time}\nu,v0,0\n")
    with pytest.raises(UserError, match=said):
        load_interactions(path, {"v0": 0})
    if "also" in said:
        asked = written(tmp_path / "asked.csv", f"v,query,time\nv0,what,{time}\nv1,why,17\n")
        for table in (
            ["--queries", asked],
            ["--queries", written(tmp_path / "a.csv", "v,query\nv0,what\n"), "--interactions", path],
        ):
            done = dcdt("collection", "new", tmp_path / "made", "--videos", videos, "--video-column", "v", *table)
            mended(done, f"{table[-1]}: the time {time} is a date")


def test_times_that_look_like_a_date_by_chance_are_times(tmp_path):
    rows = "".join(f"u,v0,{time}\n" for time in (20_231_114, 20_231_999, 20_239_914))
    path = written(tmp_path / "w.csv", f"user_id,item_id,timestamp\n{rows}")
    assert load_interactions(path, {"v0": 0}).time[0] == 20_231_114


@pytest.mark.parametrize(("first", "warned"), [(0, True), (1_699_990_000, False), (1_700_000_100, True)])
def test_interactions_that_no_question_can_see_are_warned_of(tmp_path, first, warned):
    asked = [{**query, "metadata": {"timestamp": 1_700_000_000}} for query in QUERIES]
    folder = write_folder(tmp_path / "c", VIDEOS, asked, all=QRELS)
    written(folder / "interactions.csv", f"user_id,item_id,timestamp\nu,v0,{first}\nu,v1,{first + 9}\n")
    done = dcdt("collection", "check", folder)
    assert ("are both times seconds since 1970?" in done.stdout) == warned


def test_a_learner_that_json_made_a_number_with_a_fraction_has_a_history(tmp_path):
    asked = [{**query, "metadata": {"timestamp": 9, "user_id": 7.0}} for query in QUERIES]
    folder = write_folder(tmp_path / "c", VIDEOS, asked, all=QRELS)
    warning = "names none of the learners who ask, such as '7'"
    for user, warned in (("7", False), ("u7", True)):
        written(folder / "interactions.csv", f"user_id,item_id,timestamp\n{user},v0,3\n{user},v1,8\n")
        assert load_collection(folder).queries.metadata[0]["user_id"] == "7"
        assert (warning in dcdt("collection", "check", folder).stdout) == warned
    asked[0]["metadata"]["user_id"] = 7.5
    write_folder(tmp_path / "d", VIDEOS, asked, all=QRELS)
    mended(dcdt("collection", "check", tmp_path / "d"), "queries.jsonl:1: the id 7.5 is no text")


@pytest.mark.parametrize(("start", "warned"), [(3_600, False), (3_600_000, True)])
def test_transcripts_in_milliseconds_are_warned_of(tmp_path, start, warned):
    folder = write_folder(tmp_path / "c", VIDEOS, QUERIES, all=QRELS)
    record = {"_id": "v0", "segments": [{"start": 0, "text": "a"}, {"start": start, "text": "b"}]}
    written(folder / "transcripts.jsonl", json.dumps(record))
    assert ("1 with times after the first day" in dcdt("collection", "check", folder).stdout) == warned


def test_judgments_are_a_table_of_their_own(tmp_path, videos):
    asked = written(
        tmp_path / "asked.jsonl", "".join(json.dumps({"qid": f"q{n}", "query": f"topic {n}"}) + "\n" for n in range(9))
    )
    rows = [{"qid": f"q{n}", "doc_id": [f"v{n}", f"v{n + 1}"] if n else "v0", "rel": 2} for n in range(8)]
    judged = written(tmp_path / "judged.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    collection, said = made(tmp_path, "--videos", videos, "--queries", asked, "--judgments", judged)
    assert len(collection.judgments) == 1 + 2 * 7 and set(collection.judgments.grade.tolist()) == {2.0}
    assert "queries without a judgment: 1 of 9" in said
    done = dcdt("collection", "new", tmp_path / "other", "--videos", videos, "--queries", asked)
    mended(done, "--judgments FILE")
    done = dcdt("collection", "new", tmp_path / "other", "--videos", videos, "--queries", judged)
    mended(done, "judged.jsonl: no column 'query'", "if these are judgments: --queries TEXTS --judgments FILE")
    written(tmp_path / "corpus.jsonl", '{"doc_id": "v0"}\n')
    written(tmp_path / "queries.jsonl", '{"qid": "q0"}\n')
    mended(
        dcdt("collection", "check", tmp_path), "corpus.jsonl:1: '_id' is None", "--videos FILE --queries FILE [--jud"
    )
    written(judged, json.dumps({"qid": "q99", "doc_id": "v0"}) + "\n")
    done = dcdt("collection", "new", tmp_path / "other", "--videos", videos, "--queries", asked, "--judgments", judged)
    mended(done, "judged.jsonl:1: the query 'q99' is not among the 9 queries")


@pytest.mark.parametrize(("own_video", "n"), [("same_text", 18), ("same_id", 28), ("keep", 0)])
def test_a_query_that_is_a_video_does_not_find_itself(tmp_path, own_video, n):
    """q0 to q19 are videos; v20 to v29 have the id of one by chance; q0 and q1 are judged to answer themselves."""
    twins = [{"_id": query["_id"], "title": "", "text": query["text"].upper()} for query in QUERIES[:20]]
    by_chance = [{**query, "_id": f"v{n}"} for n, query in enumerate(QUERIES) if n >= 20]
    judged = [*(f"{query['_id']}\tv1\t1" for query in [*QUERIES[:20], *by_chance]), "q0\tq0\t1", "q1\tq1\t1"]
    folder = write_folder(tmp_path / "c", [*VIDEOS, *twins], [*QUERIES[:20], *by_chance], all=judged)
    collection = load_collection(folder, own_video)
    split = make_split(collection, SplitConfig("query", 0, 1, "all"))
    own = [(row, collection.videos.row_of[name]) for row, name in enumerate(collection.queries.ids)]
    excluded = set() if collection.excluded is None else set(zip(*vars(collection.excluded).values(), strict=True))
    assert len(excluded) == n and len(collection.left_out) == (n > 0)
    pool = training_pool(collection, split)
    for row, video in own:
        if (row, video, 0.0) in excluded:
            assert video not in unrelated_videos(collection, row, split.test.candidates)
            at = (pool.queries == row).nonzero().flatten()
            assert (
                not len(at)
                or (pool.candidates[pool.forbidden[at[0]].clamp(max=len(pool.candidates) - 1)] == video).any()
            )
    test = side_tensors("test", split.test, collection)
    removed = [
        video in test.removed[place].tolist()
        for place, row in enumerate(test.queries.tolist())
        for video in [own[row][1]]
    ]
    assert sum(removed) == sum((*own[row], 0.0) in excluded for row in test.queries.tolist())


class Lengths(LocalRunner):
    """One-hot vectors of a text's length; NaN for a text with `bad`, and one vector for all of `same`."""

    def embed(self, texts, progress=None):
        vectors = np.eye(64, dtype=np.float32)[[0 if "same" in text else len(text) for text in texts]]
        vectors[["bad" in text for text in texts]] = np.nan
        return vectors


def filled(tmp_path, monkeypatch, texts):
    cache = VectorCache(tmp_path, Space("test", "lengths", 64, "l2"))
    monkeypatch.setattr(filling, "make_embedder", lambda config: Lengths())
    with pytest.raises(UserError) if any("bad" in text for text in texts) else contextlib.nullcontext() as caught:
        filling.fill(cache, texts, None, progress=False)
    return cache, str(caught.value) if caught else ""


def test_a_vector_that_is_not_finite_discards_itself_alone(tmp_path, monkeypatch):
    texts = ["a" * n for n in range(1, 60)]
    cache, said = filled(tmp_path, monkeypatch, [*texts, "a bad text"])
    assert cache.missing([*texts, "a bad text"]) == ["a bad text"]
    assert "no vector for 1 of 60 texts" in said and "zero, not finite or not of length 1: 'a bad text'" in said
    cache, said = filled(tmp_path / "all", monkeypatch, ["bad", "bad too"])  # a model that gives nothing right
    assert "2 of 2 vectors are zero" in said and not len(cache)


@pytest.mark.parametrize(("texts", "warned"), [(["same 1", "same 2"], True), (["a", "ab"], False), (["same"], False)])
def test_one_vector_for_all_texts_is_warned_of(tmp_path, monkeypatch, caplog, texts, warned):
    filled(tmp_path, monkeypatch, texts)
    assert any("one vector for all their texts" in text for text in caplog.messages) == warned


def flip(path, at):
    """Flip the sign of a number: its length stays."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0x80
    path.write_bytes(content)


def test_a_flipped_sign_in_a_cached_vector_is_found_when_it_is_read_or_merged(tmp_path):
    space = Space("test", "m", 8, "l2")
    cache = VectorCache(tmp_path, space, "REMEDY")
    cache.add(["a", "b"], np.eye(2, 8))
    cache.add(["c"], np.eye(1, 8))
    shard = cache.shards[0]
    flip(shard.path, shard.start + 1)
    said = f"{shard.path.name} is corrupt: it has changed since it was written.\nDelete this file, then REMEDY"
    for work in (lambda cache: cache.vectors(["a", "b", "c"]), lambda cache: cache.merge(2)):
        with pytest.raises(UserError, match=said):
            work(VectorCache(tmp_path, space, "REMEDY"))


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path):
    write_state({"weights": torch.ones(1000)}, tmp_path / "last.ckpt")
    assert read_state(tmp_path / "last.ckpt")
    content = (tmp_path / "last.ckpt").read_bytes()
    flip(tmp_path / "last.ckpt", content.index(b"\x00\x00\x80?" * 100) + 403)
    with pytest.raises(UserError, match=r"last.ckpt is corrupt.*checksum"):
        read_state(tmp_path / "last.ckpt")


def test_an_error_of_a_device_is_not_blamed_on_the_state_that_is_resumed(tmp_path):
    def load_state_dict():
        raise RuntimeError("Missing key(s) in state_dict")

    last = LastState(tmp_path / "last.ckpt", None)
    with (
        pytest.raises(UserError, match=r"last.ckpt is corrupt, of another model.*\nDelete it"),
        state_errors(last.path, last),
    ):
        load_state_dict()
    with pytest.raises(RuntimeError, match="CUDA error"), state_errors(last.path, last):
        raise RuntimeError("CUDA error: device-side assert triggered")


def test_the_digest_of_vectors_changes_with_a_bit_and_not_with_shards_or_order(tmp_path):
    space, vectors = Space("test", "m", 8, "l2"), np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    digests = []
    for name, sign in (("one", 1), ("two", 1), ("other", -1)):
        cache = VectorCache(tmp_path / name, space)
        cache.add(["a", "b"], vectors[:2] * [[1], [sign]])
        cache.add(["c"], vectors[2:3])
        digests.append(cache.digest(["c", "a", "b", "c"] if name == "two" else ["a", "b", "c"]))
        assert cache.merge(2) == 2 and cache.digest(["a", "b", "c"]) == digests[-1]
    assert digests[0] == digests[1] != digests[2]
    cache = VectorCache(tmp_path / "exchanged", space)
    cache.add(["b", "a", "c"], vectors[:3])
    assert cache.digest(["a", "b", "c"]) != digests[0]


def left_behind(folder, name):
    """Make what a kill leaves of a write to `name`."""
    folder.mkdir(parents=True, exist_ok=True)
    written(folder / f".{name}.abc123.tmp", "half")


def test_what_a_kill_left_is_cleared_by_the_next_writer_and_living_writers_are_not(tmp_path):
    for name in ("table.md", "table.md.old"):
        left_behind(tmp_path, name)
    (tmp_path / ".course.def.tmp" / "collection").mkdir(parents=True)
    with atomic_write(tmp_path / "table.md") as first, temporary_folder(tmp_path / "course") as folder:
        first.write_text("first")
        (folder / "corpus.jsonl").touch()
        write_text(tmp_path / "table.md", "second")
        remove_abandoned(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([first.name, folder.name, "table.md"])
    assert [path.name for path in tmp_path.iterdir()] == ["table.md"]


def test_whoever_opens_a_folder_for_writing_clears_it(tmp_path, monkeypatch):
    run, cache = tmp_path / "run", VectorCache(tmp_path / "cache", Space("test", "m", 8, "l2"))
    for folder in (
        run,
        run / "checkpoints",
        run / "serving",
        run / "serving" / "build",
        cache.folder,
        tmp_path / "onnx",
    ):
        left_behind(folder, "x")
    monkeypatch.setenv("DCDT_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "dcdt.embeddings.providers.onnx_export._export", lambda config, folder: (folder / RECIPE).touch()
    )
    ensure_exported(EMBEDDER)
    RunFolder(run).lock(wait=False)
    with exclusive_lock(run):
        cache.prepare()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_process_whose_parent_was_killed_removes_its_copies_of_states(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "TEMPORARY", [])
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    (tmp_path / "checkpoints").mkdir()
    written(tmp_path / "checkpoints" / "last.ckpt", "state")
    own = distributed.process_folder(RunFolder(tmp_path), named=True, sweeping=False)
    assert [path.name for path in own.states()] == ["last.ckpt"]
    monkeypatch.setattr("sys.stdin", io.StringIO())  # closed, as by the end of the parent
    monkeypatch.setattr("os._exit", lambda code: None)
    distributed._end_with_parent()
    assert not own.path.exists() and tmp_path.exists()


@pytest.mark.slow
def test_the_catalogue_of_many_changes_keeps_fifty_versions(tmp_path):
    pytest.importorskip("lancedb")
    table, row = VideoTable(str(tmp_path)), pa.table({"id": ["v"], "title": ["a"]})
    table.create(row)
    for _ in range(2 * KEEP_VERSIONS):
        table.update(row)
    table.optimize()
    assert len(table.table.list_versions()) <= KEEP_VERSIONS + 2


@pytest.mark.parametrize(
    ("qrels", "said"),
    [
        ({1: {11: 1}}, "query ids are of several types, such as 1 (int) and '1'; make all of them texts."),
        ({"1": {"11": 1}, 2: {"11": 1}}, "query ids are of several types, such as 2 (int) and '1'"),
        ({"1": {11: 1}}, "video ids are of several types, such as 11 (int) and '10'"),
        ({1: {"11"}}, "qrels: those of query 1 are a set"),
        ({1: {"11": float("nan")}}, "the grade of query 1 and video '11' is nan"),
        ({"a": {"x": 1}}, "no judged query is among the scored ones, such as 'a' and '1'"),
        ({"1": {"11"}}, "qrels: those of query '1' are a set; give a dictionary"),
        ({"1": ["11"]}, "qrels: those of query '1' are a list; give a dictionary"),
    ],
)
def test_what_a_caller_of_evaluate_can_mend_is_said(qrels, said):
    with pytest.raises(UserError) as caught:
        dcdt_api.evaluate({"1": {"10": 0.5, "11": 0.4}, "2": {"10": 0.1, "11": 0.9}}, qrels, ks=[1])
    assert said in str(caught.value)


@pytest.mark.slow
def test_training_that_diverges_ends_in_two_lines_and_is_the_worst_of_trials(tmp_path):
    fast = ["model=dcdt", "optimizer.lr=1e30", "trainer.max_epochs=2", "trainer=cpu", "logger=none"]
    fast += ["callbacks.progress=false", *on(make_collection(tmp_path / "c"), tmp_path / "out")]
    done = dcdt("run", *fast, f"hydra.run.dir={tmp_path / 'one'}")
    mended(done, "error: training diverged in epoch 0: the ", "Lower optimizer.lr (1e30).")
    assert dcdt("run", *fast, "trials=2", f"hydra.run.dir={tmp_path / 'two'}").returncode == 0
    trials = json.loads((tmp_path / "two" / "tuning.json").read_text())["trials"]
    assert trials[0]["val/mrr"] is None and "diverged" in trials[0]["error"] and trials[1]["val/mrr"] > 0


def test_half_a_character_and_a_byte_of_another_encoding_are_named(tmp_path):
    for text in ("caf\udce9", "half \ud83d"):  # a latin-1 byte on a command line, and half an emoji
        with pytest.raises(UserError, match=r"the question: lone surrogate .*not UTF-8"):
            check_question(text)
        with pytest.raises(UserError, match="the video: lone surrogate"):
            one_video("v", "a title", "", [f"series={text}"])
    table = written(
        tmp_path / "v.jsonl", '{"id": "a", "title": "whole \\ud83d\\ude00"}\n{"id": "b", "title": "half \\ud83d"}\n'
    )
    mended(dcdt("collection", "new", tmp_path / "made", "--videos", table), "v.jsonl:2: lone surrogate")


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), MemoryError(), OSError(5, "Input/output error")]
)
def test_a_system_that_fails_is_not_blamed_on_a_file(error):
    def fail(path):
        raise error

    with pytest.raises((UserError, MemoryError)) as told:
        _guarded(Path("metrics.json"), fail)
    assert "corrupt" not in str(told.value) and "Delete" not in str(told.value)


def test_a_file_of_parquet_that_cannot_be_read_is_corrupt():
    def fail(path):
        raise OSError("Couldn't deserialize thrift")  # without a number of the system

    with pytest.raises(UserError, match="corrupt"):
        _guarded(Path("pairs.parquet"), fail)


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda values: values + 6.8, "from 0 to 1"), (lambda values: values / 2, "is not that of metrics.json")],
)
def test_a_report_does_not_believe_values_that_cannot_be(tmp_path, change, said):
    folder = write_run(tmp_path / "sweep")
    table = pq.read_table(folder / "per_query.parquet")
    values = table["value"].to_numpy()[[metric == "mrr" for metric in table["metric"].to_pylist()]]
    written(folder / "metrics.json", json.dumps({"test/mrr": values.mean()}))
    place = table.column_names.index("value")
    pq.write_table(
        table.set_column(place, "value", pa.array(change(table["value"].to_numpy()))), folder / "per_query.parquet"
    )
    with pytest.raises(UserError, match=f"per_query.parquet is corrupt .*{said}"):
        read_runs([folder])


def test_a_report_does_not_believe_pairs_of_another_accuracy(tmp_path):
    folder = write_run(tmp_path / "sweep")
    pairs = pq.read_table(folder / "pairs.parquet")
    accuracy = float(np.mean(pairs["label"].to_numpy() == pairs["accepted"].to_numpy()))
    metrics = json.loads((folder / "metrics.json").read_text())
    written(folder / "metrics.json", json.dumps(metrics | {"test/pair_accuracy": accuracy}))
    assert read_runs([folder])[0].pairs is not None
    written(folder / "metrics.json", json.dumps(metrics | {"test/pair_accuracy": accuracy - 0.01}))
    with pytest.raises(UserError, match=r"pairs\.parquet is corrupt .*accuracy is not that of metrics\.json"):
        read_runs([folder])
