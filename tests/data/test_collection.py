import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import write_folder

from dcdt.data.beir import load_collection, read_videos
from dcdt.data.types import normalise_text, positives_by_query
from dcdt.utils.errors import MissingField, UserError

VIDEOS = [{"_id": "v1", "title": "Rank", "text": "The rank."}, {"_id": "v2", "title": "Span", "text": "The span."}]
QUERIES = [{"_id": "q1", "text": "what is rank"}, {"_id": "q2", "text": "what is span"}]
QRELS = ["q1\tv1\t1", "q2\tv2\t1"]


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "tiny", VIDEOS, QUERIES, all=QRELS)


def refused(folder, *parts):
    """The message with which the folder is refused holds every part."""
    with pytest.raises(UserError) as caught:
        load_collection(folder)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_reads_texts_judgments_and_settings(folder):
    (folder / "collection.yaml").write_text("name: algebra\npositive_grade: 2\nlanguages: [en]\nsimulated: [users]\n")
    (folder / "qrels/all.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tv1\t2\nq1\tv2\t1\nq2\tv1\t0\n")
    collection = load_collection(folder)
    assert collection.videos.ids == ["v1", "v2"]
    assert collection.videos.titles == ["Rank", "Span"]
    assert collection.queries.texts == ["what is rank", "what is span"]
    assert collection.queries.row_of == {"q1": 0, "q2": 1}
    assert [part.tolist() for part in vars(collection.judgments).values()] == [[0, 0, 1], [0, 1, 0], [2, 1, 0]]
    assert collection.positives.video.tolist() == [0]
    assert collection.related.video.tolist() == [0, 1]
    assert positives_by_query(collection.related, 2) == [[0, 1], []]
    assert (collection.name, collection.positive_grade) == ("algebra", 2)
    assert (collection.languages, collection.simulated) == (["en"], ["users"])


def test_name_and_positive_grade_have_defaults(folder):
    collection = load_collection(folder)
    assert (collection.name, collection.positive_grade) == ("tiny", 1)


@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\tscore\n", "qid\tdid\trelevance\r\n"])
def test_the_header_of_qrels_is_optional(folder, header):
    (folder / "qrels/all.tsv").write_text(header + "q1\tv1\t1\n")
    assert len(load_collection(folder).judgments) == 1


@pytest.mark.parametrize("grade", ["high", "nan", "inf", "1,0", ""])
@pytest.mark.parametrize("header", ["", "query-id\tcorpus-id\tscore\n"])
def test_a_score_that_is_no_number_is_no_header(folder, header, grade):
    (folder / "qrels/all.tsv").write_text(f"{header}q1\tv1\t{grade}\n")
    refused(folder, f"all.tsv:{2 if header else 1}: the score '{grade}'", "not a finite number")


@pytest.mark.parametrize("grade", ["1e300", "-1e300", "1000001"])
def test_a_score_that_single_precision_cannot_hold_is_refused(folder, grade):
    (folder / "qrels/all.tsv").write_text(f"q1\tv1\t{grade}\n")
    refused(folder, "all.tsv:1", "out of range; at most 1,000,000")


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/all.tsv"])
def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(folder, name):
    path = folder / name
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n  \r\n")
    collection = load_collection(folder)
    assert collection.videos.ids == ["v1", "v2"]
    assert collection.queries.texts == ["what is rank", "what is span"]
    assert len(collection.judgments) == 2


def test_whole_numbers_serve_as_ids(tmp_path):
    videos = [{"_id": 7, "text": "The rank."}, {"_id": 0, "text": "The span."}]
    collection = load_collection(write_folder(tmp_path, videos, [{"_id": 3, "text": "rank"}], all=["3\t0\t1"]))
    assert collection.videos.ids == ["7", "0"]
    assert collection.judgments.video.tolist() == [1]


