import math

import numpy as np
import pytest
from support import make_collection, prepare

from dcdt.data.beir import load_collection
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule, side_tensors
from dcdt.data.histories import count_watchers
from dcdt.data.splits import make_split
from dcdt.utils.errors import UserError

N_VIDEOS, N_LEARNERS = 20, 40


def make_watches(folder, seed=0):
    """A collection that holds videos and watches alone; learner u<k> watches at seconds k, k + 10, k + 20, ..."""
    make_collection(folder, n_videos=N_VIDEOS)
    (folder / "queries.jsonl").unlink()
    (folder / "qrels" / "all.tsv").unlink(missing_ok=True)
    rng = np.random.default_rng(seed)
    rows = [
        (f"u{user:02d}", f"v{item}", user + 10 * at)
        for user in range(N_LEARNERS)
        for at, item in enumerate(rng.choice(N_VIDEOS, 6, replace=False))
    ]
    return write_watches(folder, rows)


def write_watches(folder, rows):
    text = "".join(f"{user},{item},{time}\n" for user, item, time in rows)
    (folder / "interactions.csv").write_text("user_id,item_id,timestamp\n" + text)
    return folder


def named(collection, judgments):
    """Judgments as sets of video ids by query id."""
    found = {name: set() for name in collection.queries.ids}
    for query, video in zip(judgments.query.tolist(), judgments.video.tolist(), strict=True):
        found[collection.queries.ids[query]].add(collection.videos.ids[video])
    return found


def test_the_last_video_is_asked_for_and_the_earlier_ones_are_not_ranked(tmp_path):
    folder = make_watches(tmp_path / "made")
    rows = [("a", "v1", 5), ("a", "v2", 7), ("a", "v1", 9), ("b", "v3", 1), ("c", "v4", 2), ("c", "v5", 3)]
    rows += [("c", "v6", 3), ("d", "v7", 4), ("d", "v7", 8)]  # b has one video; d has one video twice
    collection = load_collection(write_watches(folder, rows))
    assert not collection.has_questions and collection.queries.texts == ["", ""]
    assert named(collection, collection.positives) == {"a": {"v2"}, "c": {"v5", "v6"}}
    assert named(collection, collection.excluded) == {"a": {"v1"}, "c": {"v4"}}
    assert [data["timestamp"] for data in collection.queries.metadata] == [7.0, 3.0]
    write_watches(folder, rows[::-1])
    other = load_collection(folder)
    assert other.content_hash == collection.content_hash and named(other, other.excluded) == named(
        collection, collection.excluded
    )


def test_the_kind_of_a_query_is_the_length_of_its_history(tmp_path):
    lengths = [1, 2, 3, 5, 6, 10, 11, 15]
    rows = [(f"u{n:02}", f"v{at}", at) for n in lengths for at in range(n + 1)]
    rows += [(f"u{n:02}", "v0", 0.5) for n in lengths]  # watched again: no further video
    collection = load_collection(write_watches(make_watches(tmp_path / "made"), rows))
    kinds = [metadata["kind"] for metadata in collection.queries.metadata]
    ranges = ["1 to 2", "3 to 5", "6 to 10", "over 10"]
    assert kinds == [f"{name} watched" for name in ranges for _ in range(2)]
    assert len(named(collection, collection.excluded)["u11"]) == 11


@pytest.mark.parametrize("split", ["time", "folds"])
def test_watchers_are_counted_once_a_learner_and_before_the_held_out_queries(tmp_path, split):
    folder = make_watches(tmp_path / "made")
    with (folder / "interactions.csv").open("a") as file:
        file.write("u00,v3,0\nu00,v3,1\nu00,v3,2\n")
    made = prepare(folder, SplitConfig(split, 0, 10, "all"), pairs=False)
    data = RankingDataModule(made.collection, made.split, {}, None, 16, 0)
    rows = [line.split(",") for line in (folder / "interactions.csv").read_text().splitlines()[1:]]
    limits = {}
    for side in made.split.sides.values():
        for query in (made.collection.queries.metadata[row] for row in side.queries.tolist()):
            limits[query["user_id"]] = min(query["timestamp"], limits.get(query["user_id"], math.inf))
    cutoff = math.inf if made.split.cutoff is None else made.split.cutoff
    seen = {(item, user) for user, item, time in rows if float(time) < min(cutoff, limits.get(user, math.inf))}
    counts, n_learners = count_watchers(data)
    assert counts.tolist() == [sum(item == name for item, _ in seen) for name in made.collection.videos.ids]
    assert n_learners == len({user for _, user in seen}) and 0 < counts.sum() < len(rows)


def test_learners_are_divided_in_order_of_time_and_none_twice(tmp_path):
    collection = load_collection(make_watches(tmp_path / "made"))
    split = make_split(collection, SplitConfig("time", 0, 10, "all"))
    time = [metadata["timestamp"] for metadata in collection.queries.metadata]
    parts = [[time[row] for row in side.queries] for side in (split.train, split.val, split.test)]
    assert [len(part) for part in parts] == [28, 8, 4]
    assert max(parts[0]) < split.cutoff == min(parts[1]) and max(parts[1]) < min(parts[2])
    folds = [make_split(collection, SplitConfig("folds", at, 5, "all")).test.queries for at in range(5)]
    assert sorted(np.concatenate(folds).tolist()) == list(range(N_LEARNERS))


def test_what_the_learner_has_is_taken_out_of_the_ranking(tmp_path):
    collection = load_collection(make_watches(tmp_path / "made"))
    split = make_split(collection, SplitConfig("time", 0, 10, "all"))
    side, taken = side_tensors("test", split.test, collection), named(collection, collection.excluded)
    for row, removed in zip(side.queries.tolist(), side.removed.tolist(), strict=True):
        assert {f"v{video}" for video in removed if video >= 0} == taken[collection.queries.ids[row]]
        assert len(taken[collection.queries.ids[row]]) == 5


def test_no_vector_is_needed_of_a_question_that_nobody_asks(tmp_path):
    made = prepare(make_watches(tmp_path / "made"), SplitConfig("time", 0, 10, "all"), pairs=False)
    assert made.tables.queries.shape == (N_LEARNERS, made.tables.width)
    assert not made.tables.queries.any()


def test_learners_without_a_next_video_are_an_error(tmp_path):
    folder = write_watches(make_watches(tmp_path / "made"), [("a", "v1", 5), ("b", "v2", 6)])
    with pytest.raises(UserError, match="no learner has two videos at different times"):
        load_collection(folder)


def test_neither_queries_nor_watches_are_an_error(tmp_path):
    folder = make_watches(tmp_path / "made")
    (folder / "interactions.csv").unlink()
    with pytest.raises(UserError, match=r"no queries\.jsonl.*\nAdd queries\.jsonl.* or interactions\.csv"):
        load_collection(folder)
