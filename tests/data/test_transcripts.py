"""Transcripts, captions and moments: what is odd is counted, what is broken is named by file and line."""

import json
from collections import Counter

import pytest

from dcdt.data.captions import read_caption_file, read_captions
from dcdt.data.transcripts import Segment, read_moments, read_transcripts
from dcdt.utils.errors import UserError

ROWS = {"a": 0, "b": 1, "c": 2}


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def transcripts(tmp_path, *records):
    return written(tmp_path, "transcripts.jsonl", "\n".join(map(json.dumps, records)))


def test_texts_and_segments_are_read_and_odd_ones_counted(tmp_path):
    odd = [{"start": 5, "end": 4, "text": "later"}, {"start": 1, "text": " first\nwords "}, {"start": 2, "text": " "}]
    path = transcripts(
        tmp_path, {"_id": "b", "text": "all of it"}, {"_id": "a", "segments": odd}, {"_id": "z", "text": "?"}
    )
    result = read_transcripts(path, ROWS)
    assert result.segments == [
        [Segment(1.0, None, "first words"), Segment(5.0, None, "later")],
        [Segment(None, None, "all of it")],
        [],
    ]
    assert result.texts == ["first words later", "all of it", ""]
    for part in ("1 with an end before its start", "1 out of order, sorted", "1 of unknown videos, left out"):
        assert part in result.note
    assert len(result.note.splitlines()) == 1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "no id"}, "'_id' is 'None'"),
        ({"_id": "a"}, "'text' is 'None'; give a text, or segments"),
        ({"_id": "a", "text": 3}, "'text' is '3'"),
        ({"_id": "a", "segments": "x"}, "'segments' must be a list"),
        ({"_id": "a", "segments": [{"start": "1:00", "text": "x"}]}, "'start' is '1:00'; it must be a number of sec"),
        ({"_id": "a", "segments": [{"start": -1, "text": "x"}]}, "'start' is '-1'"),
        ({"_id": "b", "text": "x"}, "'b' has a text already, at line 1"),
    ],
)
def test_broken_transcripts_are_named_by_file_and_line(tmp_path, record, message):
    path = transcripts(tmp_path, {"_id": "b", "text": "fine"}, record)
    with pytest.raises(UserError, match=rf"transcripts.jsonl:2: .*{message}"):
        read_transcripts(path, ROWS)


ROLLING = """WEBVTT
Kind: captions

00:00:00.000 --> 00:00:02.000 align:start position:0%
 
so<00:00:00.500><c> the</c><00:00:01.000><c> rank</c>

00:00:02.000 --> 00:00:02.010
so the rank
 
00:00:02.010 --> 00:00:04.000
so the rank
of &amp; a<c> matrix</c>

00:00:04.000 --> 00:00:06.000
of &amp; a matrix
x < 3 and y > 2 --> done
"""  # noqa: W293 - as such files have it


def segments(path):
    odd = Counter()
    return [(one["start"], one["end"], one["text"]) for one in read_caption_file(path, odd)], odd


@pytest.mark.parametrize(
    "change", [lambda text: text, lambda text: text.replace("\n", "\r\n"), lambda text: "\ufeff" + text]
)
def test_rolling_captions_are_read_once_without_tags(tmp_path, change):
    found, odd = segments(written(tmp_path, "a.vtt", change(ROLLING)))
    assert found == [
        (0.0, 2.0, "so the rank"),
        (2.01, 4.0, "of & a matrix"),
        (4.0, 6.0, "x < 3 and y > 2 → done"),
    ]
    assert odd["repeated lines, left out"] == 3


def test_srt_without_ends(tmp_path):
    text = "1\n00:00:01,000 -->\n<i>one two three</i>\n\n2\n00:00:02,500 --> 00:00:03,500\ntwo four\n"
    found, odd = segments(written(tmp_path, "a.srt", text))
    assert found == [(1.0, None, "one two three"), (2.5, 3.5, "two four")]
    assert odd["captions without an end"] == 1