def test_blanks_around_ids_do_not_count(tmp_path):
    collection = load_collection(
        write_folder(tmp_path, [{"_id": " v1", "text": "a"}], [{"_id": "q1 ", "text": "b"}], all=[" q1\tv1 \t 1 "])
    )
    assert (collection.videos.ids, collection.queries.ids, len(collection.judgments)) == (["v1"], ["q1"], 1)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not a JSON object"),
        ('["v9"]', "a JSON object is needed, got list"),
        ("[" * 100_000, "not a JSON object"),
        ('{"text": "no id"}', "'_id' is None"),
        ('{"_id": "  ", "text": "x"}', "'_id' is '  '"),
        ('{"_id": true, "text": "x"}', "'_id' is True"),
        ('{"_id": 1.5, "text": "x"}', "'_id' is 1.5"),
        ('{"_id": "new", "text": ["x"]}', "'text' is list"),
        ('{"_id": "new", "text": "half a \\ud83d"}', "lone surrogate"),
        ('{"_id": "new\\ud83d", "text": "x"}', "lone surrogate"),
        ('{"_id": "new", "text": "x", "metadata": "y"}', "'metadata' is str"),
    ],
)
def test_a_bad_record_is_named_by_file_and_line(folder, name, line, reason):
    with (folder / name).open("a") as file:
        file.write(f"\n{line}\n")
    refused(folder, f"{name}:4: ", reason)


@pytest.mark.parametrize(("name", "record"), [("corpus.jsonl", VIDEOS[0]), ("queries.jsonl", QUERIES[0])])
def test_an_id_that_stands_twice_is_named_with_both_lines(folder, name, record):
    with (folder / name).open("a") as file:
        file.write(json.dumps(record))
    refused(folder, f"{name}:3: the id '{record['_id']}' is already used at line 1")


def test_an_empty_query_is_refused(folder):
    with (folder / "queries.jsonl").open("a") as file:
        file.write('{"_id": "q3", "text": "  \\u3000"}\n')
    refused(folder, "queries.jsonl:3: the query 'q3' is empty")


def test_a_video_needs_title_or_text(folder):
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "v3", "title": "only a title"}\n{"_id": "v4", "text": "only a text", "title": null}\n')
    collection = load_collection(folder)
    assert collection.videos.titles[2:] == ["only a title", ""]
    assert collection.field_texts("title") == ["Rank", "Span", "only a title", "only a text"]
    assert collection.field_texts("text") == ["The rank.", "The span.", "only a title", "only a text"]


def test_a_video_without_a_word_and_its_judgments_are_left_out_and_counted(folder):
    with (folder / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "v5", "title": " ", "text": ""}\n')
    with (folder / "qrels" / "all.tsv").open("a") as file:
        file.write("q1\tv5\t1\n")
    collection = load_collection(folder)
    assert collection.videos.ids == ["v1", "v2"] and len(collection.judgments) == 2
    assert collection.left_out == ("1 video has neither title nor text: left out of every run.",)
    with pytest.raises(UserError, match=r"corpus.jsonl:3: the video 'v5' has neither title nor text"):
        read_videos(folder / "corpus.jsonl")
    (folder / "corpus.jsonl").write_text('{"_id": "v5", "title": " "}\n')
    refused(folder, "holds no video with a word")


def test_a_few_judgments_of_unknown_ids_are_left_out_and_counted_and_many_are_refused(tmp_path):
    videos = [{"_id": n, "text": f"lesson {n}"} for n in range(20)]
    lines = [f"0\t{n}\t{n % 3}" for n in range(19)]
    folder = write_folder(tmp_path, videos, [{"_id": 0, "text": "what"}], test=[*lines, "0\t77\t1"])
    collection = load_collection(folder)
    assert len(collection.judgments) == 19 and collection.judgments.video.max() == 18
    (said,) = collection.left_out
    assert said.startswith("1 judgment is of an unknown id") and "test.tsv:21: the video id '77'" in said
    write_folder(tmp_path, videos, [{"_id": 0, "text": "what"}], test=[*lines, "0\t77\t1", "8\t1\t1"])
    refused(folder, "test.tsv:21: the video id '77' is not in corpus.jsonl (2 of 21 judgments are of unknown ids).")


def test_title_lends_to_text_and_text_to_title_but_one_of_them_must_be_there(tmp_path):
    videos = [{"_id": "v1", "text": "The rank."}, {"_id": "v2", "title": "", "text": "The span."}]
    collection = load_collection(write_folder(tmp_path, videos, QUERIES, all=QRELS))
    assert collection.field_texts("title") == collection.field_texts("text") == ["The rank.", "The span."]
    collection.check_fields(["title", "text"])
    assert collection.describe_fallbacks(["title", "text"]) == [
        "2 videos have no title; the description is used instead."
    ]
    assert collection.describe_fallbacks(["text"]) == []
    with pytest.raises(MissingField, match=r"field 'title': no video of .* has it.\nSet model.fields to some of text"):
        collection.check_fields(["title"])
    with pytest.raises(MissingField, match="field 'tags'"):
        collection.check_fields(["title", "text", "tags"])


