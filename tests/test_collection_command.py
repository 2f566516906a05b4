"""The command `python -m dcdt.collection`, as a user gives it."""

import json

import pytest
from commands import dcdt, dcdt_process

from dcdt.data.beir import load_collection
from dcdt.data.config import SplitConfig
from dcdt.data.splits import make_split, weak_counts
from dcdt.data.summary import summarise_collection
from dcdt.data.types import normalise_text
from dcdt.utils.errors import UserError


def command(*arguments, call=dcdt):
    done = call("collection", *arguments)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Exports with odd names: 40 videos separated by semicolons, 60 questions, and clicks."""
    folder = tmp_path_factory.mktemp("tables")
    rows = [f"V{n};Lesson number {n} on bases;Words that say what lesson {n} teaches;{n}\n" for n in range(40)]
    (folder / "Export.csv").write_text("﻿Clip Nr;Course Name;Blurb;minutes\n" + "".join(rows))
    (folder / "asked.csv").write_text("q,clip\n" + "".join(f"question {n} about it,V{n % 40}\n" for n in range(60)))
    (folder / "clicks.csv").write_text(
        "who,clip,day\n" + "".join(f"u{n % 9},V{n % 40},2024-01-0{n % 9 + 1}\n" for n in range(90))
    )
    return folder


def columns():
    return ["--id-column", "Clip Nr", "--title-column", "Course Name", "--text-column", "Blurb"]


def queries(tables):
    return ["--queries", tables / "asked.csv", "--query-column", "q", "--video-column", "clip"]


def test_exported_tables_become_a_collection_that_loads(tmp_path, tables):
    clicks = [
        "--interactions",
        tables / "clicks.csv",
        "--user-column",
        "who",
        "--item-column",
        "clip",
        "--time-column",
        "day",
    ]
    code, out, err = command(
        "new", tmp_path / "mine", "--videos", tables / "Export.csv", *columns(), *queries(tables), *clicks
    )
    assert (code, err) == (0, "")
    assert "queries with a positive    60" in out and "90 of 9 learners, 2024-01-01 to 2024-01-09" in out
    assert "warning: 60 queries have a positive; with fewer than 100 the intervals are wide." in out
    collection = load_collection(tmp_path / "mine")
    assert (len(collection.videos), len(collection.queries), len(collection.judgments)) == (40, 60, 60)
    assert collection.videos.metadata[3] == {"minutes": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]  # no draft is left


def test_a_table_that_cannot_work_leaves_nothing(tmp_path, tables):
    code, out, err = command("new", tmp_path / "mine", "--videos", tables / "Export.csv", *queries(tables))
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    assert err.startswith("error: ") and err.count("\n") == 2 and "--id-column NAME --title-column NAME --text" in err


def test_questions_that_no_video_answers_are_refused_by_the_names_the_user_gave(tmp_path, tables):
    given = ["--videos", tables / "Export.csv", *columns(), "--queries", tables / "asked.csv", "--query-column", "Q"]
    code, _, err = command("new", tmp_path / "mine", *given)
    assert code == 2 and "asked.csv: no row names a video that answers its question" in err
    code, _, err = command("new", tmp_path / "mine", *given, "--video-column", "clip", "--positive-grade", 3)
    assert code == 2 and err.startswith(f"error: {tmp_path / 'mine'}: no judgment reaches positive_grade 3")
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_yaml_would_read_as_a_variable_is_refused(tmp_path, tables):
    given = ["--videos", tables / "Export.csv", *columns(), *queries(tables), "--name", "a ${b"]
    code, out, err = command("new", tmp_path / "mine", *given)
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    assert err == "error: --name is 'a ${b'; it must not have '${'.\n"


def test_too_few_questions_to_divide_leave_nothing(tmp_path, tables):
    (tables / "one.csv").write_text("q,clip\nwhat is a basis,V1\n")
    given = ["--videos", tables / "Export.csv", *columns(), "--queries", tables / "one.csv"]
    code, out, err = command("new", tmp_path / "mine", *given, "--query-column", "q", "--video-column", "clip")
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    assert err.startswith("error: ") and err.count("\n") <= 2


def test_a_folder_that_holds_something_is_not_touched(tmp_path, tables):
    (tmp_path / "note").write_text("mine")
    code, _, err = command("new", tmp_path, "--videos", tables / "Export.csv", *columns(), *queries(tables))
    assert code == 2 and "exists and is not empty" in err
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


def test_the_demo_is_the_linear_algebra_collection_with_its_vectors(tmp_path):
    code, out, _ = command("demo", tmp_path / "demo", call=dcdt_process)
    assert code == 0 and "607 of them distinct" in out
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == [
        "DATASHEET.md", "collection.yaml", "corpus.jsonl", "embeddings", "interactions.csv", "qrels", "queries.jsonl",
    ]  # fmt: skip


def test_check_refuses_what_a_run_would_refuse(tmp_path):
    code, _, err = command("check", tmp_path)
    assert code == 2 and err.startswith("error: ") and "no corpus.jsonl" in err


@pytest.fixture(scope="module")
def weak(tables, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weak") / "weak"
    given = ["--videos", tables / "Export.csv", *columns(), *queries(tables), "--bootstrap-queries", "titles"]
    assert command("new", folder, *given)[0] == 0
    return load_collection(folder)


@pytest.mark.parametrize("name", ["query", "folds", "video"])
def test_weak_queries_train_and_are_never_tested_on(weak, name):
    for index in range(3):
        split = make_split(weak, SplitConfig(name, index, 10, "open"))
        assert set(weak_counts(weak, split)) == {"train"}
        judged = make_split(weak, SplitConfig(name, index, 10, "open", train_on="judged"))
        assert weak_counts(weak, judged) == {}
        for side in ("val", "test"):
            assert getattr(judged, side).queries.tolist() == getattr(split, side).queries.tolist()
        only = make_split(weak, SplitConfig(name, index, 10, "open", train_on="weak"))
        assert len(only.train.queries) == weak_counts(weak, only)["train"] == weak_counts(weak, split)["train"]


def test_a_weak_query_that_a_held_out_query_asks_is_left_out(weak):
    plain = make_split(weak, SplitConfig("query", 0, 1, "open"))
    asked = weak.queries.texts[int(plain.test.queries[0])]
    row = next(row for row, data in enumerate(weak.queries.metadata) if "weak" in data)
    before = weak.queries.texts[row]
    weak.queries.texts[row] = f"  {asked.upper()}!"
    try:
        split = make_split(weak, SplitConfig("query", 0, 1, "open"))
        assert row not in split.train.queries and len(split.train.queries) == len(plain.train.queries) - 1
        assert normalise_text(asked) not in {normalise_text(weak.queries.texts[at]) for at in split.train.queries}
    finally:
        weak.queries.texts[row] = before


def test_where_every_query_is_weak_they_are_divided_and_counted_on_every_side(tmp_path, tables):
    given = ["--videos", tables / "Export.csv", *columns(), "--bootstrap-queries", "titles"]
    code, out, _ = command("new", tmp_path / "mine", *given)
    assert code == 0 and "40 weak queries were made from titles; they have no human judgments" in out.replace("\n", " ")
    collection = load_collection(tmp_path / "mine")
    split = make_split(collection, SplitConfig("query", 0, 1, "all"))
    assert set(weak_counts(collection, split)) == {"train", "val", "test"}


def test_training_on_weak_queries_alone_needs_some(small):
    with pytest.raises(UserError, match=r"split.train_on=weak, but small has no weak queries beside judged ones"):
        make_split(load_collection(small), SplitConfig("query", 0, 1, "open", train_on="weak"))


def test_the_survey_counts_and_warns(tmp_path):
    (tmp_path / "qrels").mkdir()
    videos = [("a", "Basis", "one two"), ("b", "basis", "One, two"), ("c", "", "这是 什么"), ("d", "Rank", "")]
    lines = [json.dumps({"_id": name, "title": title, "text": text}) for name, title, text in videos]
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    (tmp_path / "queries.jsonl").write_text('{"_id": 1, "text": "what"}\n{"_id": 2, "text": "why"}')
    (tmp_path / "qrels" / "all.tsv").write_text("1\ta\t2\n1\tb\t1\n")
    found = summarise_collection(load_collection(tmp_path))
    statistics = dict(found.statistics)
    assert (statistics["videos"], statistics["without a title"], statistics["without a description"]) == ("4", "1", "1")
    assert (statistics["queries with a positive"], statistics["grades"]) == ("1", "2: 1, 1: 1")
    assert dict(found.lengths)["0"] == 1 and dict(found.lengths)["1 to 4"] == 3
    assert sum(n for _, n in found.lengths) == 4
    assert [warning.split(" ")[0] for warning in found.warnings] == ["1", "1", "1", "3", "1", "1"]


def test_french_is_noticed_where_py3langid_is_installed(tmp_path):
    pytest.importorskip("py3langid")
    rows = "".join(f"{n},Cours {n},comment calculer une intégrale et une dérivée partielle {n}\n" for n in range(9))
    (tmp_path / "v.csv").write_text(f"id,title,description\n{rows}", encoding="utf-8")
    assert "Most videos are not in English" in command("new", tmp_path / "mine", "--videos", tmp_path / "v.csv")[1]


@pytest.mark.parametrize(("text", "proposed"), [("Собственные векторы матрицы", True), ("the rank of a matrix", False)])
def test_a_catalogue_that_is_not_in_english_is_offered_the_multilingual_embedder(tmp_path, text, proposed):
    rows = "".join(
        f"{n},{text} {n},{text} и так далее {n}\n" if proposed else f"{n},{text} {n},{text}\n" for n in range(9)
    )
    (tmp_path / "v.csv").write_text(f"id,title,description\n{rows}", encoding="utf-8")
    code, out, err = command("new", tmp_path / "mine", "--videos", tmp_path / "v.csv")
    assert (code, err) == (0, "")
    assert ("Most videos are not in English" in out) == ("--embedder multilingual" in out) == proposed


def test_captions_and_a_column_of_transcripts_become_transcripts(tmp_path, tables):
    rows = [json.dumps({"Clip Nr": f"V{n}", "Course Name": f"Lesson {n}", "said": "spoken words"}) for n in range(40)]
    (tmp_path / "videos.jsonl").write_text("\n".join(rows))
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "V3.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\nanother text\n")
    new = ["new", tmp_path / "mine", "--videos", tmp_path / "videos.jsonl", *columns()[:4], *queries(tables)]
    code, out, err = command(*new, "--transcript", "said", "--captions", tmp_path / "captions")
    assert (code, err) == (0, "")
    assert "transcripts                40 of 40 videos, 0 hours, 40 passages" in out
    assert f"warning: {tmp_path / 'captions'}: 39 videos without captions." in out
    collection = load_collection(tmp_path / "mine")
    assert collection.transcripts.texts[2:4] == ["spoken words", "another text"]
    assert collection.passages.starts[3] == 1.0
    assert collection.videos.metadata[0] == {}
    assert collection.field_texts("transcript")[3] == "another text" and "transcript" in collection.fields
    code, out, err = command("new", tmp_path / "other", *new[2:], "--transcript", "told")
    assert code == 2 and "--transcript 'told': there is no such column" in err


def test_a_broken_transcript_is_named_by_the_check(tmp_path, small):
    folder = tmp_path / "mine"
    folder.mkdir()
    for path in small.glob("*.jsonl"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "qrels").mkdir()
    for path in (small / "qrels").iterdir():
        (folder / "qrels" / path.name).write_bytes(path.read_bytes())
    before = load_collection(folder).fingerprint
    (folder / "transcripts.jsonl").write_text('{"_id": "v0", "text": "said"}\n')
    assert load_collection(folder).fingerprint != before
    (folder / "transcripts.jsonl").write_text('{"_id": "v0", "text": "said"}\n{"_id": "v1"}\n')
    code, _, err = command("check", folder)
    assert code == 2 and "transcripts.jsonl:2: 'text' is 'None'" in err
