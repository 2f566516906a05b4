"""BM25 against the libraries that define the variants, also after videos came and went."""

import bm25s
import numpy as np
import pytest
import rank_bm25
from hypothesis import given
from hypothesis import strategies as st
from support import slow_but, slow_rows_but

from baselines.config import BM25_VARIANTS
from dcdt.data.bm25 import BM25Index, Postings
from dcdt.serving.scorers.bm25 import BM25Scores

RANK_BM25 = {"okapi": rank_bm25.BM25Okapi, "l": rank_bm25.BM25L, "plus": rank_bm25.BM25Plus}
BM25S = {"okapi": "robertson", "l": "bm25l", "plus": "bm25+", "lucene": "lucene", "atire": "atire"}
CASES = [(backend, variant) for backend, variants in BM25_VARIANTS.items() for variant in variants]
WORDS = ["span", "rank", "basis", "pivot", "kernel", "image"]
documents = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=7), min_size=2, max_size=9)


def library_scores(backend, variant, docs, question):
    """Scores (N,) of the library that defines a variant; 0 for a query of which it knows no word."""
    known = [word for word in question if any(word in doc for doc in docs)]
    if not known:
        return np.zeros(len(docs))
    if backend == "rank_bm25":
        return RANK_BM25[variant](docs, k1=1.2, b=0.6).get_scores(known)
    delta = {"delta": 1.0} if variant == "plus" else {}  # as in rank_bm25; bm25s takes 0.5 for every variant
    index = bm25s.BM25(method=BM25S[variant], k1=1.2, b=0.6, **delta)
    index.index(docs, show_progress=False)
    return index.get_scores(known)


def index_of(backend, variant, segments, present=None, dtype=np.float64):
    postings = [Postings.of(words) for words in segments]
    return BM25Index(
        backend, variant, 1.2, 0.6, None, postings, present if present is None else np.array(present), dtype
    )


@pytest.mark.parametrize("variant", RANK_BM25)
@given(docs=documents, question=st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=5))
def test_scores_are_those_of_rank_bm25_to_the_bit(variant, docs, question):
    found = index_of("rank_bm25", variant, [docs]).score(question)
    assert found.tolist() == library_scores("rank_bm25", variant, docs, question).tolist()


@pytest.mark.parametrize(("backend", "variant"), slow_rows_but([CASES[0], ("bm25s", "l")], CASES))
@given(docs=documents, question=st.lists(st.sampled_from([*WORDS, "unknown"]), min_size=1, max_size=4))
def test_scores_are_those_of_the_library(backend, variant, docs, question):
    found = index_of(backend, variant, [docs], [True] * len(docs)).score(question)
    np.testing.assert_allclose(found, library_scores(backend, variant, docs, question), atol=2e-5)


@pytest.mark.parametrize(("backend", "variant"), CASES)
def test_changes_give_the_scores_of_an_index_that_is_built_anew(backend, variant):
    rng = np.random.default_rng(0)
    docs = [list(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(30)]
    present = rng.random(30) < 0.7
    kept = [doc for doc, here in zip(docs, present, strict=True) if here]
    found = index_of(backend, variant, [docs[:20], docs[20:]], present).score(["rank", "span", "span"])[present]
    np.testing.assert_allclose(found, library_scores(backend, variant, kept, ["rank", "span", "span"]), atol=2e-5)


@pytest.mark.parametrize("dtype", slow_but([np.float32], [np.float32, np.float64]))
@pytest.mark.parametrize(("backend", "variant"), slow_rows_but([("rank_bm25", "plus"), ("bm25s", "l")], CASES))
@given(docs=documents, question=st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=4), data=st.data())
def test_the_mean_is_that_of_the_scores_of_what_is_there(backend, variant, dtype, docs, question, data):
    present = np.array(data.draw(st.lists(st.booleans(), min_size=len(docs), max_size=len(docs))))
    present[0] = True
    index = index_of(backend, variant, [docs], present, dtype)
    scores = index.score(question)
    assert scores.dtype == dtype
    np.testing.assert_allclose(index.mean(question), scores[present].mean(dtype=np.float64), atol=2e-6)
    exact = index_of(backend, variant, [docs], present).score(question)
    np.testing.assert_allclose(scores[present], exact[present], rtol=1e-5, atol=2e-6)


class Catalogue:
    """As much of a view as a deviation reads."""

    def __init__(self, present):
        self.present = present

    def __len__(self):
        return int(self.present.sum())


@pytest.mark.parametrize("dead", slow_but([0.01], [0.0, 0.01]))
@pytest.mark.parametrize("case", slow_but([("rank_bm25", "plus"), ("bm25s", "l")], CASES))
def test_the_deviation_over_many_videos_is_that_of_the_scores(case, dead):
    backend, variant = case
    rng = np.random.default_rng(0)
    docs = [["other"] * int(length) for length in rng.integers(1, 30, 60_000)]
    for word, held in (("span", 2), ("rank", 20), ("basis", 400)):
        for at in rng.choice(len(docs), held, replace=False):
            docs[at].append(word)
    present = rng.random(len(docs)) >= dead
    question = ["span", "rank", "basis"]
    index = index_of(backend, variant, [docs], present, np.float32)
    mean, deviation = BM25Scores(Catalogue(present), index, question, None).mean_and_deviation()
    exact = index_of(backend, variant, [docs], present).score(question)[present]
    np.testing.assert_allclose([mean, deviation], [exact.mean(), exact.std()], rtol=1e-3)


def test_what_single_words_add_makes_up_the_score():
    docs = [["span", "rank"], ["rank"], ["pivot"]]
    index = index_of("rank_bm25", "plus", [docs], [True] * 3)
    total = np.zeros(3)
    for word in ("rank", "pivot"):
        rows, gains, away, _ = index.contribution(word)
        total += away
        total[rows] += gains - away
    np.testing.assert_allclose(total, index.score(["rank", "pivot"]))
    assert index.holds("span") and not index.holds("kernel")


def test_words_that_nobody_wrote_do_not_fill_the_memory():
    index = index_of("rank_bm25", "okapi", [[["span", "rank"], ["rank"]]], [True] * 2)
    for at in range(5000):
        index.score([f"word{at}", "rank"])
    assert len(index._cache) < 1500