def test_metadata_can_be_a_field(tmp_path):
    videos = [
        {"_id": "v1", "title": "Rank", "text": "x", "metadata": {"tags": ["rank", "kernel"], "level": 2}},
        {"_id": "v2", "title": "Span", "text": "y"},
    ]
    collection = load_collection(write_folder(tmp_path, videos, QUERIES[:1], all=QRELS[:1]))
    assert collection.field_texts("tags") == ["rank, kernel", "Span"]
    assert collection.field_texts("level") == ["2", "Span"]
    with pytest.raises(MissingField, match=r"field 'tag': .*\n.*title, text, level, tags"):
        collection.field_texts("tag")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("q1\tv9\t1", "the video id 'v9' is not in corpus.jsonl"),
        ("q9\tv1\t1", "the query id 'q9' is not in queries.jsonl"),
        ("q1 v2 1", "1 columns; three are needed, separated by tabs"),
        ("q1\t0\tv2\t1", "4 columns"),
        ("q1\tv1\t2", "judged already at all.tsv:2"),
    ],
)
def test_a_bad_judgment_is_named_by_file_and_line(folder, row, reason):
    with (folder / "qrels/all.tsv").open("a") as file:
        file.write(f"{row}\n")
    refused(folder, "all.tsv:4: ", reason)


def test_a_pair_judged_in_two_files_is_refused(folder):
    (folder / "qrels/dev.tsv").write_text("q1\tv1\t1\n")
    refused(folder, "dev.tsv:1: this pair was judged already at all.tsv:2")


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/all.tsv"])
def test_a_file_that_is_not_utf8_is_named_with_the_line(folder, name):
    good = (folder / name).read_bytes()
    (folder / name).write_bytes(good + "é".encode("latin-1") + b"\n")
    refused(folder, f"{name}:{len(good.splitlines()) + 1}: not UTF-8")


def test_utf16_is_refused(folder):
    (folder / "queries.jsonl").write_text((folder / "queries.jsonl").read_text(), encoding="utf-16")
    refused(folder, "queries.jsonl:1: not UTF-8")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("corpus.jsonl", "has no corpus.jsonl"),
        ("queries.jsonl", "has no queries.jsonl"),
        ("qrels/all.tsv", "has no judgments"),
    ],
)
def test_a_missing_file_is_named(folder, name, reason):
    (folder / name).unlink()
    refused(folder, reason)


@pytest.mark.parametrize(("name", "reason"), [("corpus.jsonl", "no video"), ("queries.jsonl", "no query")])
def test_an_empty_file_is_named(folder, name, reason):
    (folder / name).write_text("\n\n")
    refused(folder, name, reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("positive_grade: [", "not readable YAML"),
        ("positive_grade 2", "must hold keys and values"),
        ("positive-grade: 2", "known are name, positive_grade, languages, simulated"),
        ("- a\n- b", "must hold keys and values"),
        ("positive_grade: high", "positive_grade is high"),
        ("positive_grade: 0", "positive_grade is 0"),
        ("positive_grade: true", "positive_grade is true"),
        ("positive_grade: 3", "no judgment reaches positive_grade 3"),
        ("languages: en", "languages must be a list"),
        ("simulated: users", "simulated must be a list"),
    ],
)
def test_bad_settings_are_refused(folder, text, reason):
    (folder / "collection.yaml").write_text(text)
    refused(folder, reason)


def test_languages_outside_the_collections_own_are_slices(tmp_path):
    langs = ["en", "zh", None, "de", "zh"]
    queries = [{"_id": f"q{at}", "text": f"t{at}", "metadata": {"lang": lang}} for at, lang in enumerate(langs)]
    write_folder(tmp_path, VIDEOS, queries, all=["q0\tv1\t1"])
    assert load_collection(tmp_path).slice_rows() == {}
    (tmp_path / "collection.yaml").write_text("languages: [en]\n")
    slices = load_collection(tmp_path).slice_rows()
    assert {name: rows.tolist() for name, rows in slices.items()} == {"de": [3], "zh": [1, 4]}


