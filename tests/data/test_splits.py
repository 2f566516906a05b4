from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from support import make_collection, write_folder

from dcdt.config import validate
from dcdt.data.beir import load_collection
from dcdt.data.config import SplitConfig
from dcdt.data.splits import is_sealed, make_split, query_groups, warmth
from dcdt.data.types import Collection, Documents, Judgments, normalise_text
from dcdt.utils.errors import NotApplicable, UserError

RULES = ["query", "folds", "video", "time", "paper"]
SPELLINGS = ["{}", "{}?", "  {}", "({})"]


def config(name, index=0, n_folds=10, part=None):
    return SplitConfig(name, index, n_folds, part or ("all" if name == "paper" else "open"))


def build(videos, queries, judged, positive_grade=1.0, languages=(), given=None):
    """A collection from (id, title, text), (id, text, metadata) and (query id, video id, grade)."""
    ids, titles, texts = (list(part) for part in zip(*videos, strict=True))
    documents = Documents(ids, titles, texts, [{} for _ in ids])
    names, asked, metadata = (list(part) for part in zip(*queries, strict=True))
    questions = Documents(names, [""] * len(names), asked, metadata)
    rows = [(questions.row_of[query], documents.row_of[video], grade) for query, video, grade in judged]
    query, video, grade = zip(*rows, strict=True)
    judgments = Judgments(np.array(query), np.array(video), np.array(grade, dtype=np.float32))
    sides = {name: np.array([questions.row_of[query] for query in part]) for name, part in (given or {}).items()}
    return Collection(Path("x"), "x", documents, questions, judgments, sides, positive_grade, list(languages))


def parts(seed, n_videos=15, n_queries=60, n_texts=45):
    """Seeded videos (two of equal text), queries (some of equal text, times with ties), judgments of grade 0 to 2."""
    rng = np.random.default_rng(seed)
    videos = [(f"v{at}", f"title {at}", f"text {at}") for at in range(n_videos - 1)]
    videos.append(("twin", *videos[0][1:]))
    queries = []
    for at in range(n_queries):
        text = rng.choice(SPELLINGS).format(f"question {rng.integers(n_texts)}")
        queries.append((f"q{at}", text, {"timestamp": int(rng.integers(50))}))
    judged = [
        (query, videos[video][0], int(rng.integers(3)))
        for query, _, _ in queries
        for video in rng.choice(n_videos, rng.integers(1, 5), replace=False)
    ]
    return videos, queries, judged


collections = st.builds(
    lambda seed, grade: build(*parts(seed), positive_grade=grade), st.integers(0, 10_000), st.sampled_from([1, 2])
)
configs = st.builds(
    lambda name, index, part: config(name, index, 10, None if name == "paper" else part),
    st.sampled_from(RULES),
    st.integers(0, 9),
    st.sampled_from(["open", "sealed", "all"]),
)


def split_or_reject(collection, chosen):
    """The split; a draw too small for it (a side would be empty, fewer queries than folds) is no example."""
    try:
        return make_split(collection, chosen)
    except UserError as error:
        assume("leaves no" not in str(error) and "there are only" not in str(error))
        raise


def texts_of(collection, rows):
    return {normalise_text(collection.queries.texts[row]) for row in rows}


def positives_of(collection, query):
    rows = zip(*vars(collection.judgments).values(), strict=True)
    return {int(video) for row, video, grade in rows if row == query and grade >= collection.positive_grade}


@given(collections, configs)
def test_no_text_stands_on_two_sides(collection, chosen):
    split = split_or_reject(collection, chosen)
    train, val, test = (texts_of(collection, side.queries) for side in (split.train, split.val, split.test))
    assert not train & val
    assert not train & test
    assert not val & test
    assert train == texts_of(collection, split.pairs[:, 0])
    assert len(split.fingerprint) == 16


@given(collections, configs)
def test_sides_hold_answered_queries_and_judgments_among_their_candidates(collection, chosen):
    split = split_or_reject(collection, chosen)
    for side in (split.train, *split.sides.values()):
        assert side.candidates[side.judgments.video].all()
        assert (side.judgments.grade > 0).all()
        positive = side.judgments.grade >= collection.positive_grade
        assert np.array_equal(np.unique(side.judgments.query[positive]), side.queries)
        assert np.isin(side.judgments.query, side.queries).all()
    for query, video in split.pairs:
        assert int(video) in positives_of(collection, query)


