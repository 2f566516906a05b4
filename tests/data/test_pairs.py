from collections import Counter
from contextlib import suppress
from shutil import copytree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rank_bm25 import BM25Plus
from support import make_collection, prepare, related_sets

from dcdt.data.beir import load_collection
from dcdt.data.config import SplitConfig
from dcdt.data.pairs import COLUMNS, _bm25_plus, load_pairs
from dcdt.data.tokens import tokenize
from dcdt.utils.errors import UserError

QUERY = SplitConfig("query", 0, 10, "all")
VIDEO = SplitConfig("video", 0, 10, "all")


def draw(folder, made, space="test"):
    vectors = made.tables.queries.numpy(), made.tables.frozen.numpy()
    return load_pairs(folder, made.collection, made.split, *vectors, space=space)


def rows_of(folder):
    [path] = folder.glob("*.parquet")
    return pq.read_table(path).to_pylist()


def test_each_positive_stands_beside_two_random_one_lexical_and_one_similar_negative(small, tmp_path):
    made = prepare(small, QUERY)
    pairs = draw(tmp_path, made)
    judged = made.collection.positives
    for name in ("val", "test"):
        rows = [row for row in rows_of(tmp_path) if row["side"] == name]
        held_out = np.isin(judged.query, made.split.sides[name].queries).sum()
        origins = {"positive": held_out, "bm25": held_out, "cosine": held_out, "random": 2 * held_out}
        assert Counter(row["origin"] for row in rows) == origins
        assert pairs[name].label.mean() == pytest.approx(0.2)
        read = zip(*vars(pairs[name]).values(), strict=True)
        ids = made.collection.queries.ids, made.collection.videos.ids
        assert {(ids[0][query], ids[1][video], label) for query, video, label in read} == {
            (row["query_id"], row["video_id"], row["label"]) for row in rows
        }
    assert tuple(rows[0]) == COLUMNS


@pytest.mark.parametrize("split", [QUERY, VIDEO])
def test_a_negative_is_a_candidate_that_is_related_at_no_grade(small, tmp_path, split):
    made = prepare(small, split)
    related = related_sets(made.collection)
    for name, pairs in draw(tmp_path, made).items():
        side = made.split.sides[name]
        assert set(pairs.query) == set(side.queries)
        assert side.candidates[pairs.video].all()
        assert len(set(zip(pairs.query, pairs.video, strict=True))) == len(pairs.query)
        for query, video, label in zip(pairs.query, pairs.video, pairs.label, strict=True):
            assert label or video not in related[query]
        positives = zip(*vars(side.judgments).values(), strict=True)
        wanted = {(query, video) for query, video, grade in positives if grade >= 2}
        assert {(q, v) for q, v, label in zip(pairs.query, pairs.video, pairs.label, strict=True) if label} == wanted


def test_hard_negatives_are_the_best_of_what_is_left(small, tmp_path):
    made = prepare(small, QUERY)
    draw(tmp_path, made)
    collection, related = made.collection, related_sets(made.collection)
    documents = zip(collection.videos.titles, collection.videos.texts, strict=True)
    bm25 = BM25Plus([tokenize(f"{title} {text}") for title, text in documents])
    used = {}
    for row in rows_of(tmp_path):
        query, video = collection.queries.row_of[row["query_id"]], collection.videos.row_of[row["video_id"]]
        scores = {
            "bm25": bm25.get_scores(tokenize(collection.queries.texts[query])),
            "cosine": (made.tables.frozen @ made.tables.queries[query]).numpy(),
        }.get(row["origin"])
        taken = used.setdefault(query, set())
        if scores is not None:
            texts = collection.videos.texts
            known = {texts[video] for video in related[query]}
            free = [at for at, text in enumerate(texts) if text not in known and at not in taken]
            assert scores[video] == pytest.approx(max(scores[free]))
        if not row["label"]:
            taken.add(video)


def test_where_videos_run_out_no_negative_is_used_twice(tmp_path):
    made = prepare(make_collection(tmp_path / "tiny", n_videos=4), QUERY)
    related = related_sets(made.collection)
    for pairs in draw(tmp_path, made).values():
        drawn = Counter(pairs.query[~pairs.label].tolist())
        positives = Counter(pairs.query[pairs.label].tolist())
        assert drawn == {query: min(4 * positives[query], 4 - len(related[query])) for query in drawn}


