from types import SimpleNamespace

import pytest
import torch
from support import prepare

from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.training.callbacks.samples import sample_table, score_spread, topics


@pytest.fixture(scope="module")
def made(small):
    found = prepare(small, SplitConfig("query", 0, 10, "all"))
    data = RankingDataModule(found.collection, found.split, found.pairs, None, 16, 0, (1, 5))
    side = data.sides["val"]
    scores = torch.rand(len(side.queries), 20, generator=torch.Generator().manual_seed(0))
    scores[:, 7] = float("-inf")
    return found.collection, side, scores


def test_a_sample_shows_the_best_videos_and_whether_they_answer(made):
    collection, side, scores = made
    rows = sample_table(side, scores, collection, n=3, k=4)
    assert len(rows) == 12
    positives = collection.positives
    for at, (text, rank, title, link, score, relevant) in enumerate(rows):
        row = int(side.queries[at // 4])
        assert text == collection.queries.texts[row] and rank == at % 4 + 1 and link == ""
        video = collection.videos.titles.index(title)
        assert score == scores[at // 4].sort(descending=True).values[rank - 1] == scores[at // 4, video]
        assert relevant == bool(((positives.query == row) & (positives.video == video)).any())


def test_scores_are_spread_over_positives_and_others(made):
    collection, side, scores = made
    spread = score_spread(side, scores, collection.positive_grade)
    n = int((side.grades >= collection.positive_grade).sum())
    hidden = int(((side.judged == 7) & (side.grades >= collection.positive_grade)).sum())
    assert spread["positives"][0].sum() == n - hidden
    assert sum(counts.sum() for counts, _ in spread.values()) == scores.isfinite().sum()
    assert (spread["positives"][1] == spread["others"][1]).all()


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ([{"series": "a"}, {"series": "b"}, {}], ["a", "b", "other"]),
        ([{"topic": "x", "series": "a"}, {"topic": "x", "series": "b"}], ["a", "b"]),
        ([{"path": ["all", "one"]}, {"path": ["all", "two"]}, {"path": ["all"]}], ["one", "two", "other"]),
        ([{"tags": ["p", "q"]}, {"tags": ["q"]}], ["p", "q"]),
        ([{}, {}], ["c", "c"]),
    ],
)
def test_the_topic_of_a_video_is_what_divides_the_videos(metadata, expected):
    assert topics(SimpleNamespace(videos=SimpleNamespace(metadata=metadata), name="c")) == expected


def test_rare_topics_are_one():
    metadata = [{"topic": f"t{at % 4}"} for at in range(9)]  # t0 thrice, the others twice
    found = topics(SimpleNamespace(videos=SimpleNamespace(metadata=metadata), name="c"), max_topics=2)
    assert found == ["t0", "t1", "other", "other"] * 2 + ["t0"]