@given(collections, st.integers(2, 12), st.sampled_from(["open", "all"]))
def test_folds_test_each_query_exactly_once(collection, n_folds, part):
    tested = [
        row
        for index in range(n_folds)
        for row in split_or_reject(collection, config("folds", index, n_folds, part)).test.queries.tolist()
    ]
    texts = collection.queries.texts
    wanted = [row for row in np.unique(collection.positives.query) if part == "all" or not is_sealed(texts[row])]
    assert sorted(tested) == wanted


def test_folds_need_as_many_queries():
    with pytest.raises(UserError, match=r"n_folds is 90, but there are only \d+ distinct queries"):
        make_split(build(*parts(0)), config("folds", 0, 90))


def hundred(n=100):
    """One video and one query each, no two texts equal."""
    videos = [(f"v{at}", f"title {at}", f"text {at}") for at in range(n)]
    queries = [(f"q{at}", f"question {at}", {"timestamp": at}) for at in range(n)]
    return build(videos, queries, [(f"q{at}", f"v{at}", 1) for at in range(n)])


@pytest.mark.parametrize("name", ["query", "folds", "time"])
def test_sides_are_seven_to_two_to_one(name):
    split = make_split(hundred(), config(name, part="all"))
    assert [len(side.queries) for side in (split.train, split.val, split.test)] == [70, 20, 10]


def test_videos_are_divided_seven_to_two_to_one():
    split = make_split(hundred(), config("video", part="all"))
    assert [side.candidates.sum() for side in (split.train, split.val, split.test)] == [70, 20, 10]


@pytest.mark.parametrize("index", range(10))
def test_the_paper_split_of_46_is_32_9_5(index):
    split = make_split(hundred(46), config("paper", index))
    assert [len(side.queries) for side in (split.train, split.val, split.test)] == [32, 9, 5]
    assert len(split.pairs) == 32


def test_the_ten_paper_splits_test_all_46_samples():
    splits = [make_split(hundred(46), config("paper", index)) for index in range(10)]
    assert {row for split in splits for row in split.test.queries.tolist()} == set(range(46))


@given(st.integers(0, 10_000))
def test_the_paper_split_takes_one_query_a_video(seed):
    split = split_or_reject(build(*parts(seed)), config("paper"))
    assert len(set(split.pairs[:, 1].tolist())) == len(split.pairs)
    assert len(set(split.pairs[:, 0].tolist())) == len(split.pairs)


def test_the_paper_split_takes_the_marked_queries():
    videos, queries, judged = parts(0)
    best = {query: video for query, video, grade in judged if grade > 0}
    marked = {query: {"canonical_for": best[query]} for query in sorted(best)[::3]}
    queries = [(name, f"{text} {name}", marked.get(name, {})) for name, text, _ in queries]
    collection = build(videos, queries, judged)
    split = make_split(collection, config("paper"))
    used = {collection.queries.ids[row] for side in (split.train, split.val, split.test) for row in side.queries}
    assert used == set(marked)
    assert {(collection.queries.ids[q], collection.videos.ids[v]) for q, v in split.pairs} <= {
        (name, value["canonical_for"]) for name, value in marked.items()
    }


@pytest.mark.parametrize(
    ("mark", "reason"), [("v99", "names the unknown video 'v99'"), ("v1", "which is no positive of this query")]
)
def test_a_wrong_mark_of_a_canonical_query_is_an_error(mark, reason):
    videos = [("v0", "a", "a"), ("v1", "b", "b")]
    collection = build(videos, [("q0", "x", {"canonical_for": mark})], [("q0", "v0", 1)])
    with pytest.raises(UserError, match=f"query 'q0': canonical_for .*{reason}"):
        make_split(collection, config("paper"))


def test_the_paper_split_seals_nothing():
    with pytest.raises(UserError, match=r"split\.part is 'open', but split=paper"):
        make_split(hundred(46), config("paper", part="open"))


@given(collections, st.integers(0, 9), st.sampled_from(["open", "sealed", "all"]))
def test_a_video_split_trains_on_no_held_out_video(collection, index, part):
    split = split_or_reject(collection, config("video", index, part=part))
    train, val, test = (side.candidates for side in (split.train, split.val, split.test))
    assert (train.astype(int) + val + test == 1).all()
    assert train[split.pairs[:, 1]].all()
    assert train[0] == train[-1]  # the twins
    assert test[0] == test[-1]
    assert split.extra["test_all"].candidates.all()
    assert np.array_equal(split.extra["test_all"].queries, split.test.queries)
    assert test[split.extra["test_all"].judgments.video].all()


