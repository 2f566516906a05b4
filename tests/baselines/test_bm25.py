import io
import logging
import math
import sys
from types import SimpleNamespace

import pytest
import rank_bm25
import torch
from support import make_collection

from baselines.bm25 import BM25, video_texts
from baselines.config import BM25Config
from dcdt.config import validate
from dcdt.data.beir import load_collection
from dcdt.data.formulas import check_parser
from dcdt.data.tables import Tables
from dcdt.data.tokens import tokenizer
from dcdt.data.types import Collection, Documents, Judgments
from dcdt.models.query_batch import QueryBatch
from dcdt.utils.errors import NotApplicable, UserError

DOCUMENTS = ["rank rank basis", "basis of a kernel", "image", "shear shear shear plane trace norm angle"]
QUERIES = ["rank of a basis", "shear basis basis", "nothing known", "?!"]


def collection_of(texts, titles=None):
    n = len(texts)
    titles = titles or [""] * n
    videos = Documents([f"v{at}" for at in range(n)], titles, texts, [{} for _ in texts])
    empty = Judgments(*(torch.zeros(0).numpy() for _ in range(3)))
    return Collection(None, "made", videos, videos, empty, {})


def make_model(texts=DOCUMENTS, prepared=True, titles=None, fields=("text",), **changes):
    values = dict(backend="rank_bm25", variant="okapi", k1=1.5, b=0.75, delta=None, stem=False, stop_words=False)
    tables = Tables(torch.zeros(1, 2), torch.zeros(1, len(texts), 2), torch.zeros(len(texts), 2), ["text"])
    model = BM25(BM25Config("bm25", list(fields), **{**values, **changes}), tables)
    if prepared:
        model.prepare(SimpleNamespace(collection=collection_of(texts, titles)))
    return model


def scores_of(model, queries=QUERIES):
    return model.score(QueryBatch(torch.zeros(len(queries), 2), queries, [None] * len(queries), [None] * len(queries)))


def by_hand(variant, query, document, documents, k1, b, delta):
    """The formulas of Trotman, Puurula and Burgess (2014), as rank-bm25 defines its three classes."""
    words = [text.split() for text in documents]
    n, mean = len(words), sum(map(len, words)) / len(words)
    frequency = {word: sum(word in other for other in words) for part in words for word in part}
    okapi = {word: math.log((n - f + 0.5) / (f + 0.5)) for word, f in frequency.items()}
    floor = 0.25 * sum(okapi.values()) / len(okapi)
    total = 0.0
    for word in query.split():
        if word not in frequency:
            continue
        f, length = words[document].count(word), 1 - b + b * len(words[document]) / mean
        if variant == "okapi":
            weight = okapi[word] if okapi[word] >= 0 else floor
            total += weight * f * (k1 + 1) / (f + k1 * length)
        elif variant == "l":
            weight = math.log((n + 1) / (frequency[word] + 0.5))
            total += weight * f * (k1 + 1) * (f / length + delta) / (k1 + f / length + delta)
        else:
            weight = math.log((n + 1) / frequency[word])
            total += weight * (delta + f * (k1 + 1) / (f + k1 * length))
    return total


@pytest.mark.parametrize("variant", ["okapi", "l", "plus"])
@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.8, 0.0), (2.0, 1.0)])
@pytest.mark.parametrize("delta", [None, 0.3])
def test_scores_are_those_of_the_formula(variant, k1, b, delta):
    found = scores_of(make_model(variant=variant, k1=k1, b=b, delta=delta))
    used = delta if delta is not None else {"okapi": 0, "l": 0.5, "plus": 1}[variant]
    expected = [[by_hand(variant, query, at, DOCUMENTS, k1, b, used) for at in range(4)] for query in QUERIES]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert found[0].max() > 0


