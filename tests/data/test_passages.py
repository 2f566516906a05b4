"""Passages: nothing is lost, starts rise, lengths and overlaps keep their limits."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcdt.data.passages import count_words, cut_passages, make_passages
from dcdt.data.transcripts import Segment

CHARACTERS = st.sampled_from("ab cd. e? 矩阵。é \"'(!")


@st.composite
def transcripts(draw):
    texts = draw(st.lists(st.text(CHARACTERS, min_size=1, max_size=40), min_size=1, max_size=30))
    texts = [" ".join(text.split()) for text in texts if text.strip()] or ["word"]
    n, times = len(texts), st.floats(0, 1e4)
    starts, lengths = (
        sorted(draw(st.lists(times, min_size=n, max_size=n))),
        draw(st.lists(times, min_size=n, max_size=n)),
    )
    known = draw(st.booleans())  # and they overlap, as automatic captions do
    columns = zip(starts, lengths, texts, strict=True)
    return [Segment(start, start + length if known else None, text) for start, length, text in columns]


def characters(text):
    return "".join(text.split())


@given(transcripts(), st.integers(2, 12))
def test_nothing_is_lost_and_limits_are_kept(segments, half):
    passages = cut_passages(segments, 2 * half, half)
    whole = characters("".join(segment.text for segment in segments))
    places = {(0, 0)}  # where a passage may begin and end: signs that repeat leave several
    for _, spoken in passages:
        text = characters(spoken)
        begins = {at for begin, end in places for at in range(begin, end + 1) if whole.startswith(text, at)}
        covered = min(end for _, end in places)
        places = {(at, at + len(text)) for at in begins if at + len(text) > covered}  # no gap, and it goes on
        assert count_words(spoken) <= 2 * half
    assert any(end == len(whole) for _, end in places)
    starts = [start for start, _ in passages]
    assert starts == sorted(starts) and starts[0] == segments[0].start


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.integers(9, 20))
def test_passages_without_sentences_are_cut_at_segments_and_overlap(sizes, half):
    segments = [
        Segment(float(at), None, " ".join(f"s{at}w{word}" for word in range(size))) for at, size in enumerate(sizes)
    ]
    passages = cut_passages(segments, 2 * half, half)
    words = [text.split() for _, text in passages]
    starts = {segment.text.split()[0]: segment.start for segment in segments}
    ends = {segment.text.split()[-1] for segment in segments}
    for (start, _), own in zip(passages, words, strict=True):
        assert starts[own[0]] == start and own[-1] in ends
    for one, other in pairwise(words):
        shared = len(set(one) & set(other))
        assert half - 9 <= shared <= half
        assert len(one) > 2 * half - 9


def test_passages_end_and_begin_at_sentences():
    sentences = [" ".join([f"word{at}"] * 13 + ["end."]) for at in range(40)]
    text = " ".join(sentences)
    pieces = text.split()
    segments = [Segment(at / 10, at / 10 + 0.5, " ".join(pieces[at : at + 5])) for at in range(0, len(pieces), 5)]
    passages = cut_passages(segments)
    for start, text in passages:
        assert text.endswith("end.") and text.split()[13] == "end."
        assert start == pytest.approx(pieces.index(text.split()[0]) / 10, abs=0.5)


def test_quotes_behind_a_sentence_stay_and_chinese_is_cut_without_spaces():
    assert cut_passages([Segment(None, None, 'She said "so." Then no.')]) == [(None, 'She said "so." Then no.')]
    passages = cut_passages([Segment(0.0, 10.0, "矩阵的秩是多少" * 200)])
    assert max(count_words(text) for _, text in passages) <= 120
    assert passages[-1][0] > 5


def test_a_video_without_a_transcript_has_its_fallback_as_one_passage():
    passages = make_passages([[Segment(3.0, 5.0, "word " * 200)], []], ["", "Title"])
    assert passages.texts[-1] == "Title" and np.isnan(passages.starts[-1])
    assert passages.offsets.tolist() == [0, len(passages.texts) - 1, len(passages.texts)]


def test_times_within_a_segment_are_in_proportion():
    passages = cut_passages([Segment(100.0, 200.0, "word " * 240)])
    assert passages[0][0] == 100
    assert passages[1][0] == pytest.approx(125, abs=2)