@given(collections, st.integers(0, 9))
@pytest.mark.slow
def test_a_video_split_puts_a_query_where_its_best_positive_lies(collection, index):
    split = split_or_reject(collection, config("video", index, part="all"))
    home = np.argmax([side.candidates for side in (split.train, split.val, split.test)], axis=0)
    for place, side in enumerate((split.train, split.val, split.test)):
        for text in texts_of(collection, side.queries):
            group = [row for row, other in enumerate(collection.queries.texts) if normalise_text(other) == text]
            judged = collection.judgments
            best = max(judged.grade[judged.query == row].max() for row in group)
            top = np.isin(judged.query, group) & (judged.grade == best)
            assert place in home[judged.video[top]]


@given(collections, st.sampled_from(["open", "sealed", "all"]))
def test_a_time_split_trains_on_the_past_alone(collection, part):
    split = split_or_reject(collection, config("time", part=part))
    train, val, test = (
        [collection.queries.metadata[row]["timestamp"] for row in side.queries]
        for side in (split.train, split.val, split.test)
    )
    assert max(train) < split.cutoff <= min(val + test)
    assert max(val) <= max(test)


@pytest.mark.parametrize("value", [None, "2026-01-01", True, float("nan")])
def test_a_time_split_needs_times(value):
    videos, queries, judged = parts(0)
    queries[7] = (*queries[7][:2], {"timestamp": value})
    judged.append((queries[7][0], "twin", 2))
    with pytest.raises(UserError, match="query 'q7' has the timestamp"):
        make_split(build(videos, queries, judged), config("time"))


@given(collections, st.sampled_from(["query", "folds", "video", "time"]), st.integers(0, 9))
def test_the_seal_is_kept(collection, name, index):
    texts = collection.queries.texts
    shown = split_or_reject(collection, config(name, index, part="open"))
    rows = np.concatenate([side.queries for side in (shown.train, shown.val, shown.test)])
    assert not any(is_sealed(texts[row]) for row in rows)
    final = split_or_reject(collection, config(name, index, part="sealed"))
    assert not any(is_sealed(texts[row]) for side in (final.train, final.val) for row in side.queries)
    assert all(is_sealed(texts[row]) for row in final.test.queries)


@given(collections, st.sampled_from(["query", "folds"]), st.integers(0, 9))
def test_the_sealed_quarter_is_the_same_whatever_the_index(collection, name, index):
    hidden = [row for row in np.unique(collection.positives.query) if is_sealed(collection.queries.texts[row])]
    assert split_or_reject(collection, config(name, index, part="sealed")).test.queries.tolist() == hidden


def test_a_quarter_of_all_texts_is_sealed_whatever_their_spelling():
    assert sum(is_sealed(f"question {at}") for at in range(4000)) == pytest.approx(1000, abs=100)
    assert all(is_sealed(f"Question  {at}?") == is_sealed(f"question {at}") for at in range(100))


def test_a_given_split_is_kept(tmp_path):
    collection = given_folder(tmp_path)
    split = make_split(collection, config("query", part="all"))
    assert split.train.queries.tolist() == list(range(30))
    assert split.val.queries.tolist() == list(range(30, 40))
    assert split.test.queries.tolist() == list(range(40, 60))


def test_a_given_split_without_dev_takes_validation_from_training(tmp_path):
    collection = given_folder(tmp_path, dev=False)
    split = make_split(collection, config("query", part="all"))
    assert split.test.queries.tolist() == list(range(40, 60))
    assert sorted([*split.train.queries, *split.val.queries]) == list(range(40))
    assert len(split.val.queries) == round(40 * 2 / 9)


def test_a_given_split_keeps_the_seal(tmp_path):
    collection = given_folder(tmp_path)
    texts = collection.queries.texts
    shown = make_split(collection, config("query", part="open"))
    assert shown.test.queries.tolist() == [row for row in range(40, 60) if not is_sealed(texts[row])]
    assert shown.train.queries.tolist() == [row for row in range(30) if not is_sealed(texts[row])]
    final = make_split(collection, config("query", part="sealed"))
    assert final.test.queries.tolist() == [row for row in range(40, 60) if is_sealed(texts[row])]
    assert final.train.queries.tolist() == shown.train.queries.tolist()


def given_folder(folder, leak=(), dev=True):
    """60 queries on three sides (40 in training and 20 in test without `dev`); `leak` adds judgments to test.tsv."""
    videos = [{"_id": f"v{at}", "text": f"text {at}"} for at in range(70)]
    queries = [{"_id": f"q{at}", "text": f"question {at}"} for at in range(60)]
    queries += [{"_id": "copy", "text": "Question 5?"}]
    lines = [f"q{at}\tv{at}\t1" for at in range(60)]
    middle = {"dev": lines[30:40]} if dev else {}
    train = lines[: 30 if dev else 40]
    return load_collection(write_folder(folder, videos, queries, train=train, test=[*lines[40:], *leak], **middle))