def test_a_frequent_word_keeps_a_small_positive_weight_in_okapi():
    texts = ["basis rank", "basis image", "basis kernel", "norm"]
    assert math.log((4 - 3 + 0.5) / (3 + 0.5)) < 0
    assert scores_of(make_model(texts), ["basis"])[0, 0] > 0


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return load_collection(make_collection(tmp_path_factory.mktemp("bm25"), n_videos=60, n_queries=40))


def prepared_on(collection, **changes):
    model = make_model(collection.videos.texts, prepared=False, fields=["title", "text"], **changes)
    model.prepare(SimpleNamespace(collection=collection))
    return model


@pytest.mark.parametrize(
    ("variant", "original"), [("okapi", rank_bm25.BM25Okapi), ("l", rank_bm25.BM25L), ("plus", rank_bm25.BM25Plus)]
)
def test_scores_are_those_of_rank_bm25(small, variant, original):
    split = tokenizer()
    texts = [f"{title} {text}" for title, text in zip(small.videos.titles, small.videos.texts, strict=True)]
    index = original([split(text) for text in texts], k1=1.2, b=0.4)
    expected = [torch.from_numpy(index.get_scores(split(text))) for text in small.queries.texts]
    found = scores_of(prepared_on(small, variant=variant, k1=1.2, b=0.4), small.queries.texts)
    torch.testing.assert_close(found, torch.stack(expected).float())


@pytest.mark.parametrize("delta", [None, 0.4])
@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.8, 0.4)])
def test_bm25s_agrees_on_plus(small, k1, b, delta):
    one, other = (
        scores_of(prepared_on(small, backend=name, variant="plus", k1=k1, b=b, delta=delta), small.queries.texts)
        for name in ("rank_bm25", "bm25s")
    )
    torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


@pytest.mark.parametrize("variant", ["okapi", "l", "plus", "lucene", "atire"])
def test_bm25s_knows_every_variant_and_prints_nothing(small, variant, caplog, capsys):
    with caplog.at_level(logging.DEBUG):
        scores = scores_of(prepared_on(small, backend="bm25s", variant=variant), [*small.queries.texts, "??", "zzz"])
    assert scores[:-2].max() > 0 and not scores[-2:].any()
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("backend", ["rank_bm25", "bm25s"])
@pytest.mark.parametrize("variant", ["okapi", "l", "plus"])
def test_a_query_without_a_known_word_scores_nothing_and_a_video_without_words_is_no_error(backend, variant):
    model = make_model([*DOCUMENTS, "?!", "the of"], backend=backend, variant=variant, stop_words=True, b=1.0)
    scores = scores_of(model, [*QUERIES, "what is the of"])
    assert scores.isfinite().all()
    assert not scores[2:].any()
    assert scores.dtype == torch.float32 and scores.shape == (5, 6)


def test_no_word_at_all_is_not_applicable():
    with pytest.raises(NotApplicable, match="no video has a word"):
        make_model(["?!", "..."])


def test_one_tokenizer_for_both_sides():
    model = make_model(["Die GRÖSSE", "特征值与特征向量", "Eigen-value"])
    assert [row.tolist().index(row.max()) for row in scores_of(model, ["grösse", "什么是特征向量", "EIGEN"])] == [
        0,
        1,
        2,
    ]


def test_stems_and_stop_words():
    assert tokenizer()("The ranks of matrices") == ["the", "ranks", "of", "matrices"]
    assert tokenizer(stop_words=True)("The ranks of matrices") == ["ranks", "matrices"]
    assert tokenizer(stem=True)("The ranks of matrices") == ["the", "rank", "of", "matric"]
    assert tokenizer(stem=True, stop_words=True)("The ranking 特征向量") == ["rank", "特征", "征向", "向量"]
    plain, stemmed = (make_model(["two ranks", "image"], variant="plus", stem=stem) for stem in (False, True))
    assert not scores_of(plain, ["ranking"]).any()
    assert scores_of(stemmed, ["ranking"])[0, 0] > 0