def test_no_negative_has_the_text_of_a_related_video(small, tmp_path):
    made = prepare(small, QUERY)
    texts, related, twins = made.collection.videos.texts, related_sets(made.collection), 0
    for pairs in draw(tmp_path, made).values():
        for query, video in zip(pairs.query[~pairs.label].tolist(), pairs.video[~pairs.label].tolist(), strict=True):
            known = {texts[row] for row in related[query]}
            twins += len([row for row, text in enumerate(texts) if text in known]) > len(related[query])
            assert texts[video] not in known
    assert twins


def test_the_file_is_drawn_once_and_read_after(small, tmp_path):
    made = prepare(small, QUERY)
    first = draw(tmp_path, made)
    [path] = tmp_path.glob("*.parquet")
    table = pq.read_table(path).slice(0, 5)  # whatever stands in the file counts
    pq.write_table(table, path)
    again = draw(tmp_path, made)["val"]
    assert [made.collection.videos.ids[row] for row in again.video] == table["video_id"].to_pylist()
    assert len(first["val"].video) > 5


def test_pairs_come_in_the_order_of_evaluation(small, tmp_path):
    made = prepare(small, QUERY)
    for pairs in draw(tmp_path, made).values():
        assert (np.diff(pairs.query) >= 0).all()


def test_the_order_of_lines_does_not_matter(small, tmp_path):
    copytree(small, tmp_path / "turned")
    for name in ("corpus.jsonl", "queries.jsonl"):
        path = tmp_path / "turned" / name
        path.write_text("\n".join(reversed(path.read_text().splitlines())))
    draw(tmp_path / "one", prepare(small, QUERY))
    draw(tmp_path / "other", prepare(tmp_path / "turned", QUERY))
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "other")
    assert len({path.name for path in tmp_path.glob("o*/*.parquet")}) == 1


def test_the_pairs_are_the_same_for_every_model_and_folder(small, tmp_path):
    draw(tmp_path / "one", prepare(small, QUERY, fields=["title", "text"]))
    draw(tmp_path / "other", prepare(small, QUERY, fields=["text"]))
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "other")
    assert len({path.name for path in tmp_path.rglob("*.parquet")}) == 1


def test_another_split_or_space_has_another_file(small, tmp_path):
    made, other = prepare(small, QUERY), prepare(small, VIDEO)
    draw(tmp_path, made)
    draw(tmp_path, other)
    draw(tmp_path, made, space="other")
    assert len(list(tmp_path.glob("*.parquet"))) == 3


def columns(**changes):
    plain = {"side": ["val"], "query_id": ["q0"], "video_id": ["v0"], "label": [True], "origin": ["positive"]}
    return pa.table({name: part for name, part in {**plain, **changes}.items() if part is not None})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("side,query_id"),
        lambda path: pq.write_table(columns(label=None), path),
        lambda path: pq.write_table(columns(query_id=["q999"]), path),
        lambda path: pq.write_table(columns(video_id=["v999"]), path),
    ],
)
def test_a_corrupt_file_is_named_with_the_remedy(small, tmp_path, spoil):
    made = prepare(small, QUERY)
    draw(tmp_path, made)
    [path] = tmp_path.glob("*.parquet")
    spoil(path)
    with pytest.raises(UserError, match=r"the pair file .*parquet is corrupt \(.*\)\.\nDelete it"):
        draw(tmp_path, made)


def test_bm25_of_the_pairs_is_that_of_rank_bm25_to_the_bit(small):
    collection = load_collection(small)
    lexical = _bm25_plus(collection)
    documents = zip(collection.videos.titles, collection.videos.texts, strict=True)
    theirs = BM25Plus([tokenize(f"{title} {text}") for title, text in documents])
    for text in collection.queries.texts:
        words = tokenize(text) * 2  # a word that is asked twice counts twice
        assert lexical.score(words).tolist() == theirs.get_scores(words).tolist()


def test_a_flipped_bit_in_a_pair_file_is_found(small, tmp_path):
    made = prepare(small, QUERY)
    drawn, wrong = draw(tmp_path, made), 0
    [path] = tmp_path.glob("*.parquet")
    content = path.read_bytes()
    for at in range(4, len(content), 16):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with suppress(UserError):
            found = draw(tmp_path, made)
            columns = [(vars(found[name])[key], vars(drawn[name])[key]) for name in drawn for key in vars(drawn[name])]
            wrong += not all(np.array_equal(one, other) for one, other in columns)
    assert wrong <= 1  # the footer, a tenth of the file, has no checksum
