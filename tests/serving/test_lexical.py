"""BM25 of the service against the libraries that define the variants, also after videos came and went."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from baselines.bm25 import BM25
from baselines.config import BM25_VARIANTS, BM25Config
from dcdt.data.tables import Tables
from dcdt.models.recommender import QueryBatch
from dcdt.serving.lexical import Lexical, Postings
from dcdt.serving.scoring import AskedLexical

CASES = [(backend, variant) for backend, variants in BM25_VARIANTS.items() for variant in variants]
WORDS = ["span", "rank", "basis", "pivot", "kernel", "image"]
documents = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=7), min_size=2, max_size=9)


def model_scores(backend, variant, docs, question):
    config = BM25Config("bm25", ["title"], backend, variant, 1.2, 0.6, None, False, False)
    model = BM25(config, Tables(torch.zeros(1, 2), torch.zeros(1, len(docs), 2), torch.ones(len(docs), 2), ["title"]))
    model._index(docs)
    batch = QueryBatch(torch.zeros(1, 2), [" ".join(question)], [None], [None])
    return model.score(batch)[0].numpy()


def lexical(backend, variant, parts, alive, dtype=np.float64):
    config = {"backend": backend, "variant": variant, "k1": 1.2, "b": 0.6, "delta": None}
    postings = [Postings.of(pa.array(part, pa.list_(pa.string()))) for part in parts]
    return Lexical(config, postings, np.array(alive), dtype)


@pytest.mark.parametrize(("backend", "variant"), CASES)
@given(docs=documents, question=st.lists(st.sampled_from([*WORDS, "unknown"]), min_size=1, max_size=4))
def test_scores_are_those_of_the_library(backend, variant, docs, question):
    found = lexical(backend, variant, [docs], [True] * len(docs)).score(question)
    np.testing.assert_allclose(found, model_scores(backend, variant, docs, question), atol=2e-5)


@pytest.mark.parametrize(("backend", "variant"), CASES)
def test_changes_give_the_scores_of_an_index_that_is_built_anew(backend, variant):
    rng = np.random.default_rng(0)
    docs = [list(rng.choice(WORDS, rng.integers(1, 8))) for _ in range(30)]
    alive = rng.random(30) < 0.7
    kept = [doc for doc, here in zip(docs, alive, strict=True) if here]
    found = lexical(backend, variant, [docs[:20], docs[20:]], alive).score(["rank", "span", "span"])[alive]
    np.testing.assert_allclose(found, model_scores(backend, variant, kept, ["rank", "span", "span"]), atol=2e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("backend", "variant"), CASES)
@given(docs=documents, question=st.lists(st.sampled_from([*WORDS, "unknown"]), max_size=4), data=st.data())
def test_the_mean_is_that_of_the_scores_of_what_is_there(backend, variant, dtype, docs, question, data):
    alive = np.array(data.draw(st.lists(st.booleans(), min_size=len(docs), max_size=len(docs))))
    alive[0] = True
    index = lexical(backend, variant, [docs], alive, dtype)
    scores = index.score(question)
    assert scores.dtype == dtype
    np.testing.assert_allclose(index.mean(question), scores[alive].mean(dtype=np.float64), atol=2e-6)
    exact = lexical(backend, variant, [docs], alive).score(question)
    np.testing.assert_allclose(scores[alive], exact[alive], rtol=1e-5, atol=2e-6)


class Catalogue:
    """As much of a view as a deviation reads."""

    def __init__(self, alive):
        self.alive = alive

    def __len__(self):
        return int(self.alive.sum())


@pytest.mark.parametrize("dead", [0.0, 0.01])
@pytest.mark.parametrize(("backend", "variant"), CASES)
def test_the_deviation_over_many_videos_is_that_of_the_scores(backend, variant, dead):
    rng = np.random.default_rng(0)
    docs = [["other"] * int(length) for length in rng.integers(1, 30, 60_000)]
    for word, held in (("span", 2), ("rank", 20), ("basis", 400)):
        for at in rng.choice(len(docs), held, replace=False):
            docs[at].append(word)
    alive = rng.random(len(docs)) >= dead
    question = ["span", "rank", "basis"]
    index = lexical(backend, variant, [docs], alive, np.float32)
    mean, deviation = AskedLexical(Catalogue(alive), index, question).spread()
    exact = lexical(backend, variant, [docs], alive).score(question)[alive]
    np.testing.assert_allclose([mean, deviation], [exact.mean(), exact.std()], rtol=1e-3)


def test_what_single_words_add_makes_up_the_score():
    docs = [["span", "rank"], ["rank"], ["pivot"]]
    index = lexical("rank_bm25", "plus", [docs], [True] * 3)
    total = np.zeros(3)
    for word in ("rank", "pivot"):
        rows, gains, away, _ = index.contribution(word)
        total += away
        total[rows] += gains - away
    np.testing.assert_allclose(total, index.score(["rank", "pivot"]))
    assert index.known("span") and not index.known("kernel")


def test_words_that_nobody_wrote_do_not_fill_the_memory():
    index = lexical("rank_bm25", "okapi", [[["span", "rank"], ["rank"]]], [True] * 2)
    for at in range(5000):
        index.score([f"word{at}", "rank"])
    assert len(index._known) < 1500