@pytest.mark.parametrize(
    ("package", "changes", "extra"),
    [
        ("snowballstemmer", {"stem": True}, r"dcdt\[stem\]"),
        ("pylatexenc.latexencode", {"formulas": True}, r"dcdt\[formulas\]"),
    ],
)
def test_a_missing_package_names_its_extra(monkeypatch, package, changes, extra):
    check_parser.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=extra):
        make_model(**changes)


def test_a_text_that_stands_in_for_a_missing_field_counts_once():
    collection = collection_of(["rank basis", "image"], titles=["", "Norm"])
    assert video_texts(collection, ["title", "text"]) == ["rank basis", "Norm image"]
    assert video_texts(collection, ["text"]) == ["rank basis", "image"]
    model = make_model(["rank basis", "image"], titles=["", "Norm"], fields=["title", "text"], variant="plus")
    assert scores_of(model, ["norm"])[0].argmax() == 1


@pytest.mark.parametrize("changes", [{}, {"backend": "bm25s", "variant": "plus"}, {"stem": True, "stop_words": True}])
def test_a_saved_model_scores_the_same(changes):
    model, other = make_model([*DOCUMENTS, "?"], **changes), make_model([*DOCUMENTS, "?"], prepared=False, **changes)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(scores_of(other), scores_of(model))
    assert scores_of(model)[0].max() > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"backend": "lucene"}, "model.backend is 'lucene'"),
        ({"variant": "lucene"}, "model.variant is 'lucene'; choose one of okapi, l, plus, which backend=rank_bm25 has"),
        ({"k1": 0.0}, "model.k1 is 0.0; it must be above 0"),
        ({"b": 1.1}, "model.b is 1.1"),
        ({"delta": -0.1}, "model.delta is -0.1"),
    ],
)
def test_values_out_of_range_are_named(changes, said):
    with pytest.raises(UserError, match=said):
        validate(BM25Config, {**vars(make_model(prepared=False).config), **changes}, "model")


@pytest.mark.parametrize("backend", ["rank_bm25", "bm25s"])
@pytest.mark.parametrize("fields", [["transcript"], ["title", "transcript"]])
def test_the_best_passage_scores_a_video(tmp_path, backend, fields):
    collection = load_collection(make_collection(tmp_path / "c", n_videos=8, spoken=6))
    config = BM25Config("bm25", fields, backend, "plus", 1.5, 0.75, None, False, False, False, "max")
    n = len(collection.videos)
    model = BM25(config, Tables(torch.zeros(1, 2), torch.zeros(1, n, 2), torch.zeros(n, 2), ["text"]))
    model.prepare(SimpleNamespace(collection=collection))
    documents, owners = [], []
    for video in range(n):
        for row in range(*collection.passages.offsets[video : video + 2]):
            title = collection.videos.titles[video]
            spoken = collection.passages.texts[row]
            both = f"{title} {spoken}" if "title" in fields and spoken != title else spoken
            documents.append(tokenizer()(both))
            owners.append(video)
    assert len(documents) > 2 * n
    reference, queries = rank_bm25.BM25Plus(documents), ["rank of a basis", "shear s3", "nothing"]
    scores = scores_of(model, queries)
    for row, query in enumerate(queries):
        words = [word for word in tokenizer()(query) if any(word in document for document in documents)]
        by_document = reference.get_scores(words) if words else [0.0] * len(documents)
        for video in range(n):
            own = [score for score, owner in zip(by_document, owners, strict=True) if owner == video]
            assert scores[row, video] == pytest.approx(max(own), rel=1e-5)
            one = QueryBatch(torch.zeros(1, 2), [query], [None], [None])
            assert model.passage_scores(one, video)[0].tolist() == pytest.approx(own, rel=1e-5)
    restored = BM25(config, model.tables)
    restored.load_state_dict(model.state_dict())
    assert torch.equal(scores_of(restored, queries), scores)