@pytest.mark.parametrize(
    ("leak", "pair"),
    [("copy\tv60\t1", "'q5' (train) = 'copy' (test)"), ("q31\tv60\t1", "'q31' (val) = 'q31' (test)")],
)
@pytest.mark.parametrize("part", ["open", "all"])
def test_a_planted_leak_is_listed(tmp_path, leak, pair, part):
    collection = given_folder(tmp_path, [leak])
    with pytest.raises(UserError, match="the split leaks: 1 queries on two sides have equal text") as caught:
        make_split(collection, config("query", part=part))
    assert pair in str(caught.value)


def test_many_leaks_are_counted(tmp_path):
    collection = given_folder(tmp_path, [f"q{at}\tv60\t1" for at in range(25)])
    with pytest.raises(UserError, match=r"leaks: 25 queries .* and 15 more"):
        make_split(collection, config("query"))


def shuffled(seed, videos, queries, judged):
    rng = np.random.default_rng(seed)
    return ([part[at] for at in rng.permutation(len(part))] for part in (videos, queries, judged))


@given(st.integers(0, 10_000), configs)
@pytest.mark.slow
def test_neither_split_nor_fingerprint_depends_on_the_order_of_lines(seed, chosen):
    made = parts(seed)
    one = split_or_reject(build(*made), chosen)
    other = make_split(build(*shuffled(seed, *made)), chosen)
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("name", RULES)
def test_the_fingerprint_changes_with_texts_judgments_and_part(name):
    videos, queries, judged = parts(3, n_videos=40, n_queries=150, n_texts=120)
    plain = make_split(build(videos, queries, judged), config(name)).fingerprint
    text = [("v0", "title 0", "another text"), *videos[1:]]
    grade = [(*judged[0][:2], 2 - judged[0][2] // 2), *judged[1:]]
    others = [make_split(build(text, queries, judged), config(name))]
    others.append(make_split(build(videos, queries, judged), config(name, 3)))
    others.append(make_split(build(videos, queries, grade), config(name)))
    if name != "paper":
        others.append(make_split(build(videos, queries, judged), config(name, part="all")))
    if name == "time":
        assert others.pop(1).fingerprint == plain  # time has one division whatever the index
    assert plain not in [other.fingerprint for other in others]


@pytest.mark.parametrize("name", RULES)
def test_the_index_is_in_range(name):
    for index in (-1, 10):
        with pytest.raises(UserError, match=rf"split.index is {index}; split={name} has the indices 0 to 9"):
            make_split(hundred(), config(name, index))


def test_the_part_is_one_of_three():
    with pytest.raises(UserError, match=r"split\.part is 'closed'; choose one of open, sealed, all"):
        validate(SplitConfig, {**vars(config("query")), "part": "closed"}, "split")


@pytest.mark.parametrize("name", ["query", "video", "time", "paper"])
@pytest.mark.parametrize("n", [1, 2])
def test_a_side_without_queries_is_an_error(name, n):
    with pytest.raises(UserError, match=f"split={name} .* leaves no training query: {n} queries, {n} with a positive"):
        make_split(hundred(n), config(name, part="all"))


def test_a_given_split_that_leaves_no_test_query_is_an_error(tmp_path):
    videos = [{"_id": "v0", "text": "a"}, {"_id": "v1", "text": "b"}]
    queries = [{"_id": f"q{at}", "text": f"question {at}"} for at in range(9)]
    train = [f"q{at}\tv0\t1" for at in range(8)]
    collection = load_collection(write_folder(tmp_path, videos, queries, train=train, test=["q8\tv0\t0"]))
    with pytest.raises(UserError, match="leaves no test query: 9 queries, 8 with a positive"):
        make_split(collection, config("query", part="all"))


@pytest.mark.parametrize("name", RULES)
def test_only_foreign_queries_leave_nothing_to_train_on(name):
    videos, queries, judged = parts(0)
    queries = [(name, text, {"lang": "zh", "timestamp": 1}) for name, text, _ in queries]
    with pytest.raises(UserError):
        make_split(build(videos, queries, judged, languages=["en"]), config(name, part="all"))


def with_slice(given=None):
    """A collection with every fourth query in Chinese."""
    videos, queries, judged = parts(1)
    queries = [
        (name, f"{text} {name}", {**metadata, "lang": "zh" if at % 4 == 0 else "en"})
        for at, (name, text, metadata) in enumerate(queries)
    ]
    return build(videos, queries, judged, languages=["en"], given=given)


@pytest.mark.parametrize("name", [*RULES, "given"])
def test_slices_are_reported_apart_and_never_trained_on(name):
    names = [f"q{at}" for at in range(60)]
    given = {"train": names[:30], "dev": names[30:40], "test": names[40:]} if name == "given" else None
    collection = with_slice(given)
    split = make_split(collection, config("query" if name == "given" else name))
    foreign = {row for row in range(60) if row % 4 == 0}
    for side in (split.train, split.val, split.test):
        assert not foreign & set(side.queries.tolist())
    assert set(split.extra["slice_zh"].queries.tolist()) == foreign & set(collection.positives.query.tolist())
    assert split.extra["slice_zh"].candidates.all()


@given(collections, configs)
def test_warm_cold_and_mixed_by_brute_force(collection, chosen):
    split = split_or_reject(collection, chosen)
    trained = {int(video) for _, video in split.pairs}
    for side in split.sides.values():
        found = warmth(split, side, collection.positive_grade)
        for query, word in zip(side.queries, found, strict=True):
            here = {video for video in positives_of(collection, query) if side.candidates[video]}
            if side is split.extra.get("test_all"):
                here = {video for video in here if split.test.candidates[video]}
            wanted = "warm" if here <= trained else "mixed" if here & trained else "cold"
            assert word == wanted


def test_queries_without_a_positive_on_their_side_are_counted():
    videos, queries, judged = parts(5)
    split = make_split(build(videos, queries, judged), config("video", part="all"))
    kept = sum(len(side.queries) for side in (split.train, split.val, split.test))
    assert split.left_out == len(queries) - kept
    assert split.left_out > len(queries) - len({query for query, _, grade in judged if grade >= 1})


def test_groups_are_rows_of_equal_text():
    assert query_groups(["Span?", "rank", "span"], [0, 1, 2]) == {"span": [0, 2], "rank": [1]}


@pytest.mark.parametrize("name", ["query", "folds", "video", "paper"])
def test_real_collections_split_without_leaks(real, name):
    split = make_split(real, config(name, 3))
    assert not texts_of(real, split.train.queries) & texts_of(real, split.test.queries)
    assert len(split.test.queries) > 10


@pytest.mark.parametrize("name", ["query", "folds", "video"])
def test_fewer_training_queries_are_nested_and_the_test_side_stays(tmp_path, name):
    collection = load_collection(make_collection(tmp_path / "c", n_queries=120, repeats=5))
    whole = make_split(collection, SplitConfig(name, 0, 10, "all"))
    few, more = (make_split(collection, SplitConfig(name, 0, 10, "all", n)) for n in (10, 30))
    groups = query_groups(collection.queries.texts, few.train.queries)
    assert len(groups) == 10
    assert set(few.train.queries) < set(more.train.queries) < set(whole.train.queries)
    assert set(few.val.queries) < set(more.val.queries) < set(whole.val.queries)
    assert abs(len(more.val.queries) / len(whole.val.queries) - 30 / len(whole.train.queries)) < 0.1
    for split in (few, more):
        assert split.test.queries.tolist() == whole.test.queries.tolist()
        assert split.fingerprint != whole.fingerprint
        assert set(split.pairs[:, 0]) == set(split.train.queries)


def test_more_training_queries_than_there_are_is_not_applicable(tmp_path):
    collection = load_collection(make_collection(tmp_path / "c"))
    with pytest.raises(NotApplicable, match=r"train_queries is 1000, but this division has \d+ training queries"):
        make_split(collection, SplitConfig("folds", 0, 10, "all", 1000))


@pytest.mark.parametrize("name", ["query", "folds", "video", "time"])
def test_queries_without_a_positive_are_counted_as_left_out(small, tmp_path, name):
    copytree(small, tmp_path / "c")
    path = tmp_path / "c" / "qrels" / "qrels.tsv"
    lines = path.read_text().splitlines()
    gone = {f"q{at}" for at in range(20, 30)}  # none of them repeats another query
    before = make_split(load_collection(tmp_path / "c"), SplitConfig(name, 0, 10, "all")).left_out
    path.write_text("\n".join(line for line in lines if line.split("\t")[0] not in gone))
    after = load_collection(tmp_path / "c")
    assert make_split(after, SplitConfig(name, 0, 10, "all")).left_out >= len(gone)
    if name in ("query", "folds"):
        assert before == 0 and make_split(after, SplitConfig(name, 0, 10, "all")).left_out == len(gone)
        queries = after.queries
        unsealed = [name for name in gone if not is_sealed(queries.texts[queries.row_of[name]])]
        assert make_split(after, SplitConfig(name, 0, 10, "open")).left_out == len(unsealed) < len(gone)