def test_json3_of_youtube(tmp_path):
    events = [
        {"tStartMs": 0, "dDurationMs": 9000, "id": 1},
        {"tStartMs": 120, "dDurationMs": 2000, "segs": [{"utf8": "so"}, {"utf8": " the", "tOffsetMs": 200}]},
        {"tStartMs": 1000, "aAppend": 1, "segs": [{"utf8": "\n"}]},
        {"tStartMs": 2120, "segs": [{"utf8": "rank"}]},
    ]
    found, _ = segments(written(tmp_path, "a.json3", json.dumps({"events": events})))
    assert found == [(0.12, 2.12, "so the"), (2.12, None, "rank")]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.vtt", "no captions at all", r"a.vtt:1: not a caption file .* begin with WEBVTT"),
        ("a.srt", "words", r"a.srt:1: not a caption file .* begin with 1"),
        ("a.vtt", "WEBVTT\n\n00:xx:01.000 --> 00:00:02.000\nx", None),
        ("a.vtt", "WEBVTT\n\n00:00:1,00,0 --> 00:00:02.000\nx", r"a.vtt:3: the times .* cannot be read"),
        ("a.vtt", "WEBVTT\n\n00:00:01.000 --> 00:99\nx", r"a.vtt:3: the times .* cannot be read"),
        ("a.vtt", b"WEBVTT\n\n00:00:01.000 --> 00:00:02.000\n\xff\xfe", r"a.vtt:4: not UTF-8"),
        ("a.json3", "{", r"a.json3: not YouTube's json3"),
        ("a.json3", '{"events": [{"segs": [{"utf8": "x"}]}]}', r"a.json3: not YouTube's json3 \(KeyError"),
        ("a.json3", '{"events": [{"tStartMs": NaN, "segs": [{"utf8": "x"}]}]}', r"it starts at nan"),
    ],
)
def test_broken_captions_are_named(tmp_path, name, text, message):
    path = written(tmp_path, name, text)
    if message is None:  # read as words, since nothing looks like times
        assert segments(path)[0] == []
        return
    with pytest.raises(UserError, match=message):
        segments(path)


def test_a_folder_of_captions_is_matched_by_id(tmp_path):
    for name in ("a.vtt", "a.en.vtt", "b.en-US.vtt", "other.vtt", "c.txt"):
        written(tmp_path, name, ROLLING)
    records, note = read_captions(tmp_path, ROWS.keys())
    assert sorted(records) == ["a", "b"] and len(records["b"]["segments"]) == 3
    for part in ("1 files named by no video's id", "1 further files of a video", "1 videos without captions"):
        assert part in note
    with pytest.raises(UserError, match="none of its 4 caption files is named by a video's id"):
        read_captions(tmp_path, ["elsewhere"])
    with pytest.raises(UserError, match="is no folder"):
        read_captions(tmp_path / "none", ROWS.keys())


def test_moments_are_read_and_checked(tmp_path):
    path = written(tmp_path, "moments.tsv", "query-id\tcorpus-id\tseconds\nq\tb\t75.5\r\nr\ta\t0\n")
    assert read_moments(path, {"q": 0, "r": 1}, ROWS) == [(0, 1, 75.5), (1, 0, 0.0)]
    for line, message in (
        ("q\tb", "2 columns"),
        ("x\tb\t3", "there is no query 'x'"),
        ("q\tx\t3", "there is no video 'x'"),
        ("q\ta\t-3", "'-3' is no number of seconds"),
        ("q\ta\t1:15", "'1:15' is no number of seconds"),
        ("q\tb\t3", "this query and video have a moment already"),
    ):
        path.write_text(f"q\tb\t1\n{line}\n")
        with pytest.raises(UserError, match=f"moments.tsv:2: {message}"):
            read_moments(path, {"q": 0, "r": 1}, ROWS)