def test_the_fingerprint_knows_content_and_not_the_order_of_lines(folder):
    before = load_collection(folder).fingerprint
    for name in ("corpus.jsonl", "queries.jsonl"):
        lines = (folder / name).read_text().splitlines()
        (folder / name).write_text("\n".join(reversed(lines)))
    (folder / "qrels/all.tsv").write_text("q2\tv2\t1\nq1\tv1\t1\n")
    assert load_collection(folder).fingerprint == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("corpus.jsonl", "The rank", "The Rank"),
        ("corpus.jsonl", '"title": "Span"', '"title": "Spans"'),
        ("queries.jsonl", "what is span", "what is a span"),
        ("queries.jsonl", '"_id": "q3"', '"_id": "q4"'),
        ("qrels/all.tsv", "q2\tv2\t1", "q2\tv2\t2"),
        ("qrels/all.tsv", "q2\tv2\t1", "q2\tv1\t1"),
        ("collection.yaml", "positive_grade: 1", "positive_grade: 0.5"),
    ],
)
def test_the_fingerprint_changes_with_every_text_id_and_judgment(folder, name, old, new):
    with (folder / "queries.jsonl").open("a") as file:
        file.write('{"_id": "q3", "text": "not judged"}\n')
    (folder / "collection.yaml").write_text("positive_grade: 1\n")
    before = load_collection(folder).fingerprint
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    assert load_collection(folder).fingerprint != before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("corpus.jsonl", '{"_id": "v1", "title": "Rank", "metadata": {"tags": ["b", "a"], "level": 1}}'),
        ("queries.jsonl", '{"_id": "q1", "text": "what is rank", "metadata": {"user_id": "u2", "timestamp": 3}}'),
        ("queries.jsonl", '{"_id": "q1", "text": "what is rank", "metadata": {"user_id": "u1", "timestamp": 4}}'),
        ("interactions.csv", "user_id,item_id,timestamp\nu1,v1,2\n"),
        ("collection.yaml", "languages: [en]"),
        ("collection.yaml", "simulated: [interactions]"),
        ("qrels/test.tsv", "q1\tv1\t1"),  # in place of qrels/all.tsv: other sides
    ],
)
def test_the_fingerprint_knows_all_that_a_job_reads_and_the_content_what_a_split_stands_on(tmp_path, name, text):
    videos = [{"_id": "v1", "title": "Rank", "metadata": {"level": 1, "tags": ["a", "b"]}}]
    queries = [{"_id": "q1", "text": "what is rank", "metadata": {"user_id": "u1", "timestamp": 3}}]
    before = load_collection(write_folder(tmp_path, videos, queries, all=["q1\tv1\t1"]))
    (tmp_path / "corpus.jsonl").write_text(
        '{"metadata": {"tags": ["a", "b"], "level": 1}, "title": "Rank", "_id": "v1"}\n'
    )
    assert load_collection(tmp_path).fingerprint == before.fingerprint  # the order of keys does not matter
    if name == "qrels/test.tsv":
        (tmp_path / "qrels/all.tsv").unlink()
    (tmp_path / name).write_text(f"{text}\n")
    after = load_collection(tmp_path)
    assert after.fingerprint != before.fingerprint
    assert after.content_hash == before.content_hash


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is  RANK?", "what is rank"),
        ("ﬁnd the kernel", "find the kernel"),
        ("Straße", "STRASSE"),
        ("A-B", "a b"),
        ("什么是秩\uff1f", "什么是秩"),
    ],
)
def test_texts_that_read_the_same_are_normalised_to_the_same(one, other):
    assert normalise_text(one) == normalise_text(other)


@pytest.mark.parametrize(("one", "other"), [("???", "!!!"), ("a = b", "a + b"), ("rank", "ranks")])
def test_other_texts_stay_apart(one, other):
    assert normalise_text(one) != normalise_text(other)


@given(st.text())
def test_normalising_is_done_after_once(text):
    once = normalise_text(text)
    assert normalise_text(once) == once
    assert once or not text.strip()


def test_real_collections_load(real):
    assert len(real.positives) > 100
    assert len(real.fingerprint) == 16


def test_videos_without_a_description_are_twins_by_their_title(tmp_path):
    videos = [
        {"_id": name, "title": title, "text": text}
        for name, title, text in (
            ("a", "Rank", ""),
            ("b", "rank!", ""),
            ("c", "Rank", "of a matrix"),
            ("d", "Span", "Of a Matrix"),
            ("e", "Trace", ""),
        )
    ]
    write_folder(tmp_path, videos, [{"_id": "q", "text": "what"}], qrels=["q\ta\t1"])
    assert load_collection(tmp_path).duplicates == {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]}


@given(st.text())
def test_punctuation_is_what_unicode_calls_so(text):
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(" " if unicodedata.category(char).startswith("P") else char for char in folded)
    assert normalise_text(text) == (" ".join(kept.split()) or " ".join(folded.split()))
